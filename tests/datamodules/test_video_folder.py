import shutil

import pytest

from datamodules.base import DataError
from datamodules.video_folder import VideoFolder

FORMAT = {
    "num_frames": 4,
    "image_size": 32,
    "short_side": 32,
    "sampling": "sparse",
    "frame_stride": 2,
    "interpolation": "bilinear",
}


def names(samples, root):
    return [(sample.path.removeprefix(f"{root}/"), sample.label) for sample in samples]


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_splits(class_root):
    data = VideoFolder(class_root, num_workers=0, batch_size=3, **FORMAT)
    data.setup()
    assert data.class_names == ["left", "right"]
    assert names(data.listing("train"), class_root) == [
        (f"train/{name}/{number}.mp4", label) for label, name in enumerate(["left", "right"]) for number in range(4)
    ]
    assert names(data.listing("val"), class_root) == [
        ("val/left/0.mp4", 0), ("val/left/1.mp4", 0), ("val/right/0.mp4", 1), ("val/right/1.mp4", 1)]  # fmt: skip
    assert data.listing("test") == data.listing("val")
    batch = next(iter(data.train_dataloader()))
    assert batch["video"].shape == (3, 3, 4, 32, 32)
    for path, label in zip(batch["path"], batch["label"].tolist(), strict=True):
        assert data.class_names[label] in path
    assert next(iter(data.test_dataloader()))["video"].shape == (1, 12, 3, 4, 32, 32)


def test_own_test_split_and_files_passed_over(tmp_path):
    touch(tmp_path, "train/a/1.MP4", "train/a/._1.mp4", "train/a/1.txt", "train/a/thumb.jpg", "train/b/2.webm",
          "val/a/3.avi", "val/b/.keep", "test/a/4.mkv", "test/b/5.mp4", "train/.hidden/6.mp4")  # fmt: skip
    data = VideoFolder(tmp_path)
    assert data.class_names == ["a", "b"]
    assert names(data.listing("train"), tmp_path) == [("train/a/1.MP4", 0), ("train/b/2.webm", 1)]
    assert names(data.listing("val"), tmp_path) == [("val/a/3.avi", 0)]
    assert names(data.listing("test"), tmp_path) == [("test/a/4.mkv", 0), ("test/b/5.mp4", 1)]


def test_seeded_split(tmp_path):
    touch(
        tmp_path,
        *(f"{name}/{number:02d}.mp4" for name in "abc" for number in range(20)),
        "d/0.mp4",
        "d/1.mp4",
        "e/0.mp4",
    )
    data = VideoFolder(tmp_path, val_fraction=0.25, split_seed=1)
    train, val = names(data.listing("train"), tmp_path), names(data.listing("val"), tmp_path)
    assert not set(train) & set(val) and len(train) + len(val) == 63
    for label in range(3):
        assert sum(each == label for _, each in val) == 5
    assert sum(label == 3 for _, label in val) == sum(label == 3 for _, label in train) == 1
    assert ("e/0.mp4", 4) in train  # a single video trains
    assert names(VideoFolder(tmp_path, val_fraction=0.25, split_seed=1).listing("val"), tmp_path) == val
    assert names(VideoFolder(tmp_path, val_fraction=0.25, split_seed=2).listing("val"), tmp_path) != val
    assert data.listing("test") == data.listing("val")


def error(root, split="fit", **arguments):
    with pytest.raises(DataError) as caught:
        VideoFolder(root, **arguments, **FORMAT).setup(split)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    return text


def test_missing_root(tmp_path):
    assert error(tmp_path / "none") == f"{tmp_path / 'none'} is not a folder; check data.root."
    (tmp_path / "file").touch()
    assert "is not a folder" in error(tmp_path / "file")


def test_no_classes(tmp_path):
    assert f"{tmp_path} has no class folders" in error(tmp_path)
    (tmp_path / "train").mkdir()
    assert f"{tmp_path / 'train'} has no class folders" in error(tmp_path)


def test_no_videos(tmp_path):
    touch(tmp_path, "train/a/1.txt", "val/a/1.mp4")
    text = error(tmp_path)
    assert f"{tmp_path / 'train'} has no videos for train" in text and ".mp4" in text
    touch(tmp_path, "flat/a/1.doc")
    assert "has no videos for train" in error(tmp_path / "flat")
    touch(tmp_path, "one/a/1.mp4")
    touch(tmp_path, "one/b/1.mp4")
    assert "No class of" in (text := error(tmp_path / "one")) and "has a second video to set aside" in text


def test_splits_with_other_classes(class_root, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(class_root, root)
    (root / "val" / "left").rename(root / "val" / "lefft")
    text = error(root)
    assert f"{root / 'val'} lacks left and has the additional lefft" in text and str(root / "train") in text
    shutil.rmtree(root / "val")
    assert f"{root / 'val'} is missing beside {root / 'train'}" in error(root)
    touch(root, "test/left/1.mp4")
    assert f"{root / 'test'} lacks right" in error(root, "test")


def test_bad_fraction(tmp_path):
    assert "val_fraction is 1.5" in error(tmp_path, val_fraction=1.5)
    assert "split_seed is nan; it has to be a whole number" in error(tmp_path, split_seed=float("nan"))


def test_misspelled_argument(tmp_path):
    with pytest.raises(TypeError, match="num_framse"):
        VideoFolder(tmp_path, num_framse=3)


# Groups ----------------------------------------------------------------------------------------------------------


def films(root, count=12):
    """Pieces of films, each film in two of three classes."""
    return [f"{root}{'abc'[(film + piece) % 2 + (film % 2)]}/film {film}_{piece:03d}.mp4" for film in range(count)
            for piece in range(4)]  # fmt: skip


def test_pieces_of_a_film_stay_on_one_side(tmp_path):
    touch(tmp_path, *films(""))
    arguments = {"group": r"([^/]+)_\d+\.mp4$", "val_fraction": 0.25, "split_seed": 4}
    data = VideoFolder(tmp_path, **arguments)
    parts = {split: names(data.listing(split), tmp_path) for split in ("train", "val")}
    film_of = {split: {path.partition("/")[2].partition("_")[0] for path, _ in part} for split, part in parts.items()}
    assert not film_of["train"] & film_of["val"] and len(film_of["train"] | film_of["val"]) == 12
    assert len(parts["train"]) + len(parts["val"]) == 48 and 8 <= len(parts["val"]) <= 16
    assert {label for _, label in parts["train"]} == {label for _, label in parts["val"]} == {0, 1, 2}
    assert data.listing("test") == data.listing("val")
    again, other = VideoFolder(tmp_path, **arguments), VideoFolder(tmp_path, **arguments | {"split_seed": 5})
    assert names(again.listing("val"), tmp_path) == parts["val"] != names(other.listing("val"), tmp_path)
    alone = VideoFolder(tmp_path, val_fraction=0.25, split_seed=4)  # without groups, films are torn apart
    torn = {path.partition("/")[2].partition("_")[0] for path, _ in names(alone.listing("val"), tmp_path)}
    assert torn & {path.partition("/")[2].partition("_")[0] for path, _ in names(alone.listing("train"), tmp_path)}


def test_groups_of_folders_with_splits(tmp_path):
    touch(
        tmp_path,
        "train/a/x_1.mp4",
        "train/b/y_1.mp4",
        "val/a/z_1.mp4",
        "val/b/z_2.mp4",
        "test/a/x_2.mp4",
        "test/b/w_1.mp4",
    )
    data = VideoFolder(tmp_path, group=r"(\w)_")
    assert len(data.listing("train")) == len(data.listing("val")) == 2
    with pytest.raises(DataError, match=r"1 groups have videos both for training .* in .*/train and "):
        data.listing("test")


def test_mistaken_groups(tmp_path):
    touch(tmp_path, *films(""), "a/interview.mp4")
    assert "group 'nothing(x)' does not fit 49 of the 49 videos: a/film 0_000.mp4, " in error(
        tmp_path, group="nothing(x)"
    )
    assert "does not fit 1 of the 49 videos: a/interview.mp4; change the pattern" in error(tmp_path, group=r"(.*)_")
    assert "All 49 videos are of one group, 'mp4'" in error(tmp_path, group="(mp4)")
    assert "has no capture group" in error(tmp_path, group="film")
    assert "is not a regular expression" in error(tmp_path, group="(")
