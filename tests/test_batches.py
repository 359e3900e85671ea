"""docs/batches.md kept: a real batch of every DataModule goes through every module that accepts it."""

import json

import pytest
import torch
from lightning.pytorch import Trainer
from torchvision.io import write_jpeg

from datamodules import ImageNet, Kinetics, SomethingSomethingV2, VideoCSV, VideoFolder, VideoReader
from datamodules.synthetic import generate
from lightning_modules import VideoClassifier

CLASSES = ("grow", "move_left")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("batches") / "data", num_train=4, num_val=2, num_test=2, classes=CLASSES,
                    size=(48, 40), num_frames=6, num_workers=0, progress=False)  # fmt: skip


def ssv2(root, **kwargs):
    """The generated videos with the annotations of Something-Something."""
    there = root.parent / "ssv2"
    there.mkdir(exist_ok=True)
    for split, name in (("train", "train"), ("val", "validation")):
        entries = []
        for number, path in enumerate(sorted(root.glob(f"{split}/*/*.mp4"))):
            entries.append({"id": f"{len(split)}{number:04d}", "template": f"[{path.parent.name}]"})
            if not (there / f"{entries[-1]['id']}.mp4").exists():
                (there / f"{entries[-1]['id']}.mp4").symlink_to(path)
        (there / f"{name}.json").write_text(json.dumps(entries))
    (there / "labels.json").write_text(json.dumps({name: str(label) for label, name in enumerate(sorted(CLASSES))}))
    return SomethingSomethingV2(there, num_classes=2, **kwargs)


def imagenet(root, **kwargs):
    """First frames of the generated videos in the folders of ImageNet."""
    there = root.parent / "imagenet"
    for path in root.glob("[tv]*/*/*.mp4"):
        picture = there / path.relative_to(root).with_suffix(".JPEG")
        picture.parent.mkdir(parents=True, exist_ok=True)
        with VideoReader(path) as reader:
            write_jpeg(reader.read([0])[0], str(picture))
    return ImageNet(there, num_classes=2, num_crops=3, **kwargs)


DATAMODULES = {
    "VideoFolder": lambda root, **kwargs: VideoFolder(root, **kwargs),
    "VideoCSV": lambda root, **kwargs: VideoCSV(root, classes="classes.txt", **kwargs),
    "Kinetics": lambda root, **kwargs: Kinetics(root, num_classes=2, delimiter=",", **kwargs),
    "SomethingSomethingV2": ssv2,
    "ImageNet": imagenet,
}
MIXING = {"mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.5, "repeats": 2}
MODULES = {
    "VideoClassifier": lambda: VideoClassifier(2, embed_dim=16, depth=1, num_frames=4, image_size=32),
    "VideoClassifier dense": lambda: VideoClassifier(2, 16, 1, num_frames=2, image_size=32, sampling="dense"),
    "VideoClassifier of images": lambda: VideoClassifier(2, 16, 1, num_frames=None, image_size=32),
}


@pytest.mark.parametrize("mixing", [{}, MIXING], ids=["plain", "mixed"])
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("datamodule", DATAMODULES)
def test_batches_fit(root, tmp_path, datamodule, module, mixing):
    data = DATAMODULES[datamodule](root, batch_size=2, num_workers=0, num_clips=2, **mixing)
    model = MODULES[module]()
    seen = {}
    for stage in ("training", "validation", "test", "predict"):
        step = getattr(model, f"{stage}_step")
        setattr(model, f"{stage}_step", lambda batch, i, s=stage, f=step: (seen.setdefault(s, batch), f(batch, i))[1])
    quiet = dict(logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False)
    trainer = Trainer(max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, default_root_dir=tmp_path, **quiet)
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    trainer.predict(model, datamodule=data, return_predictions=True)

    clip = model.preprocessing
    shape = (3, clip["num_frames"], clip["image_size"], clip["image_size"])
    for stage, batch in seen.items():
        views = (6,) if stage in ("test", "predict") else ()
        size = len(batch["label"])
        assert batch["video"].shape == (size, *views, *shape), stage
        assert batch["label"].dtype == batch["index"].dtype == torch.int64
        assert len(batch["path"]) == size and all(isinstance(path, str) for path in batch["path"])
        mixed = stage == "training" and bool(mixing)
        assert batch["video"].dtype == (torch.float32 if mixed else torch.uint8)
        assert ("target" in batch) == mixed
        if mixed:
            torch.testing.assert_close(batch["target"].sum(1), torch.ones(size))
    assert set(seen) == {"training", "validation", "test", "predict"}
    assert model.class_names == sorted(CLASSES)
