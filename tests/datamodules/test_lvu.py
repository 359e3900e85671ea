import math
import shutil
import warnings

import numpy as np
import pytest
import torch

from datamodules.base import DataError
from datamodules.lvu import CLASSES, LVU, VALUES, windows_of
from datamodules.synthetic.motion import render, sample_spec
from datamodules.synthetic.writing import write_video
from datamodules.video.views import load_views

FORMAT = {"num_frames": 4, "image_size": 32, "short_side": 32, "sampling": "sparse", "frame_stride": 2,
          "interpolation": "bilinear"}  # fmt: skip
IDS = ["-e6lEsIUf3U", "29VjYkPPY2s", "gFKba_Esjt0"]
SCENE = """class_id class_name youtube_id imdb_id
0 office -e6lEsIUf3U tt0161100
3 hotel room 29VjYkPPY2s tt0451279
0 office gFKba_Esjt0 tt0138524
"""
LIKES = """like_count dislike_count youtube_id imdb_id
100061 3801 29VjYkPPY2s tt0451279
100638 51273 -e6lEsIUf3U tt0161100
"""
VIEWS = """view_count youtube_id imdb_id
100124 gFKba_Esjt0 tt0138524
1009922 29VjYkPPY2s tt0451279
"""


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Three generated videos of 1 to 2 seconds under their ids."""
    folder = tmp_path_factory.mktemp("films")
    for number, name in enumerate(IDS):
        frames = render(sample_spec(np.random.default_rng(number), ("grow", "move_left", "shrink")[number]))
        write_video(folder / f"{name}.mp4", frames[: 8 + 4 * number], 8)
    return folder


def write(root, task, folder=".", splits=("train", "val", "test"), **text):
    there = root / folder / task
    there.mkdir(parents=True, exist_ok=True)
    for split in splits:
        (there / f"{split}.csv").write_text(
            text.get(split, {"like_ratio": LIKES, "view_count": VIEWS}.get(task, SCENE))
        )
    return root


def place(films, root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(films / path.rpartition("/")[2].replace(".mkv", ".mp4"), root / path)
    return root


def data_of(root, task="scene", **arguments):
    return LVU(root, task=task, **{"num_workers": 0, "batch_size": 3} | FORMAT | arguments)


def error(root, task="scene", stage="fit", **arguments):
    with pytest.raises(DataError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = data_of(root, task, **arguments)
        assert data.class_names is None or data.class_names
        data.setup(stage)
    assert "\n" not in str(caught.value) and str(caught.value).endswith((".", "lvu."))
    return str(caught.value)


# Classes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "pattern"), [(".", "videos/{}.mp4"), ("lvu_1.0", "{}.mp4"), (".", "videos/2011/{}.mkv")]
)
def test_a_task_with_classes(films, tmp_path, folder, pattern):
    root = write(place(films, tmp_path, *(pattern.format(name) for name in IDS)), "scene", folder)
    data = data_of(root)
    assert data.class_names == ["office", "class 1", "class 2", "hotel room", "class 4", "class 5"]
    assert [(film.path, film.answer) for film in data.listing("train")] == [
        (f"{root}/{pattern.format(name)}", label) for name, label in zip(IDS, (0, 3, 0), strict=True)
    ]
    data.setup()
    batch = next(iter(data.val_dataloader()))
    assert batch["label"].tolist() == [0, 3, 0] and batch["label"].dtype == torch.int64
    test = next(iter(data_of_test(data)))
    assert torch.equal(test["video"][0], load_views(films / f"{IDS[0]}.mp4", **FORMAT, num_clips=4, num_crops=3).video)


def data_of_test(data):
    data.setup("test")
    return data.test_dataloader()


def test_numbers_of_classes_are_the_protocols():
    """Reference protocol, section 9."""
    assert CLASSES == {"relationship": 4, "way_speaking": 5, "scene": 6, "director": 10, "genre": 4, "writer": 10,
                       "year": 9}  # fmt: skip
    for task, number in CLASSES.items():
        data = LVU("nowhere", task=task)
        assert (data.num_classes, data.value_name, data.value_mean) == (number, None, None)


def test_names_may_be_unknown_or_have_spaces(films, tmp_path):
    text = "class_id class_name youtube_id imdb_id\n0 \\N -e6lEsIUf3U tt0161100\n1 nm0001220 29VjYkPPY2s tt0451279\n"
    data = data_of(write(place(films, tmp_path, *(f"{name}.mp4" for name in IDS)), "writer", train=text, val=text,
                         test=text), "writer")  # fmt: skip
    assert data.class_names == ["\\N", "nm0001220", *(f"class {number}" for number in range(2, 10))]
    assert [film.answer for film in data.listing("test")] == [0, 1]


# Numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", VALUES)
def test_a_task_with_numbers(films, tmp_path, task):
    root = write(place(films, tmp_path, *(f"videos/{name}.mp4" for name in IDS)), task)
    data = data_of(root, task, random_erasing=0.5, repeats=2)
    expected = {
        "like_ratio": [10 * 100061 / (100061 + 3801), 10 * 100638 / (100638 + 51273)],
        "view_count": [math.log2(100124) * math.log(2), math.log2(1009922) * math.log(2)],
    }[task]
    assert [film.answer for film in data.listing("train")] == pytest.approx(expected, rel=1e-9)
    assert data.class_names is None and data.num_classes is None
    assert data.value_name == {"view_count": "log_view_count"}.get(task, task)
    published = {"like_ratio": 9.138220535629456, "view_count": 11.76425435683139}
    assert data.value_mean == published[task]
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            assert "label" not in batch and batch["value"].dtype == torch.float32
            by_path = dict(zip((f.path for f in data.listing("train")), expected, strict=True))
            assert batch["value"].tolist() == pytest.approx([by_path[path] for path in batch["path"]], rel=1e-6)


def test_lists_of_paths_have_answers_with_the_mean_subtracted(films, tmp_path):
    place(films, tmp_path, *(f"videos/{name}.mp4" for name in IDS))
    rows = "".join(f"videos/{name}.mp4,{answer}\n" for name, answer in zip(IDS, (-1.5, 0, 0.25), strict=True))
    data = data_of(write(tmp_path, "like_ratio", train=rows, val=rows, test=rows), "like_ratio")
    expected = [answer + 9.138220535629456 for answer in (-1.5, 0, 0.25)]
    assert [film.answer for film in data.listing("train")] == pytest.approx(expected)
    rows = "".join(f"videos/{name}.mp4,{label},{80 + label}\n" for name, label in zip(IDS, (5, 0, 2), strict=True))
    data = data_of(write(tmp_path, "scene", train=rows, val=rows, test=rows), window_seconds=60.0)
    assert data.class_names is None
    assert [tuple(film) for film in data.listing("val")] == [
        (f"{tmp_path}/videos/{name}.mp4", label, 80 + label) for name, label in zip(IDS, (5, 0, 2), strict=True)
    ]


# Windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duration", [4, 59, 60, 61, 75.5, 90, 91, 100, 124, 133, 260])
def test_windows_are_the_protocols(duration):
    """Reference protocol, section 1: starts every 16 s, 60 s long, cut at the end if 30 s remain, else skipped."""
    expected = [(0, duration)] if duration < 60 else []
    start = 0
    while duration >= 60 and start < duration:
        if start + 60 <= duration:
            expected.append((start, start + 60))
        elif duration - start >= 30:
            expected.append((start, duration))
        start += 16
    assert windows_of(duration) == expected
    assert windows_of(100) == [(0, 60), (16, 76), (32, 92), (48, 100), (64, 100)]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory, make_video):
    """Films of 50 and 15 numbered frames at 5 frames a second, and a scene list that has them."""
    root = tmp_path_factory.mktemp("numbered")
    for name, frames in zip(IDS, (50, 15), strict=False):
        make_video(root / f"{name}.mp4", frames, width=80, height=80, fps=5)
    write(root, "scene", **dict.fromkeys(("train", "val", "test"), "".join(SCENE.splitlines(keepends=True)[:3])))
    (root / "lvu_durations.csv").write_text(f"videoid,duration\n{IDS[0]},10\n{IDS[1]},3\nabc,7\n")
    return root


WINDOWED = {"window_seconds": 4.0, "window_stride": 2.0, "image_size": 80, "short_side": 80, "crop_area": (1.0, 1.0),
            "crop_ratio": (1.0, 1.0), "horizontal_flip": 0.0}  # fmt: skip
WINDOWS = [(0, 4), (2, 6), (4, 8), (6, 10), (8, 10)]  # of the first film; the second is shorter than one


def test_training_takes_each_window(numbered, read_number):
    data = data_of(numbered, **WINDOWED, repeats=2)
    data.setup("fit")
    dataset = data.datasets["train"]
    assert len(dataset) == len(WINDOWS) + 1
    for item, (film, (start, end)) in enumerate([*((0, window) for window in WINDOWS), (1, (0, 3))]):
        for clip in dataset[item]:
            assert (clip["label"], clip["index"]) == ((0, 0), (3, 1))[film]
            numbers = [read_number(frame) for frame in clip["video"].unbind(1)]
            assert numbers == sorted(numbers)
            assert 5 * start <= numbers[0] and numbers[-1] <= min(5 * end, (49, 14)[film])
            # One frame out of each of the four intervals between the window's first frame and its last.
            last = min(5 * end, (49, 14)[film])
            edges = np.round((last - 5 * start) / 4 * np.arange(5)) + 5 * start
            assert all(low <= n <= high for n, low, high in zip(numbers, edges, edges[1:], strict=False))
    batches = list(data.train_dataloader())
    assert sum(len(batch["label"]) for batch in batches) == 2 * 6


def test_evaluation_sees_all_windows_of_a_film(numbered, read_number):
    data = data_of(numbered, **WINDOWED, num_clips=2, num_crops=1)
    data.setup("test")
    long, short = list(data.test_dataloader())
    assert long["video"].shape == (1, 2 * len(WINDOWS), 3, 4, 80, 80) and short["video"].shape == (1, 2, 3, 4, 80, 80)
    assert long["index"].tolist() == [0] and short["index"].tolist() == [1]
    seen = [[read_number(frame) for frame in view.unbind(1)] for view in long["video"][0]]
    expected = []
    for start, end in WINDOWS:
        first, last = 5 * start, min(5 * end, 49)
        interval = (last - first) / 4
        for clip in range(2):  # offsets of 1/3 and 2/3 of an interval, cut to whole frames
            expected.append([first + round(interval * i) + int(interval / 3 * (clip + 1)) for i in range(4)])
    assert seen == expected
    data.setup("fit")
    assert [batch["video"].shape[1:-4] for batch in data.val_dataloader()] == [(len(WINDOWS),), ()]


def test_an_unreadable_film_is_replaced_by_a_window_of_another(numbered, tmp_path):
    for file in numbered.rglob("*.*"):
        (tmp_path / file.relative_to(numbered)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / file.relative_to(numbered))
    (tmp_path / f"{IDS[0]}.mp4").write_bytes(b"no video")
    data = data_of(tmp_path, **WINDOWED, max_unreadable=0.5)
    data.setup("fit")
    with pytest.warns(UserWarning, match="replaced by another video"):
        assert [data.datasets["train"][item]["label"] for item in range(6)] == [3] * 6
    with pytest.warns(UserWarning, match="left out of the evaluation"):
        assert [batch["index"].tolist() for batch in data.val_dataloader()] == [[-1], [1]]


# Mistakes ---------------------------------------------------------------------------------------------------------


def test_unknown_task_and_options_that_do_not_fit():
    assert "task is 'relation'; LVU's are relationship, way_speaking, scene" in error("x", "relation")
    assert "like_ratio is a number; set data.mixup" in error("x", "like_ratio", mixup=0.8)
    assert "window_seconds is 0" in error("x", window_seconds=0.0)
    assert "eval_batch_size is 4, but films have different numbers of windows" in error(
        "x", window_seconds=60.0, eval_batch_size=4
    )


def test_missing_annotations_and_videos(films, tmp_path):
    text = error(tmp_path)
    assert "has no train list of LVU's task scene: there is no" in text and "lvu_1.0/scene/train.csv" in text
    write(tmp_path, "scene", splits=("train",))
    assert f"None of the 3 train videos of LVU's task scene is in {tmp_path}" in error(tmp_path)
    place(films, tmp_path, *(f"{name}.mp4" for name in IDS[:2]))
    assert "has no val list of LVU's task scene" in error(tmp_path)
    write(tmp_path, "scene")
    with pytest.warns(UserWarning, match=f"1 of the 3 train videos do not exist: {tmp_path}/gFKba_Esjt0.mp4"):
        data_of(tmp_path).setup("fit")
    assert "has no lvu_durations.csv or durations.csv, and windows need" in error(tmp_path, window_seconds=60.0)
    (tmp_path / "mine.csv").write_text(f"videoid,duration\n{IDS[0]},83\n{IDS[1]},0\n")
    text = error(tmp_path, window_seconds=60.0, durations="mine.csv")
    assert f"2 of the 3 videos of {tmp_path}/scene/train.csv have no duration above 0" in text


def test_rows_that_cannot_be_understood(films, tmp_path):
    place(films, tmp_path, *(f"{name}.mp4" for name in IDS))
    text = error(write(tmp_path, "scene", train=LIKES))
    assert "train.csv begins with 'like_count dislike_count youtube_id imdb_id' in place of 'class_id class" in text
    header = SCENE.splitlines()[0]
    text = error(write(tmp_path, "scene", train=f"{header}\n0 office tt0161100\n"))
    assert "train.csv, line 2: '0 office tt0161100' is not of the form" in text
    assert "has a header but no rows" in error(write(tmp_path, "scene", train=header))
    text = error(write(tmp_path, "scene", val=SCENE.replace("0 office gF", "0 airport gF")))
    assert "line 4: class_id 0 is called 'airport', and elsewhere 'office'" in text
    text = error(write(tmp_path, "scene", train=SCENE.replace("3 hotel room", "6 hotel room")))
    assert "1 of the 3 train videos have labels outside 0 .. 5" in text
    zero = LIKES.replace("100061 3801", "0 0")
    assert "line 2: '0 0' are no counts" in error(write(tmp_path, "like_ratio", train=zero), "like_ratio")
    zero = VIEWS.replace("100124", "0")
    assert "line 2: '0' are no counts" in error(write(tmp_path, "view_count", train=zero), "view_count")
    text = error(write(tmp_path, "scene", train="a.mp4,office\n"))
    assert "line 1: 'a.mp4,office' is not path,answer, and the file does not begin with 'class_id" in text
    assert math.isfinite(data_of(write(tmp_path, "view_count"), "view_count").listing("val")[0].answer)


def test_windows_without_number_are_refused():
    with pytest.raises(DataError, match="has more than 100000 windows"):
        windows_of(1e300, 60.0, 16.0)
