import json
import warnings

import numpy as np
import pytest
import torch
from torchvision.io import write_jpeg

from datamodules.base import DataError
from datamodules.ssv2 import SomethingSomethingV2
from datamodules.synthetic.motion import render, sample_spec
from datamodules.video.views import load_views

FORMAT = {"num_frames": 4, "image_size": 32, "short_side": 32, "frame_stride": 2, "interpolation": "bilinear"}
LABELS = {
    "Bending something so that it deforms": "2",
    "Approaching something with your camera": "0",
    "Attaching something to something": "1",
}
TRAIN = [
    {"id": "78687", "label": "attaching lid to box", "template": "Attaching [something] to [something]",
     "placeholders": ["lid", "box"]},
    {"id": "100001", "label": "bending wire so that it deforms",
     "template": "Bending [something] so that it deforms", "placeholders": ["wire"]},
    {"id": "100002", "label": "approaching tree with your camera",
     "template": "Approaching [something] with your camera", "placeholders": ["tree"]},
]  # fmt: skip
IDS = [entry["id"] for entry in TRAIN]
NUMBERS = [1, 2, 0]


@pytest.fixture(scope="module")
def frames():
    """Generated clips of 10, 11 and 12 frames, uint8 (T, 64, 64, 3)."""
    return [render(sample_spec(np.random.default_rng(number), "grow"))[: 10 + number] for number in range(3)]


@pytest.fixture
def webm(tmp_path, make_video, frames):
    """Writes the three videos as VP8 in WebM into a folder under tmp_path."""

    def write(folder=".", suffix=".webm", ids=IDS):
        for number, name in enumerate(ids):
            codec, clip = {".webm": "libvpx", ".mp4": "libx264"}[suffix], frames[number]
            make_video(
                tmp_path / folder / f"{name}{suffix}",
                len(clip),
                width=64,
                height=64,
                codec=codec,
                frame_at=clip.__getitem__,
            )
        return tmp_path

    return write


def annotate(root, train=TRAIN, val=TRAIN, labels=LABELS):
    for name, content in (("train", train), ("validation", val), ("labels", labels)):
        if content is not None:
            root.mkdir(exist_ok=True)
            (root / f"{name}.json").write_text(json.dumps(content))
    return root


def data_of(root, **arguments):
    return SomethingSomethingV2(root, **{"num_classes": 3, "num_workers": 0, "batch_size": 3} | FORMAT | arguments)


def listing(data, split="train"):
    return [(sample.path.removeprefix(f"{data.root}/"), sample.label) for sample in data.listing(split)]


def error(root, stage="fit", **arguments):
    with pytest.raises(DataError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data_of(root, **arguments).setup(stage)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    return str(caught.value)


@pytest.mark.parametrize("folder", [".", "videos", "20bn-something-something-v2", "mine"])
def test_official_annotations(webm, folder):
    root = annotate(webm(folder))
    data = data_of(root, videos="mine" if folder == "mine" else None)
    assert data.class_names == sorted(LABELS, key=lambda name: int(LABELS[name]))
    wanted = [(f"{folder}/{name}.webm".removeprefix("./"), number) for name, number in zip(IDS, NUMBERS, strict=True)]
    assert listing(data) == listing(data, "val") == listing(data, "test") == wanted


def test_batches_have_the_protocol_of_the_data_set(webm):
    """Two test clips: segment starts and segment middles; no flips in training."""
    data = data_of(annotate(webm()), repeats=2, crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    data.setup()
    batch = next(iter(data.test_dataloader()))
    assert batch["video"].shape == (1, 6, 3, 4, 32, 32) and batch["label"].tolist() == [1]
    views = load_views(f"{data.root}/78687.webm", **FORMAT, sampling="ssv2", num_clips=2, num_crops=3)
    assert torch.equal(batch["video"][0], views.video)
    tick = np.arange(4) * 10 / 4  # n = 10 frames, T = 4
    assert views.indices.tolist() == [tick.astype(int).tolist(), (tick + 10 / 8).astype(int).tolist()]
    assert data.horizontal_flip == 0
    train = next(iter(data.train_dataloader()))  # the crop is the whole frame, so that only a flip could differ
    assert train["video"].shape == (6, 3, 4, 32, 32)
    for left, right in (train["video"][i : i + 2] for i in (0, 2, 4)):
        assert torch.equal(left, right)


def test_labels_folder_and_mp4(webm):
    root = webm("videos", ".mp4")
    annotate(root / "labels")
    assert listing(data_of(root)) == [(f"videos/{i}.mp4", n) for i, n in zip(IDS, NUMBERS, strict=True)]


def test_the_folder_with_most_videos_is_taken(webm, make_video):
    root = annotate(webm("videos"))
    make_video(root / "78687.webm", 2, codec="libvpx")
    assert [path for path, _ in listing(data_of(root))] == [f"videos/{name}.webm" for name in IDS]


def test_names_of_the_first_release(webm):
    root = annotate(webm("20bn-something-something-v2"))
    for name in ("train", "validation", "labels"):
        (root / f"{name}.json").rename(root / f"something-something-v2-{name}.json")
    (root / "something-something-v2-test.json").write_text('[{"id": "1"}]')  # without labels, so not of use here
    data = data_of(root)
    assert data.class_names[1] == "Attaching something to something"
    wanted = [(f"20bn-something-something-v2/{i}.webm", n) for i, n in zip(IDS, NUMBERS, strict=True)]
    assert listing(data) == listing(data, "val") == listing(data, "test") == wanted
    data.setup()


@pytest.mark.parametrize("row", ["{}.webm {}", "{}.webm,{}"])
def test_list_of_videos(webm, row):
    root = webm("videos")
    for split in ("train", "val"):
        rows = [row.format(*pair) for pair in zip(IDS, NUMBERS, strict=True)]
        (root / f"{split}.csv").write_text("\n".join(rows) + "\n")
    data = data_of(root)
    assert data.class_names is None and data.num_classes == 3
    assert listing(data) == [(f"videos/{i}.webm", n) for i, n in zip(IDS, NUMBERS, strict=True)]
    annotate(root, train=None, val=None)
    assert data_of(root).class_names[2] == "Bending something so that it deforms"
    assert listing(data_of(root, train="videos/../train.csv"))[0] == ("videos/78687.webm", 1)


@pytest.mark.parametrize("row", ["{} {} {}", "{},{},{}", "{} {} 17 {}"])
def test_list_of_frame_folders(tmp_path, frames, row):
    for name, clip in zip(IDS, frames, strict=True):
        (tmp_path / "frames" / name).mkdir(parents=True)
        for number, frame in enumerate(clip, start=1):
            image = torch.from_numpy(frame).permute(2, 0, 1).contiguous()
            write_jpeg(image, str(tmp_path / "frames" / name / f"img_{number:05d}.jpg"), quality=95)
    rows = [row.format(i, len(f), n) for i, f, n in zip(IDS, frames, NUMBERS, strict=True)]
    for split in ("train", "val"):
        (tmp_path / f"{split}.txt").write_text("\n".join(rows) + "\n")
    data = data_of(tmp_path, image_size=64, short_side=64)
    assert listing(data) == [(f"frames/{i}", n) for i, n in zip(IDS, NUMBERS, strict=True)]
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    assert batch["label"].tolist() == NUMBERS
    for video, clip in zip(batch["video"], frames, strict=True):
        middles = (np.arange(4) * len(clip) / 4 + len(clip) / 8).astype(int)
        wanted = torch.from_numpy(clip[middles]).permute(3, 0, 1, 2).float()
        assert (video.float() - wanted).abs().mean() < 4  # what JPEG changes
        others = torch.from_numpy(clip[middles - 1]).permute(3, 0, 1, 2).float()
        assert (video.float() - wanted).abs().mean() < (video.float() - others).abs().mean()


def test_missing_annotations(tmp_path):
    text = error(tmp_path / "nowhere")
    for part in (
        "lacks the train annotations",
        "train.json or something-something-v2-train.json or train.csv",
        "data.train",
        "https://",
    ):
        assert part in text
    annotate(tmp_path, labels=None)
    assert f"{tmp_path} has {tmp_path}/train.json without labels.json, which numbers the classes" in error(tmp_path)
    annotate(tmp_path)
    (tmp_path / "validation.json").unlink()
    assert "lacks the val annotations" in error(tmp_path) and "validation.json or something-" in error(tmp_path)
    assert "has mine.json;" in error(tmp_path, val="mine.json")


def test_wrong_annotations(tmp_path):
    assert "labels.json has 3 classes, but num_classes is 174" in error(annotate(tmp_path), num_classes=174)
    other = [{"id": str(number), "template": f"Doing [something] {number}"} for number in range(5)]
    text = error(annotate(tmp_path, train=[*TRAIN, *other]))
    assert "5 of the 8 entries" in text and "'Doing [something] 0' of video 0, " in text and "and 2 more;" in text
    text = error(annotate(tmp_path, val=[{"id": "1420"}]))
    assert "validation.json has an entry without id or template, as the test list" in text
    assert "does not number its 2 classes from 0 on" in error(annotate(tmp_path, labels={"a": "0", "b": "2"}))
    assert "is not an object of templates and numbers" in error(annotate(tmp_path, labels={"a": "x"}))
    assert "labels.json is not a JSON object with entries" in error(annotate(tmp_path, labels=["a"]))
    (tmp_path / "labels.json").write_text('{"a": "0",')
    assert "labels.json is not JSON (line 1" in error(tmp_path)


def test_missing_videos(webm):
    root = annotate(webm(ids=IDS[:2]))
    with pytest.warns(UserWarning, match=f"1 of the 3 train videos do not exist: {root}/100002.webm"):
        data_of(root).setup("fit")
    (root / "78687.webm").unlink()
    assert "2 of 3 videos cannot be read" in error(root)


def test_list_with_a_name_for_a_label(tmp_path):
    (tmp_path / "train.csv").write_text("1.webm 0\n2.webm Attaching\n")
    assert "train.csv, line 2: label 'Attaching' is not a number" in error(tmp_path)
