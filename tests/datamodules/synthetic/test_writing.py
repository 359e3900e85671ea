"""The generated set on disk: files, annotations, and what happens when the generation is interrupted."""

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

import datamodules.synthetic
from datamodules.synthetic import motion as synthetic
from datamodules.synthetic import writing
from datamodules.synthetic.motion import CLASSES, SHAPES, clip_spec, render
from datamodules.synthetic.writing import generate

SMALL = {"size": (48, 32), "num_frames": 12, "fps": 12.0}


def decode(path: Path) -> tuple[np.ndarray, av.VideoStream]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)]), stream


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "motion"
    return generate(root, num_train=32, num_val=16, num_test=8, seed=3, num_workers=2, progress=False, **SMALL)


# ---- files ---------------------------------------------------------------------------------------------------------


def test_same_seed_same_frames_and_other_seed_other_frames(dataset: Path, tmp_path: Path) -> None:
    again = generate(
        tmp_path / "again", num_train=32, num_val=16, num_test=0, seed=3, num_workers=0, progress=False, **SMALL
    )
    other = generate(
        tmp_path / "other", num_train=32, num_val=16, num_test=0, seed=4, num_workers=0, progress=False, **SMALL
    )
    paths = [row["path"] for split in ("train", "val") for row in read_csv(again / f"{split}.csv")]
    assert len(paths) == 48
    for path in paths[::5]:
        np.testing.assert_array_equal(decode(dataset / path)[0], decode(again / path)[0])
        assert np.abs(decode(other / path)[0].astype(int) - decode(again / path)[0]).mean() > 5
    firsts = {decode(again / path)[0].tobytes() for path in paths}
    assert len(firsts) == 48  # no clip twice, across splits either


def test_a_clip_depends_on_its_own_number_only() -> None:
    long, short = (list(writing._listing({"train": n}, CLASSES, 0, SMALL)) for n in (40, 8))
    assert long[:8] == short


@pytest.mark.parametrize(("size", "num_frames", "fps"), [((96, 72), 28, 14), ((112, 84), 30, 29.97), ((64, 64), 5, 8)])
def test_files_are_h264_of_the_asked_size_rate_and_length(
    tmp_path: Path, size: tuple[int, int], num_frames: int, fps: float
) -> None:
    root = generate(
        tmp_path / "d",
        num_train=1,
        num_val=1,
        num_test=0,
        size=size,
        num_frames=num_frames,
        fps=fps,
        progress=False,
        num_workers=0,
    )
    path = root / "train/move_left/00000.mp4"
    frames, stream = decode(path)
    assert frames.shape == (num_frames, size[1], size[0], 3)
    assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
    assert float(stream.average_rate) == pytest.approx(fps, rel=1e-3)
    assert stream.frames == num_frames
    assert float(stream.duration * stream.time_base) == pytest.approx(num_frames / fps, rel=1e-3)
    drawn = render(clip_spec(0, "train", 0, "move_left", size=size, num_frames=num_frames, fps=fps))
    assert np.abs(frames.astype(int) - drawn).mean() < 8  # of 255: what yuv420p and crf 18 cost


def test_annotation_files_agree_with_each_other_and_with_the_folders(dataset: Path) -> None:
    assert (dataset / "classes.txt").read_text().splitlines() == list(CLASSES)
    everything = []
    for split, count in (("train", 32), ("val", 16), ("test", 8)):
        rows = read_csv(dataset / f"{split}.csv")
        assert list(rows[0]) == ["path", "label"]
        assert Counter(row["label"] for row in rows) == dict.fromkeys(CLASSES, count // 8)
        for row in rows:
            assert Path(row["path"]).parts[:2] == (split, row["label"])
        everything += rows
    listed = {row["path"] for row in everything}
    assert listed == {path.relative_to(dataset).as_posix() for path in dataset.rglob("*.mp4")}

    label = {row["path"]: row["label"] for row in everything}
    captions = read_csv(dataset / "captions.csv")
    assert list(captions[0]) == ["video", "caption"]
    assert Counter(row["video"] for row in captions) == dict.fromkeys(listed, synthetic.CAPTIONS_PER_CLIP)
    assert len({(row["video"], row["caption"]) for row in captions}) == len(captions)
    actions = {row["video"]: row for row in read_csv(dataset / "actions.csv")}
    assert actions.keys() == listed
    assert len({row["narration_id"] for row in actions.values()}) == len(actions)
    for path, row in actions.items():
        assert row["verb"] == label[path] == CLASSES[int(row["verb_class"])]
        assert row["noun"] == list(SHAPES)[int(row["noun_class"])]
        assert re.fullmatch(r"P\d\d", row["participant_id"]) and row["narration_id"].startswith(row["participant_id"])
        assert (row["start_timestamp"], row["stop_timestamp"]) == ("00:00:00.00", "00:00:01.00")
        assert row["narration"] == f"{row['verb'].replace('_', ' ')} {row['noun']}"
    for row in captions:
        phrases = synthetic.MOTIONS[label[row["video"]]].phrases
        assert any(phrase in row["caption"] for phrase in phrases)
        assert actions[row["video"]]["noun"] in row["caption"].split()
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", row["caption"])
    metadata = json.loads((dataset / "metadata.json").read_text())
    assert metadata["version"] == writing.VERSION and metadata["arguments"]["seed"] == 3


def test_timestamps_carry_over() -> None:
    assert [writing._timestamp(s) for s in (0, 59.999, 61.5, 3725.25)] == [
        "00:00:00.00", "00:01:00.00", "00:01:01.50", "01:02:05.25",
    ]  # fmt: skip


# ---- refusals and interruptions ------------------------------------------------------------------------------------


def test_complete_set_is_left_alone_and_another_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root, tiny = tmp_path / "set", {"num_train": 2, "num_val": 0, "num_test": 0, "num_workers": 0, **SMALL}
    generate(root, progress=False, **tiny)
    video = root / "train/move_left/00000.mp4"
    before = video.stat().st_mtime_ns
    assert generate(root, **tiny) == root
    assert "left as it is" in capsys.readouterr().out and video.stat().st_mtime_ns == before

    with pytest.raises(FileExistsError, match=r"seed 0 \(asked: 5\)"):
        generate(root, seed=5, progress=False, **tiny)
    assert video.stat().st_mtime_ns == before
    video.unlink()
    with pytest.raises(FileExistsError, match="1 of its 2 videos are missing"):
        generate(root, progress=False, **tiny)
    generate(root, seed=5, progress=False, overwrite=True, **tiny)
    assert video.is_file() and json.loads((root / "metadata.json").read_text())["arguments"]["seed"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_folder_of_someone_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("videos of my cat")
    with pytest.raises(FileExistsError, match="not made by this generator"):
        generate(tmp_path, num_train=1, num_val=0, progress=False, overwrite=True, **SMALL)
    assert (tmp_path / "precious.txt").read_text() == "videos of my cat"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"classes": ["move_lefft"]}, "did you mean 'move_left'"),
        ({"classes": []}, "at least one"),
        ({"size": (95, 72)}, "even width"),
        ({"size": (16, 16)}, "of 32 to 4096 px"),
        ({"size": (32, 10**6)}, "of 32 to 4096 px"),
        ({"num_frames": 1}, "4 to 10000 frames"),
        ({"num_frames": 10**9}, "4 to 10000 frames"),
        ({"fps": 0}, "up to 1000 a second, not 24 at 0"),
        ({"fps": math.nan}, "up to 1000 a second"),
        ({"nuisance": 1.5}, "between 0"),
        ({"num_train": -1}, "not be negative"),
        ({"num_train": 0, "num_val": 0, "num_test": 0}, "not all zero"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        generate(tmp_path / "set", progress=False, **arguments)
    assert not list(tmp_path.iterdir())


def run_command(*arguments: object, **kwargs: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "datamodules.synthetic", *map(str, arguments)]
    root = Path(__file__).resolve().parents[3]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(root)}, **pipes, **kwargs)


def test_command_line_writes_set_and_picture(tmp_path: Path) -> None:
    out, picture = tmp_path / "set", tmp_path / "plots" / "sheet.png"
    process = run_command(
        out, "--train", 3, "--val", 2, "--test", 0, "--size", "48x32", "--frames", 8, "--plot", picture
    )
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "3 train, 2 val clips of 8 classes, 8 frames at 12 fps, 48x32 px" in output.replace("\n", " ")
    assert len(list(out.rglob("*.mp4"))) == 5
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000


def test_command_line_errors_are_one_sentence(tmp_path: Path) -> None:
    process = run_command(tmp_path / "set", "--nuisance", 3)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 1 and output == "" and errors.count("\n") == 1 and errors.startswith("error: ")
    assert not list(tmp_path.iterdir())


def runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_generation_leaves_nothing(tmp_path: Path, number: int) -> None:
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    process = run_command(tmp_path / "set", "--train", 4000, "--workers", 2, start_new_session=True, preexec_fn=heard)
    deadline = time.monotonic() + 600
    while not list(tmp_path.rglob("*.mp4")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    assert not (tmp_path / "set").exists()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    helpers = children.read_text().split() if children.exists() else []
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # Ctrl-C reaches the helpers as well
    else:
        process.send_signal(number)
    process.communicate(timeout=600)
    while any(map(runs, helpers)):
        assert time.monotonic() < deadline, "helpers outlive the process that they work for"
        time.sleep(0.05)
    if number == signal.SIGKILL:  # the data set is not there, and can be made again
        assert not (tmp_path / "set").exists()
        assert (
            len(list(generate(tmp_path / "set", num_train=2, num_val=0, num_test=0, num_workers=0).rglob("*.mp4"))) == 2
        )
        return
    assert process.returncode == (130 if number == signal.SIGINT else 143)
    assert not list(tmp_path.iterdir())


def test_names_of_the_package() -> None:
    assert all(getattr(datamodules.synthetic, name).__module__ for name in ("generate", "generate_kitchen", "ClipSpec"))
    assert datamodules.synthetic.generate is generate and not hasattr(datamodules.synthetic, "other")
