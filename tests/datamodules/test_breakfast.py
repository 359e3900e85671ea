import shutil
import warnings
from collections import Counter

import numpy as np
import pytest
import torch

from datamodules.base import DataError
from datamodules.breakfast import Breakfast
from datamodules.synthetic.motion import render, sample_spec
from datamodules.synthetic.writing import write_video
from datamodules.video.views import load_views

FORMAT = {"num_frames": 4, "image_size": 32, "short_side": 32, "sampling": "sparse", "frame_stride": 2,
          "interpolation": "bilinear"}  # fmt: skip
NUMBERS = {"cereals": 0, "coffee": 1, "tea": 2, "pancake": 3, "friedegg": 4, "scrambledegg": 5, "sandwich": 6,
           "juice": 7, "milk": 8, "salat": 9}  # fmt: skip
TRAIN = ["P03/cam01/P03_cereals.avi", "P03/stereo/P03_cereals_ch0.avi", "P46/webcam02/P46_salat.avi"]
TEST = ["P47/cam01/P47_tea.avi", "P47/stereo/P47_tea_ch0.avi", "P54/cam02/P54_milk.avi"]
OTHERS = ["P03/stereo/P03_cereals_ch1.avi", "P47/stereo/P47_tea_ch1.avi", "P54/cam02/P54_milk.avi.labels"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("breakfast") / "clip.mp4"
    write_video(path, render(sample_spec(np.random.default_rng(0), "grow"))[:12], 15)
    return path


def place(clip, root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, root / path)
    return root


def data_of(root, **arguments):
    return Breakfast(root, **{"num_workers": 0, "batch_size": 3} | FORMAT | arguments)


def listing(data, split="train"):
    return [(sample.path.removeprefix(f"{data.root}/"), sample.label) for sample in data.listing(split)]


def labelled(paths, folder=""):
    return [(folder + path, NUMBERS[path.split("/")[2].split("_")[1].removesuffix(".avi")]) for path in paths]


def error(root, stage="fit", **arguments):
    with pytest.raises(DataError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data_of(root, **arguments).setup(stage)
    assert "\n" not in str(caught.value) and str(caught.value).endswith((".", "breakfast-actions-dataset."))
    return str(caught.value)


@pytest.mark.parametrize("folder", ["", "BreakfastII_15fps_qvga_sync/"])
def test_original_folders(clip, tmp_path, folder):
    root = place(clip, tmp_path, *(folder + path for path in (*TRAIN, *TEST, *OTHERS)))
    data = data_of(root)
    assert data.class_names == list(NUMBERS) and data.num_classes == 10
    assert listing(data) == labelled(TRAIN, folder)
    assert listing(data, "val") == listing(data, "test") == labelled(TEST, folder)


def test_batches(clip, tmp_path):
    data = data_of(place(clip, tmp_path, *TRAIN, *TEST), num_clips=2, batch_size=18)
    data.setup()
    batch = next(iter(data.test_dataloader()))
    assert batch["label"].tolist() == [2, 2, 8] and batch["index"].tolist() == [0, 1, 2]
    assert torch.equal(batch["video"][1], load_views(clip, **FORMAT, num_clips=2, num_crops=3).video)
    assert sorted(next(iter(data.train_dataloader()))["label"].tolist()) == [0, 0, 9]


def test_list_of_vis4mer(clip, tmp_path):
    root = place(clip, tmp_path, *("BreakfastII_15fps_qvga_sync/" + path for path in (*TRAIN, *TEST)))
    for name, paths in (("train", TRAIN), ("test", TEST)):
        rows = ["file_name,duration,action,class_id"]
        for path in paths:
            action = path.split("/")[2].split("_")[1].removesuffix(".avi")
            rows.append(f"{path.removesuffix('.avi').replace('/', '-')},56,{action},{NUMBERS[action]}")
        (root / f"{name}.csv").write_text("\n".join(rows) + "\n")
    data = data_of(root)
    assert listing(data) == labelled(TRAIN, "BreakfastII_15fps_qvga_sync/")
    assert listing(data, "val") == listing(data, "test") == labelled(TEST, "BreakfastII_15fps_qvga_sync/")


def test_list_of_paths_and_numbers(clip, tmp_path):
    root = place(clip, tmp_path, *TRAIN, *TEST)
    for name, paths in (("train", TRAIN[:2]), ("val", TEST[:1]), ("test", TEST[1:])):
        (root / f"{name}.csv").write_text("".join(f"{path},{number}\n" for path, number in labelled(paths)))
    data = data_of(root)
    for split, paths in (("train", TRAIN[:2]), ("val", TEST[:1]), ("test", TEST[1:])):
        assert listing(data, split) == labelled(paths)


def test_the_published_test_counts_file_names_and_not_cameras(tmp_path):
    """80 recordings of 8 persons, 56 of them with a stereo camera too: 192 names, of which accuracies are multiples."""
    recordings = [(f"P{person}", activity) for person in range(47, 55) for activity in NUMBERS]
    files = [f"{person}/{camera}/{person}_{activity}.avi" for person, activity in recordings
             for camera in ("cam01", "cam02", "webcam01")]  # fmt: skip
    files += [f"{person}/stereo/{person}_{activity}_ch{channel}.avi" for person, activity in recordings[:56]
              for channel in (0, 1)]  # fmt: skip
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    counted = data_of(tmp_path, published_test=True).listing("test")
    names = Counter(sample.path.rpartition("/")[2] for sample in counted)
    assert len(counted) == 192 and set(names.values()) == {1}
    assert {sample.path.split("/")[-2] for sample in counted} == {"cam01", "stereo"}
    data = data_of(tmp_path, published_test=True)
    assert len(data.listing("val")) == len(data_of(tmp_path).listing("test")) == 3 * 80 + 56
    published = {94.3, 95.3, 97.4, 94.8, 95.8, 97.9, 96.9}  # top-1 of the released weights
    assert published <= {round(100 * right / 192, 1) for right in range(193)}


def test_missing_annotation_and_videos(clip, tmp_path):
    text = error(tmp_path / "nowhere")
    assert "nowhere has no Breakfast train split: there is neither the list" in text and "of P03 to P46;" in text
    place(clip, tmp_path, *TRAIN)
    assert "no Breakfast val split" in error(tmp_path) and "P47 to P54" in error(tmp_path)
    (tmp_path / "train.csv").write_text(f"{TRAIN[0]},0\n")
    assert f"for the val split there is no {tmp_path}/val.csv nor {tmp_path}/test.csv; write" in error(tmp_path)
    (tmp_path / "test.csv").write_text("P47/cam01/P47_tea.avi,2\n")
    assert "1 of 1 videos do not exist, and neither does the folder" in error(tmp_path)


def test_wrong_names_and_rows(clip, tmp_path):
    place(clip, tmp_path, *TRAIN, "P04/cam01/P04_toast.avi", *TEST)
    text = error(tmp_path)
    assert "1 videos are not called <person>_<activity>" in text and "P04/cam01/P04_toast.avi; rename" in text
    (tmp_path / "train.csv").write_text("file_name,duration,action,class_id\nP03_cereals,56,cereals,0\n")
    assert "train.csv, line 2: file_name 'P03_cereals' is not <person>-<camera>-<file>" in error(tmp_path, "fit")
    (tmp_path / "train.csv").write_text(f"{TRAIN[0]},0\n{TRAIN[1]},cereals\n")
    assert "train.csv, line 2: label 'cereals' is not a number" in error(tmp_path)
    (tmp_path / "train.csv").write_text(f"{TRAIN[0]},10\n")
    (tmp_path / "test.csv").write_text(f"{TEST[0]},1\n")
    assert "outside 0 .. 9" in error(tmp_path)
