import json
import shutil
import warnings

import numpy as np
import pytest
import torch

from datamodules.base import DataError
from datamodules.coin import COIN
from datamodules.synthetic.motion import render, sample_spec
from datamodules.synthetic.writing import write_video
from datamodules.video.views import load_views

FORMAT = {"num_frames": 4, "image_size": 32, "short_side": 32, "sampling": "sparse", "frame_stride": 2,
          "interpolation": "bilinear"}  # fmt: skip
VIDEOS = {  # id -> task, number, subset; ids may begin with a hyphen
    "LtRSn-ntcLY": ("ReplaceCDDriveWithSSD", 1, "training"),
    "-abcdefghij": ("ChangeCarTire", 0, "training"),
    "zyxwvutsr_0": ("ChangeCarTire", 0, "testing"),
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("coin") / "clip.mp4"
    write_video(path, render(sample_spec(np.random.default_rng(0), "shrink"))[:12], 15)
    return path


def entry(name, number, subset):
    return {"duration": 131.03, "class": name, "video_url": "https://www.youtube.com/embed/x", "start": 56.6,
            "annotation": [{"id": "212", "segment": [60.0, 69.0], "label": "take out the laptop CD drive"}],
            "subset": subset, "end": 85.7, "recipe_type": number}  # fmt: skip


def annotate(root, videos=VIDEOS, folder="."):
    (root / folder).mkdir(parents=True, exist_ok=True)
    database = {video: entry(*facts) for video, facts in videos.items()}
    (root / folder / "COIN.json").write_text(json.dumps({"database": database}))
    return root


def place(clip, root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, root / path)
    return root


def data_of(root, **arguments):
    return COIN(root, **{"num_classes": 2, "num_workers": 0, "batch_size": 2} | FORMAT | arguments)


def listing(data, split="train"):
    return [(sample.path.removeprefix(f"{data.root}/"), sample.label) for sample in data.listing(split)]


def error(root, stage="fit", **arguments):
    with pytest.raises(DataError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data_of(root, **arguments).setup(stage)
    assert "\n" not in str(caught.value) and str(caught.value).endswith((".", "annotations."))
    return str(caught.value)


@pytest.mark.parametrize("pattern", ["videos/{number}/{video}.mp4", "{video}.mp4", "videos/{video}.mkv"])
def test_official_annotations(clip, tmp_path, pattern):
    paths = {video: pattern.format(video=video, number=number) for video, (_, number, _) in VIDEOS.items()}
    data = data_of(annotate(place(clip, tmp_path, *paths.values()), folder="annotations"))
    assert data.class_names == ["ChangeCarTire", "ReplaceCDDriveWithSSD"]
    assert listing(data) == [(paths["LtRSn-ntcLY"], 1), (paths["-abcdefghij"], 0)]
    assert listing(data, "val") == listing(data, "test") == [(paths["zyxwvutsr_0"], 0)]
    data.setup()
    batch = next(iter(data.test_dataloader()))
    assert batch["label"].tolist() == [0]
    assert torch.equal(batch["video"][0], load_views(clip, **FORMAT, num_clips=4, num_crops=3).video)


def test_subset_may_be_called_validation_as_described(clip, tmp_path):
    videos = {video: (name, number, subset.replace("testing", "validation")) for video, (name, number, subset) in
              VIDEOS.items()}  # fmt: skip
    assert listing(data_of(annotate(place(clip, tmp_path, "zyxwvutsr_0.mp4"), videos)), "test") == [
        ("zyxwvutsr_0.mp4", 0)
    ]


def test_lists_of_paths_and_numbers(clip, tmp_path):
    root = place(clip, tmp_path, "videos/1/LtRSn-ntcLY.mp4", "videos/0/zyxwvutsr_0.mp4")
    (root / "train.csv").write_text("videos/1/LtRSn-ntcLY.mp4,1\n")
    (root / "test.csv").write_text("videos/0/zyxwvutsr_0.mp4,0\n")
    data = data_of(root)
    assert data.class_names is None and data.num_classes == 2
    assert listing(data) == [("videos/1/LtRSn-ntcLY.mp4", 1)]
    assert listing(data, "val") == listing(data, "test") == [("videos/0/zyxwvutsr_0.mp4", 0)]
    assert data_of(annotate(root)).class_names == ["ChangeCarTire", "ReplaceCDDriveWithSSD"]


def test_missing_annotation_and_videos(clip, tmp_path):
    text = error(tmp_path / "nowhere")
    assert "nowhere has no annotations of COIN: there is neither COIN.json" in text and "nor the list train.csv" in text
    annotate(tmp_path)
    text = error(tmp_path)
    assert f"None of the 2 train videos of COIN is in {tmp_path}" in text and "data.videos" in text
    place(clip, tmp_path, "videos/LtRSn-ntcLY.mp4", "videos/zyxwvutsr_0.mp4")
    with pytest.warns(UserWarning, match=f"1 of the 2 train videos do not exist: {tmp_path}/videos/-abcdefghij.mp4"):
        data_of(tmp_path).setup("fit")
    assert [s.path for s in data_of(tmp_path, check_files=False).listing("test")] == [f"{tmp_path}/zyxwvutsr_0.mp4"]


def test_wrong_annotations(clip, tmp_path):
    place(clip, tmp_path, *(f"{video}.mp4" for video in VIDEOS))
    text = error(annotate(tmp_path), num_classes=180)
    assert "COIN.json has 2 tasks, numbered 0 to 1, but num_classes is 180" in text
    text = error(annotate(tmp_path, {**VIDEOS, "x": ("ChangeTire", 0, "training")}))
    assert "calls recipe_type 0 'ChangeCarTire', and 'ChangeTire' for the video x" in text
    trained = {video: (name, number, "training") for video, (name, number, _) in VIDEOS.items()}
    assert "no video for the val split: no subset is testing or validation" in error(annotate(tmp_path, trained))
    assert "without recipe_type" in error(annotate(tmp_path, {"LtRSn-ntcLY": ("A", "0", "training")}))
    (tmp_path / "COIN.json").write_text('{"videos": {}}')
    assert "has no key database" in error(tmp_path)
