import json
import shutil

import pytest

from datamodules.activitynet import ActivityNet
from datamodules.errors import DataError
from datamodules.video.views import load_views

FORMAT = {
    "num_frames": 3,
    "image_size": 32,
    "short_side": 32,
    "sampling": "sparse",
    "frame_stride": 2,
    "interpolation": "bicubic",
}
IDS = ["v_bXdq2zI1Ms0", "v_XXXXXXXXXXX", "v_v_YYYYYYYYY", "v_-ZZZZZZZZZZ"]


def told(duration, *sentences):
    return {"duration": duration, "timestamps": [[0, 6.66]] * len(sentences), "sentences": list(sentences)}


@pytest.fixture
def root(captioned_clips, tmp_path):
    """Files with and without v_, in a folder for each split."""
    for name, (path, _) in zip(["train/bXdq2zI1Ms0.mp4", "train/v_XXXXXXXXXXX.mkv", "val/v_YYYYYYYYY.webm"],
                               captioned_clips, strict=False):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / name)
    train = {IDS[1]: told(1.2, " Two.", "Three. "), IDS[0]: told(73.1, "One."), IDS[3]: told(9, "Not in the list.")}
    (tmp_path / "train.json").write_text(json.dumps(train))
    (tmp_path / "train_ids.json").write_text(json.dumps(IDS[:2]))
    (tmp_path / "val_1.json").write_text(json.dumps({IDS[2]: told(12.5, "Four.", "Five.")}))
    return tmp_path


def test_paragraphs(root):
    data = ActivityNet(root, **FORMAT)
    assert [tuple(video) for video in data.listing("train")] == [
        (f"{root}/train/bXdq2zI1Ms0.mp4", ("One.",), (0.0, 74.0)),
        (f"{root}/train/v_XXXXXXXXXXX.mkv", ("Two. Three.",), (0.0, 2.0)),
    ]
    for split in ("val", "test"):
        assert [tuple(v) for v in data.listing(split)] == [
            (f"{root}/val/v_YYYYYYYYY.webm", ("Four. Five.",), (0.0, 13.0))
        ]


def test_batches(root, captioned_clips):
    data = ActivityNet(root, batch_size=2, num_workers=0, **FORMAT)
    data.setup()
    (batch,) = data.train_dataloader()
    order = batch["video_index"].tolist()
    assert sorted(order) == [0, 1] and [batch["text"][order.index(k)] for k in (0, 1)] == ["One.", "Two. Three."]
    whole = load_views(captioned_clips[0][0], **FORMAT).video[0]
    assert (batch["video"][order.index(0)] == whole).all()
    (batch,) = data.test_dataloader()
    assert batch["text"] == [["Four. Five."]]


def test_ids_without_a_caption_are_left_out(root):
    (root / "train_ids.json").write_text(json.dumps(["v_gone", *IDS[:2]]))
    data = ActivityNet(root, num_workers=0, **FORMAT)
    with pytest.warns(UserWarning, match=r"1 of the 3 videos of .* have no caption in .* left out: v_gone"):
        data.setup("fit")
    assert [video.path for video in data.listing("train")] == [
        f"{root}/train/bXdq2zI1Ms0.mp4", f"{root}/train/v_XXXXXXXXXXX.mkv"]  # fmt: skip
    assert [(row.split, row.videos, list(row.left_out)) for row in data.describe()] == [
        ("train", 2, ["v_gone"]), ("val", 1, [])]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "val_1.json",
            None,
            "There is no val_1.json, annotations of ActivityNet Captions, in {root} or",
        ),
        ("train.json", [1], "train.json is not a JSON object with entries"),
        ("train.json", {IDS[0]: {"duration": 3}}, "train.json has an entry without sentences"),
        ("train.json", {IDS[0]: {"duration": "3", "sentences": ["x"]}}, "train.json has an entry without duration"),
        ("train.json", {IDS[0]: told(float("nan"), "x")}, f"the sentences or the duration of {IDS[0]} are none"),
        ("train.json", {IDS[0]: told(3)}, f"the sentences or the duration of {IDS[0]} are none"),
        ("train_ids.json", ["v_lost", "v_gone"], "2 of the 2 videos of {root}/train_ids.json have no caption in"),
        ("train_ids.json", [[IDS[0]]], "train_ids.json is not a list of ids"),
    ],
)
def test_wrong_annotations(root, name, content, message):
    (root / name).unlink(missing_ok=True)
    if content is not None:
        (root / name).write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        ActivityNet(root, **FORMAT).setup()
    assert message.replace("{root}", str(root)) in str(caught.value)
