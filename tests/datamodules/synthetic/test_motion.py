"""The generator of the demo set: what a frame tells, what motion tells, files, annotations, refusals."""

import csv
import dataclasses
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

from datamodules.synthetic import motion as synthetic
from datamodules.synthetic.motion import (
    CLASSES,
    COLOURS,
    PATTERNS,
    SHAPES,
    clip_spec,
    generate,
    render,
    render_clip,
    sample_spec,
    trajectory,
)

SMALL = {"size": (48, 32), "num_frames": 12, "fps": 12.0}


def decode(path: Path) -> tuple[np.ndarray, av.VideoStream]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)]), stream


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def ks_to_uniform(values: np.ndarray) -> float:
    """Kolmogorov-Smirnov statistic of `values` against the uniform distribution on [0, 1)."""
    x, n = np.sort(values), len(values)
    return max((np.arange(1, n + 1) / n - x).max(), (x - np.arange(n) / n).max())


def circular_steps(path: np.ndarray) -> np.ndarray:
    """Signed steps between frames, the shorter way around the circle."""
    return (np.diff(path, axis=0) + 0.5) % 1 - 0.5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "motion"
    return generate(root, num_train=32, num_val=16, num_test=8, seed=3, num_workers=2, progress=False, **SMALL)


# ---- what one frame tells ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nuisance", [0.0, 0.15, 1.0])
@pytest.mark.parametrize("motion", CLASSES)
def test_at_any_frame_position_size_and_angle_are_uniform_and_independent(motion: str, nuisance: float) -> None:
    n = 600
    paths = np.stack([trajectory(clip_spec(1, "train", i, motion, num_frames=28, nuisance=nuisance)) for i in range(n)])
    for t in (0, 13, 27):
        # 1.95 / sqrt(n) is the 0.1% point of the KS distribution; 4 attributes x 3 frames x 24 cases need more.
        assert max(ks_to_uniform(paths[:, t, k]) for k in range(4)) < 2.3 / np.sqrt(n)
        # circular correlation of every pair, both directions; each is about 1 / sqrt(n) when independent
        turns = np.exp(2j * np.pi * paths[:, t])
        for a in range(4):
            for b in range(a):
                assert abs((turns[:, a] * turns[:, b]).mean()) < 3.6 / np.sqrt(n)
                assert abs((turns[:, a] * turns[:, b].conj()).mean()) < 3.6 / np.sqrt(n)


def test_scene_does_not_depend_on_the_class() -> None:
    for index in range(20):
        scenes = []
        for motion in CLASSES:
            scene = dataclasses.asdict(clip_spec(7, "val", index, motion, nuisance=1.0))
            for of_the_class in ("motion", "captions"):
                del scene[of_the_class]
            scenes.append(json.dumps(scene))
        assert len(set(scenes)) == 1


def test_probes_on_single_frames_stay_at_chance() -> None:
    """Linear softmax and nearest neighbour on one random frame of a clip; the linear probe does learn what shows."""
    rng = np.random.default_rng(0)
    count, held_out = 640, 240
    specs = [clip_spec(5, "train", i, CLASSES[i % 8], size=(48, 36), num_frames=8) for i in range(count)]
    frames = np.stack([render(spec)[rng.integers(spec.num_frames)] for spec in specs])
    pixels = frames.reshape(count, 9, 4, 12, 4, 3).mean((2, 4)).reshape(count, -1) / 64 - 1
    motion = np.arange(count) % 8
    ground = np.array([list(COLOURS).index(spec.background_colour) for spec in specs])
    cut = count - held_out

    def linear(labels: np.ndarray) -> float:  # ridge regression to one-hot
        x = np.c_[pixels, np.ones(count)]
        gram = x[:cut].T @ x[:cut] + 30 * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, x[:cut].T @ np.eye(8)[labels[:cut]])
        return float(((x[cut:] @ weights).argmax(1) == labels[cut:]).mean())

    distances = ((pixels[cut:, None] - pixels[None, :cut]) ** 2).sum(-1)
    neighbour = float((motion[:cut][distances.argmin(1)] == motion[cut:]).mean())
    chance, deviation = 1 / 8, np.sqrt(1 / 8 * 7 / 8 / held_out)
    assert abs(linear(motion) - chance) < 3.5 * deviation
    assert abs(neighbour - chance) < 3.5 * deviation
    assert linear(ground) > chance + 8 * deviation


def test_a_class_and_its_reverse_have_the_same_frames_in_another_order() -> None:
    for forward, backward in [("move_right", "move_left"), ("grow", "shrink")]:
        one, other = (trajectory(clip_spec(0, "train", 4, m, nuisance=0.0)) for m in (forward, backward))
        np.testing.assert_allclose(one, other[::-1], atol=1e-12)


def test_with_full_nuisance_each_attribute_visits_the_same_values_in_all_classes() -> None:
    visited = [np.sort(trajectory(clip_spec(0, "train", 9, m, nuisance=1.0)), axis=0) for m in CLASSES]
    for values in visited[1:]:
        np.testing.assert_allclose(values, visited[0], atol=1e-12)


# ---- what the motion tells -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [9, 28])
@pytest.mark.parametrize("nuisance", [0.15, 1.0])
def test_only_the_attribute_of_the_class_drifts(nuisance: float, num_frames: int) -> None:
    expected = {
        "move_left": (0, -1), "move_right": (0, 1), "move_up": (1, -1), "move_down": (1, 1),
        "grow": (2, 1), "shrink": (2, -1), "turn_clockwise": (3, 1), "turn_counterclockwise": (3, -1),
    }  # fmt: skip
    low, high = synthetic.TRAVEL
    for motion, (axis, sign) in expected.items():
        for index in range(10):
            spec = clip_spec(2, "train", index, motion, nuisance=nuisance, num_frames=num_frames)
            steps = circular_steps(trajectory(spec))
            assert (np.sign(steps[:, axis]) == sign).all()
            total = abs(steps[:, axis].sum()) * num_frames / (num_frames - 1)
            assert low <= total <= high
            assert spec.speed == pytest.approx(total / spec.duration_seconds)
            others = np.delete(np.abs(steps.sum(0)), axis)
            assert (others <= 2.001 * nuisance * high / num_frames).all()  # back within two ranks of the start


def mass_centre(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Circular centre of the bright pixels (turns, per frame: x and y) and their number."""
    bright = frames.max(-1) > 110  # backgrounds stay below, shapes above
    height, width = bright.shape[1:]
    across = np.exp(2j * np.pi * (np.arange(width) + 0.5) / width)
    down = np.exp(2j * np.pi * (np.arange(height) + 0.5) / height)
    centre = np.stack([bright.sum(1) @ across, bright.sum(2) @ down], axis=1)
    return np.angle(centre) / (2 * np.pi) % 1, bright.sum((1, 2))


def test_backgrounds_are_darker_than_shapes() -> None:
    for name, colour in COLOURS.items():
        background = synthetic.LIGHT * np.array(colour) + 20
        assert background.max() + 12 < 110 < synthetic.BODY * (max(colour) - 12) - 12, name


def test_tracking_the_shape_in_the_pixels_tells_the_classes_apart() -> None:
    """The drift of the bright area's centre, size and axis, seen in pixels alone, is what the class says."""
    right = Counter()
    for index in range(160):
        motion = CLASSES[index % 8]
        frames, _ = render_clip(clip_spec(11, "val", index, motion, size=(64, 48), num_frames=16))
        centre, area = mass_centre(frames)
        x, y = np.median(circular_steps(centre), axis=0)
        scale = np.median(np.diff(np.log(area)))
        if motion.startswith("move"):
            seen = max([("move_right", x), ("move_left", -x), ("move_down", y), ("move_up", -y)], key=lambda m: m[1])[0]
        elif motion in ("grow", "shrink"):
            seen = "grow" if scale > 0 else "shrink"
        else:
            continue
        right[motion] += seen == motion
    assert all(right[m] >= 18 for m in CLASSES[:6]), right  # of 20 each


@pytest.mark.parametrize("shape", SHAPES)
def test_turns_move_and_size_look_as_named(shape: str) -> None:
    """The light end of each shape points to +x at angle 0, down a quarter turn (clockwise) later; size is size."""
    base = sample_spec(np.random.default_rng(0), "turn_clockwise", size=(96, 96), nuisance=0.0)
    plain = dataclasses.replace(base, shape=shape, colour="blue", tint=(0.0,) * 3, noise_levels=0.0)
    start = dataclasses.replace(plain, phases=(0.5, 0.5, 0.9, 0.0), travels=(0.0, 0.0, 0.0, 0.5), num_frames=4)
    frames = render(start).astype(int)  # 0, 45, 90 and 135 degrees
    light, y, x = (frames[..., 0] > 170), *np.mgrid[:96, :96] - 47.5
    whole = frames[..., 2] > 150
    offset = [(x[a].mean() - x[b].mean(), y[a].mean() - y[b].mean()) for a, b in zip(light, whole, strict=True)]
    angles = np.degrees(np.unwrap([np.arctan2(dy, dx) for dx, dy in offset]))
    np.testing.assert_allclose(np.diff(angles), 45, atol=4)
    # No shape looks the same after any smaller turn: half a turn changes at least a fifth of its pixels.
    half = render(dataclasses.replace(start, travels=(0.0, 0.0, 0.0, 1.0), num_frames=4)).astype(int)
    changed = (np.abs(half[0] - half[2]).max(-1) > 40).sum()
    assert changed > 0.2 * whole[0].sum()
    # Area goes with the square of the radius, which goes from one end of RADIUS to the other on a log scale.
    areas = [
        (render(dataclasses.replace(start, phases=(0.3, 0.8, s, 0.1)))[0, ..., 2] > 150).sum()
        for s in (0.0, 0.5, 0.999)
    ]
    low, high = synthetic.RADIUS
    assert areas[2] / areas[0] == pytest.approx((high / low) ** 2, rel=0.08)
    assert areas[1] / areas[0] == pytest.approx(high / low, rel=0.08)


def test_picture_wraps_around() -> None:
    """Moving the shape and the texture by half a picture is the same as rolling the pixels."""
    for index in range(12):
        spec = dataclasses.replace(clip_spec(0, "train", index, "grow"), noise_levels=0.0)
        x, y, size, angle = spec.phases
        bx, by = spec.background_phase
        moved = dataclasses.replace(spec, phases=(x + 0.5, y + 0.5, size, angle), background_phase=(bx + 0.5, by + 0.5))
        rolled = np.roll(render(spec), (32, 32), axis=(1, 2)).astype(int)
        assert (np.abs(rolled - render(moved)) > 2).mean() < 1e-3  # rounding of a table cell at an edge


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
    long, short = (list(synthetic._listing({"train": n}, CLASSES, 0, SMALL)) for n in (40, 8))
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
    assert metadata["version"] == synthetic.VERSION and metadata["arguments"]["seed"] == 3


def test_captions_name_what_is_seen_and_vary() -> None:
    specs = [clip_spec(0, "train", i, CLASSES[i % 8]) for i in range(400)]
    for spec in specs:
        for caption in spec.captions:
            assert spec.colour in caption and spec.shape in caption and spec.background_colour in caption
            assert spec.background in caption or PATTERNS[spec.background] in caption
        assert len(set(spec.captions)) == synthetic.CAPTIONS_PER_CLIP
    counts = Counter(caption for spec in specs for caption in spec.captions)
    assert sum(counts.values()) - len(counts) < 0.02 * len(counts)  # a caption nearly names its clip, for retrieval
    for field, names in (("shape", SHAPES), ("colour", COLOURS), ("background", PATTERNS)):
        seen = Counter(getattr(spec, field) for spec in specs)
        assert seen.keys() == set(names) and min(seen.values()) > 0.5 * len(specs) / len(names)


def test_timestamps_carry_over() -> None:
    assert [synthetic._timestamp(s) for s in (0, 59.999, 61.5, 3725.25)] == [
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
