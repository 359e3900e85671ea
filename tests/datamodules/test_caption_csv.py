import csv
import json
import warnings

import pytest
import torch

from datamodules.caption_csv import CaptionCSV
from datamodules.errors import DataError
from datamodules.synthetic.writing import generate
from datamodules.video.views import load_views

FORMAT = {
    "num_frames": 3,
    "image_size": 32,
    "short_side": 32,
    "sampling": "sparse",
    "frame_stride": 2,
    "interpolation": "bicubic",
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("demo") / "data", num_train=4, num_val=2, num_test=2, size=(48, 40),
                    num_frames=6, num_workers=0, progress=False)  # fmt: skip


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def test_table_of_the_generator(demo):
    data = CaptionCSV(demo, batch_size=4, num_workers=0, **FORMAT)
    data.setup()
    rows = rows_of(demo / "captions.csv")
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        wanted = {}
        for name, caption in rows:
            if name.startswith(f"{split}/"):
                wanted.setdefault(f"{demo}/{name}", []).append(caption)
        assert {video.path: list(video.captions) for video in data.datasets[split].videos} == wanted
        assert len(wanted) == count and {len(captions) for captions in wanted.values()} == {3}
    pairs = [(f"{demo}/{name}", caption) for name, caption in rows if name.startswith("train/")]
    batches = list(data.train_dataloader())
    assert len(batches) == 3
    for batch in batches:
        for k, index in enumerate(batch["index"].tolist()):
            assert pairs[index] == (batch["path"][k], batch["text"][k])
            assert torch.equal(batch["video"][k], load_views(batch["path"][k], **FORMAT).video[0])


def test_a_share_is_set_aside(demo, tmp_path):
    rows = rows_of(demo / "captions.csv")
    (tmp_path / "mine.csv").write_text("video,caption\n" + "".join(f'{demo}/{path},"{text}"\n' for path, text in rows))
    lists = {}
    for seed in (0, 1):
        data = CaptionCSV(tmp_path, captions="mine.csv", val_fraction=0.3, split_seed=seed, **FORMAT)
        train, val, test = ([video.path for video in data.listing(split)] for split in ("train", "val", "test"))
        assert len(train) == 6 and len(val) == 2 and val == test and not set(train) & set(val)
        assert set(train) | set(val) == {f"{demo}/{path}" for path, _ in rows}
        lists[seed] = val
    assert lists[0] != lists[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.setup()


def test_a_table_for_each_split(demo, tmp_path):
    for split in ("train", "val"):
        rows = [(path.removeprefix(f"{split}/"), text) for path, text in rows_of(demo / "captions.csv")
                if path.startswith(f"{split}/")]  # fmt: skip
        if split == "train":
            (demo / split / "pairs.csv").write_text("".join(f'{p},"{t}"\n' for p, t in [("video", "caption"), *rows]))
        else:
            (tmp_path / "val.json").write_text(json.dumps([{"video": f"val/{path}", "caption": t} for path, t in rows]))
    data = CaptionCSV(demo, train="train/pairs.csv", val=f"{tmp_path}/val.json", **FORMAT)
    data.setup()
    assert {len(video.captions) for split in data.datasets.values() for video in split.videos} == {3}
    assert all(video.path.startswith(f"{demo}/train/") for video in data.datasets["train"].videos)  # beside the table
    assert data.datasets["test"].videos == data.datasets["val"].videos and len(data.datasets["val"]) == 2


def test_videos_elsewhere(demo, tmp_path):
    (tmp_path / "captions.csv").write_text("video,caption\n" + "".join(
        f'{path.removeprefix("train/")},"{text}"\n' for path, text in rows_of(demo / "captions.csv")[:12]))  # fmt: skip
    data = CaptionCSV(tmp_path, videos=str(demo / "train"), **FORMAT)
    data.setup("fit")
    assert [len(data.datasets[split]) for split in ("train", "val")] == [9, 1]


def error(root, stage="fit", **arguments):
    with pytest.raises(DataError) as caught:
        CaptionCSV(root, **arguments, **FORMAT).setup(stage)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    return text


def test_errors(demo, tmp_path):
    assert f"{tmp_path}/captions.csv does not exist; check data.root" in error(tmp_path)
    assert "data.train set, but not data.val; give a table for each split" in error(demo, train="captions.csv")
    assert "val_fraction is 1; it is a share between 0 and 1" in error(demo, val_fraction=1)
    (tmp_path / "captions.csv").write_text("video,caption\nonly.mp4,x\n")
    assert "captions.csv has no videos for val; add some, or give a table for each split" in error(tmp_path)
    (tmp_path / "captions.csv").write_text("video,caption\ntrain/a.mp4,x\ntest/b.mp4,x\n")
    assert "captions.csv has no videos for val" in error(tmp_path)
    (tmp_path / "captions.csv").write_text("video,caption\na.mp4,x\nb.mp4,x\nc.mp4,x\n")
    with pytest.warns(UserWarning, match="2 of the 2 train videos do not exist"):
        assert "2 of 2 videos cannot be read, more than max_unreadable allows (1)" in error(tmp_path)
