"""The clips of the generated set: what a frame tells, what motion tells, captions."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from datamodules.synthetic import motion as synthetic
from datamodules.synthetic.motion import (
    CLASSES,
    COLOURS,
    PATTERNS,
    SHAPES,
    clip_spec,
    object_mask,
    render,
    sample_spec,
    trajectory,
)

SMALL = {"size": (48, 32), "num_frames": 12, "fps": 12.0}


def ks_to_uniform(values: np.ndarray) -> float:
    """Kolmogorov-Smirnov statistic of `values` against the uniform distribution on [0, 1)."""
    x, n = np.sort(values), len(values)
    return max((np.arange(1, n + 1) / n - x).max(), (x - np.arange(n) / n).max())


def circular_steps(path: np.ndarray) -> np.ndarray:
    """Signed steps between frames, the shorter way around the circle."""
    return (np.diff(path, axis=0) + 0.5) % 1 - 0.5


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
        frames = render(clip_spec(11, "val", index, motion, size=(64, 48), num_frames=16))
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


def test_the_mask_is_where_the_object_is_drawn():
    """The same scene without the object is another picture there, and the same elsewhere but for the anti-aliased
    edge."""
    spec = dataclasses.replace(clip_spec(3, "test", 0, "move_left"), noise_levels=0.0)
    mask = object_mask(spec)
    frames = render(spec).astype(int)
    assert mask.shape == frames.shape[:3] and mask.dtype == bool and 0.02 < mask.mean() < 0.6
    # Moved by half a picture, the object bares what was behind it.
    x, y, *rest = spec.phases
    away = dataclasses.replace(spec, phases=((x + 0.5) % 1, (y + 0.5) % 1, *rest))
    behind, elsewhere = render(away).astype(int), ~mask & ~object_mask(away)
    differs = np.abs(frames - behind).max(axis=-1)
    both = mask & ~object_mask(away)
    assert (differs[both] > 10).mean() > 0.95
    assert (differs[elsewhere] > 10).mean() < 0.1
