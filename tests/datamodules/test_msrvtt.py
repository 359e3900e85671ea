import csv
import json
import shutil

import pytest

from datamodules.errors import DataError
from datamodules.msrvtt import MSRVTT
from datamodules.video.views import load_views

FORMAT = {
    "num_frames": 3,
    "image_size": 32,
    "short_side": 32,
    "sampling": "sparse",
    "frame_stride": 2,
    "interpolation": "bicubic",
}
SPLITS = ["train", "train", "train", "validate", "test", "test"]
TRAIN_9K, TRAIN_7K = "video_id\nvideo2\nvideo0\nvideo3\nvideo1\n", "video_id\nvideo1\nvideo0\n"
TEST = """key,vid_key,video_id,sentence
ret0,msr5,video5,a person is connecting something to system
ret1,msr4,video4,"a second, longer sentence"
"""


@pytest.fixture
def root(captioned_clips, tmp_path):
    """Six videos with three captions each, whose sentences stand mixed up in the JSON."""
    (tmp_path / "videos").mkdir()
    sentences = []
    for number, (path, captions) in enumerate(captioned_clips[:6]):
        shutil.copy(path, tmp_path / "videos" / f"video{number}.mp4")
        for k, caption in enumerate(captions):
            sentences.append({"caption": caption, "video_id": f"video{number}", "sen_id": 3 * number + k})
    sentences = sentences[::2] + sentences[1::2]
    videos = [{"category": 9, "url": "https://www.youtube.com/watch?v=XXXXXXXXXXX", "video_id": f"video{number}",
               "start time": 1.5, "end time": 12.0, "split": split, "id": number}
              for number, split in enumerate(SPLITS)]  # fmt: skip
    content = {"info": {"year": "2016"}, "videos": videos, "sentences": sentences}
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps(content))
    (tmp_path / "MSRVTT_train.9k.csv").write_text(TRAIN_9K)
    (tmp_path / "MSRVTT_train.7k.csv").write_text(TRAIN_7K)
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text(TEST)
    return tmp_path


def numbers(data, split):
    return [
        int(video.path.removeprefix(f"{data.root}/videos/video").removesuffix(".mp4")) for video in data.listing(split)
    ]


def told(root, number):
    """Captions of a video, by another way through the JSON."""
    content = json.loads((root / "MSRVTT_data.json").read_text())
    return tuple(line["caption"] for line in content["sentences"] if line["video_id"] == f"video{number}")


@pytest.mark.parametrize(
    ("subset", "train", "val", "test"),
    [("9k", [2, 0, 3, 1], [5, 4], [5, 4]), ("7k", [1, 0], [5, 4], [5, 4]), ("full", [0, 1, 2], [3], [4, 5])],
)
def test_subsets(root, captioned_clips, subset, train, val, test):
    data = MSRVTT(root, subset=subset, batch_size=2, num_workers=0, **FORMAT)
    data.setup()
    assert [numbers(data, split) for split in ("train", "val", "test")] == [train, val, test]
    for number, video in zip(train, data.datasets["train"].videos, strict=True):
        assert video.captions == told(root, number) and set(video.captions) == set(captioned_clips[number][1])
        assert video.span is None
    assert len(data.datasets["train"]) == 3 * len(train)
    (batch,) = data.test_dataloader()
    if subset == "full":
        assert batch["text"] == [list(told(root, number)) for number in test]
    else:
        rows = list(csv.DictReader(TEST.splitlines()))
        assert batch["text"] == [[row["sentence"]] for row in rows]
        assert batch["path"] == [f"{root}/videos/{row['video_id']}.mp4" for row in rows]
    for video, number in zip(batch["video"], test, strict=True):
        assert (video == load_views(captioned_clips[number][0], **FORMAT).video[0]).all()


def test_annotations_in_a_folder_and_lists_of_other_projects(root):
    (root / "annotations").mkdir()
    for name in ("MSRVTT_data.json", "MSRVTT_train.9k.csv"):
        shutil.move(root / name, root / "annotations" / name)
    lists = [{"video": "video3.mp4", "caption": "one"}, {"video": "video3.mp4", "caption": "two"}]
    (root / "msrvtt_ret_test1k.json").write_text(json.dumps(lists))
    (root / "val.json").write_text(json.dumps({"video1.mp4": ["one", "two"], "video0.mp4": ["three"]}))
    data = MSRVTT(root, test="msrvtt_ret_test1k.json", val="val.json", **FORMAT)
    assert [numbers(data, split) for split in ("train", "val", "test")] == [[2, 0, 3, 1], [1, 0], [3]]
    assert data.listing("test")[0].captions == ("one", "two")


@pytest.mark.parametrize("named", [False, True])
def test_the_two_usual_zips(root, named):
    """`msrvtt_data/` with the annotations and `MSRVTT/videos/all` with the videos, or annotations elsewhere."""
    (root / "MSRVTT").mkdir()
    (root / "MSRVTT" / "videos").mkdir()
    (root / "videos").rename(root / "MSRVTT" / "videos" / "all")
    folder = root / ("elsewhere" if named else "msrvtt_data")
    folder.mkdir()
    for file in root.glob("MSRVTT_*.*"):
        file.rename(folder / file.name)
    data = MSRVTT(root, annotations="elsewhere" if named else None, num_workers=0, **FORMAT)
    data.setup()
    assert [video.path for video in data.listing("test")] == [
        f"{root}/MSRVTT/videos/all/video{number}.mp4" for number in (5, 4)]  # fmt: skip
    assert data.origins["train"] == str(folder / "MSRVTT_train.9k.csv")
    with pytest.raises(DataError, match=r"There is no MSRVTT_JSFUSION_test\.csv, .* in .*/gone;"):
        MSRVTT(root, annotations="gone", **FORMAT).listing("test")


def test_one_caption_per_video(root):
    data = MSRVTT(root, every_caption=False, batch_size=4, num_workers=0, **FORMAT)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert sorted(batch["video_index"].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("MSRVTT_data.json", None, "There is no MSRVTT_data.json, annotations of MSR-VTT, in {root} or"),
        ("MSRVTT_train.9k.csv", None, "There is no MSRVTT_train.9k.csv"),
        ("MSRVTT_JSFUSION_test.csv", None, "or get the file from https://github.com/ArrowLuo/CLIP4Clip#data-preparing."),
        ("MSRVTT_data.json", {"videos": []}, "MSRVTT_data.json has no key sentences (it has videos)"),
        ("MSRVTT_data.json", {"videos": [], "sentences": [{"caption": "x", "id": 1}]}, "has an entry without video_id"),
        ("MSRVTT_data.json", {"videos": [], "sentences": [{"caption": "x", "video_id": "video0"}]},
         "3 of the 4 videos of {root}/MSRVTT_train.9k.csv have no caption in {root}/MSRVTT_data.json: video2, "
         "video3, video1; take both files"),
        ("MSRVTT_train.9k.csv", "video0\nvideo1\n", "has no column video_id (its first row is 'video0')"),
        ("MSRVTT_JSFUSION_test.csv", "key,video_id,caption\n1,video4,x\n", "has no column sentence"),
        ("MSRVTT_JSFUSION_test.csv", TEST + "ret2,msr0,video3,\n", "line 4: video_id or sentence is missing"),
    ],
)  # fmt: skip
def test_wrong_annotations(root, name, content, message):
    (root / name).unlink()
    if content is not None:
        (root / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError) as caught:
        MSRVTT(root, **FORMAT).setup()
    text = str(caught.value)
    assert message.replace("{root}", str(root)) in text and "\n" not in text and text.endswith(".")


def test_wrong_splits(root):
    content = json.loads((root / "MSRVTT_data.json").read_text())
    content["videos"] = [video for video in content["videos"] if video["split"] != "validate"]
    (root / "MSRVTT_data.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="has no video of the split 'validate'"):
        MSRVTT(root, subset="full", **FORMAT).setup()
    del content["videos"][0]["split"]
    (root / "MSRVTT_data.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="has an entry without split"):
        MSRVTT(root, subset="full", **FORMAT).setup()
    with pytest.raises(DataError, match="subset is '1k'; it has to be one of 9k, 7k, full"):
        MSRVTT(root, subset="1k")
