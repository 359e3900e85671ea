import json
import shutil

import pytest

from datamodules.didemo import DiDeMo
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
IDS = ["26292851@N04_4253489686_265c3c8051.m4v", "12090392@N02_13482799053_87ef417396.mov", "1@N00_2_3.3gp",
       "4@N00_5_6.avi"]  # fmt: skip


def moment(video, description, number):
    return {"num_segments": 6, "description": description, "dl_link": "https://www.flickr.com/x", "video": video,
            "times": [[0, 1], [0, 1], [4, 4]], "annotation_id": number}  # fmt: skip


@pytest.fixture
def root(captioned_clips, tmp_path):
    """Files named in each way that is met: <id>.mp4, the id with another suffix, <id>, and no file."""
    names = [f"{IDS[0]}.mp4", IDS[1].replace(".mov", ".mp4"), IDS[2]]
    for name, (path, _) in zip(names, captioned_clips, strict=False):
        shutil.copy(path, tmp_path / name)
    moments = [moment(IDS[k % 3], f" {captioned_clips[k % 3][1][k // 3]}", k) for k in range(9)]
    moments.insert(4, moment(IDS[3], "left out of the list", 99))
    (tmp_path / "train_data.json").write_text(json.dumps(moments))
    (tmp_path / "train_list.txt").write_text(f"{IDS[2].removesuffix('.3gp')}\n{IDS[0]}\n{IDS[1]}\n")
    (tmp_path / "val_data.json").write_text(json.dumps([moment(IDS[3], "a", 1), moment(IDS[1], "b", 2)]))
    (tmp_path / "test_data.json").write_text(json.dumps([moment(IDS[1], "b", 2), moment(IDS[1], "c", 3)]))
    (tmp_path / "test_list.txt").write_text(f"{IDS[1]}\n")
    return tmp_path


def test_paragraphs(root, captioned_clips):
    data = DiDeMo(root, **FORMAT)
    assert [tuple(video) for video in data.listing("train")] == [
        (f"{root}/{IDS[2]}", (" ".join(captioned_clips[2][1]),), (0.0, 31.0)),
        (f"{root}/{IDS[0]}.mp4", (" ".join(captioned_clips[0][1]),), (0.0, 31.0)),
        (f"{root}/{IDS[1][:-4]}.mp4", (" ".join(captioned_clips[1][1]),), (0.0, 31.0)),
    ]
    assert (
        [tuple(video)[:2] for video in data.listing("val")]
        == [  # without a list: all
            (f"{root}/{IDS[3]}", ("a",)),
            (f"{root}/{IDS[1][:-4]}.mp4", ("b",)),
        ]
    )
    assert [video.captions for video in data.listing("test")] == [("b c",)]


def test_only_the_beginning_counts(root, captioned_clips):
    data = DiDeMo(root, seconds=1.2, num_workers=0, batch_size=3, **FORMAT)
    with pytest.warns(UserWarning, match="are trained on too|do not exist"):
        data.setup("fit")
    (batch,) = data.train_dataloader()
    k = batch["video_index"].tolist().index(1)
    frames = load_views(captioned_clips[0][0], **FORMAT | {"num_frames": 8, "sampling": "ssv2"}).video[0]
    # Frames 0 .. 4 of four a second lie before 1.2 s; the middles of three intervals between them.
    assert (batch["video"][k] == frames[:, [0, 1, 3]]).all()


def test_whole_video_by_default(root, captioned_clips):
    data = DiDeMo(root, num_workers=0, **FORMAT)
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert (batch["video"][0] == load_views(captioned_clips[1][0], **FORMAT).video[0]).all()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train_data.json", None, "There is no train_data.json, annotations of DiDeMo"),
        ("val_data.json", [{"video": "a.mp4", "caption": "x"}], "val_data.json has an entry without description"),
        ("val_data.json", {"a": 1}, "val_data.json is not a JSON list with entries"),
        (
            "train_list.txt",
            "7@N00_8_9\n",
            "1 of the 1 videos of {root}/train_list.txt have no caption in {root}/train_data",
        ),
    ],
)
def test_wrong_annotations(root, name, content, message):
    (root / name).unlink()
    if content is not None:
        (root / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError) as caught:
        DiDeMo(root, **FORMAT).setup("fit")
    assert message.replace("{root}", str(root)) in str(caught.value)


def test_bad_seconds(root):
    with pytest.raises(DataError, match="seconds is 0; it has to be above 0"):
        DiDeMo(root, seconds=0)
