import shutil

import numpy as np
import pytest
import torch
from torchvision.io import ImageReadMode, decode_image, write_jpeg, write_png
from torchvision.transforms.v2 import functional as F

from datamodules.base import DataError
from datamodules.imagenet import ImageNet
from datamodules.loading import TrainSampler
from datamodules.synthetic.motion import render, sample_spec

FORMAT = {
    "num_frames": 1,
    "image_size": 56,
    "short_side": 64,  # int(56 / 0.875)
    "sampling": "sparse",
    "frame_stride": 1,
    "interpolation": "bicubic",
}
WNIDS = ["n01440764", "n01443537", "n15075141"]


def picture(number, size=(96, 80)):
    """uint8 (3, H, W) from the generator."""
    frames = render(sample_spec(np.random.default_rng(number), "grow"))
    return F.resize(torch.from_numpy(frames[0]).permute(2, 0, 1), size[::-1]).contiguous()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """root/{train,val}/<wnid>/*.JPEG, with 2 + 1 pictures per class, one of them a PNG with the wrong suffix."""
    root = tmp_path_factory.mktemp("imagenet")
    for label, wnid in enumerate(WNIDS):
        for split, count in (("train", 2), ("val", 1)):
            (root / split / wnid).mkdir(parents=True)
            for number in range(count):
                name = f"{wnid}_{number + 26}.JPEG" if split == "train" else f"ILSVRC2012_val_{label + 293:08d}.JPEG"
                write = write_png if (label, split, number) == (2, "train", 1) else write_jpeg
                write(picture(10 * label + number), str(root / split / wnid / name))
    return root


def data_of(root, **arguments):
    return ImageNet(root, **{"num_classes": 3, "num_workers": 0, "batch_size": 3} | FORMAT | arguments)


def listing(data, split="train"):
    return [(sample.path.removeprefix(f"{data.root}/"), sample.label) for sample in data.listing(split)]


def test_folders(root):
    data = data_of(root)
    assert data.class_names == WNIDS
    assert listing(data) == [(f"train/{w}/{w}_{n}.JPEG", i) for i, w in enumerate(WNIDS) for n in (26, 27)]
    assert listing(data, "val") == listing(data, "test")
    assert listing(data, "val")[1] == ("val/n01443537/ILSVRC2012_val_00000294.JPEG", 1)


def test_validation_is_resize_and_middle_crop(root):
    data = data_of(root)
    data.setup()
    batch = next(iter(data.val_dataloader()))
    test = next(iter(data.test_dataloader()))
    assert batch["video"].shape == (3, 3, 1, 56, 56) and batch["label"].tolist() == [0, 1, 2]
    assert torch.equal(batch["video"], test["video"])  # one clip, one crop
    for video, path in zip(batch["video"], batch["path"], strict=True):
        image = decode_image(path, ImageReadMode.RGB)  # libjpeg, 96 x 80 pixels
        wanted = F.resize(image, [64, 76], F.InterpolationMode.BICUBIC, antialias=True)[:, 4:60, 10:66]
        assert (video[:, 0].float() - wanted.float()).abs().mean() < 1.5


def test_training_crops_before_it_augments(root):
    data = data_of(root, rand_augment_ops=2, horizontal_flip=0.0)
    data.setup("fit")
    transform = data.datasets["train"].transform
    assert transform.crop_first and transform.interpolation == "bicubic" and transform.num_ops == 2
    batch = next(iter(data.train_dataloader()))
    assert batch["video"].shape == (3, 3, 1, 56, 56) and batch["video"].dtype == torch.uint8


def test_lists(root, tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "train").symlink_to(root / "train")
    (tmp_path / "val").mkdir()
    for label in range(3):
        write_jpeg(picture(label), str(tmp_path / "val" / f"{label}.JPEG"))
    rows = [f"{wnid}/{wnid}_26.JPEG {label}\n" for label, wnid in enumerate(WNIDS)]
    (tmp_path / "meta" / "train.txt").write_text("".join(rows))
    (tmp_path / "val.txt").write_text("0.JPEG 0\n1.JPEG 1\n2.JPEG 2\n")
    data = data_of(tmp_path)
    assert listing(data) == [(f"train/{wnid}/{wnid}_26.JPEG", label) for label, wnid in enumerate(WNIDS)]
    assert listing(data, "val") == [(f"val/{label}.JPEG", label) for label in range(3)]
    data.setup()
    assert next(iter(data.val_dataloader()))["label"].tolist() == [0, 1, 2]


def test_names_of_the_thousand_classes(tmp_path):
    for number in range(1000):
        (tmp_path / "train" / f"n{number:08d}").mkdir(parents=True)
    names = ImageNet(tmp_path).class_names
    assert len(names) == 1000 and (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")
    (tmp_path / "train" / "n00000999").rmdir()
    with pytest.raises(DataError, match="train has 999 class folders, but num_classes is 1000"):
        _ = ImageNet(tmp_path).class_names


def test_repeats_are_drawn_by_the_sampler(root):
    data = data_of(root, repeats=3, batch_size=2)
    data.setup("fit")
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, TrainSampler) and data.clips_per_batch == 2
    indices = [index for batch in loader for index in batch["index"].tolist()]
    assert len(indices) == 6  # an epoch stays as long
    assert indices[:3] == indices[:1] * 3 and indices[3:] == indices[3:4] * 3


def error(root, **arguments):
    with pytest.raises(DataError) as caught:
        data_of(root, **arguments).setup("fit")
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    return str(caught.value)


def test_a_flat_folder_needs_a_list(root, tmp_path):
    """As the archive of the validation pictures is unpacked."""
    shutil.copytree(root / "train", tmp_path / "train")
    (tmp_path / "val").mkdir()
    for picture in (root / "val").rglob("*.JPEG"):
        shutil.copy(picture, tmp_path / "val")
    text = error(tmp_path)
    assert f"{tmp_path}/val has 3 pictures without a folder per class, and no list says which class" in text
    assert f"write {tmp_path}/meta/val.txt with a row such as 'ILSVRC2012_val_00000293.JPEG 0' for each" in text
    (tmp_path / "meta").mkdir()
    rows = [f"ILSVRC2012_val_{number:08d}.JPEG {number - 293}\n" for number in range(293, 296)]
    (tmp_path / "meta" / "val.txt").write_text("".join(rows))
    data = data_of(tmp_path)
    data.setup()
    assert listing(data, "val")[2] == ("val/ILSVRC2012_val_00000295.JPEG", 2)


def test_wrong_folders(root, tmp_path):
    text = error(tmp_path / "nowhere")
    for part in ("has no ImageNet train split", "nowhere/train with a folder per class", "meta/train.txt", "https://"):
        assert part in text
    assert "train has 3 class folders, but num_classes is 4" in error(root, num_classes=4)
    (tmp_path / "train" / WNIDS[0]).mkdir(parents=True)
    assert "train has class folders but no pictures in them" in error(tmp_path, num_classes=1)
    write_jpeg(picture(0), str(tmp_path / "train" / WNIDS[0] / "a.JPEG"))
    (tmp_path / "val" / WNIDS[1]).mkdir(parents=True)
    assert f"val/{WNIDS[1]} is not a class of {tmp_path}/train" in error(tmp_path, num_classes=1)
    (tmp_path / "val.txt").write_text("a.JPEG 0\nb.JPEG cat\n")
    assert "val.txt, line 2: label 'cat' is not a number" in error(tmp_path, num_classes=1)
    (tmp_path / "val.txt").write_text("a.JPEG 0\nb.JPEG 5\n")
    assert "1 of the 2 val videos have labels outside 0 .. 0" in error(tmp_path, num_classes=1)
