"""Clips of the demo set: short videos whose class can be told from the motion only.

A clip shows one shape over a textured background. Four attributes of the shape live on circles of circumference 1:

    attribute   value 0 .. 1 means                                   class when it drifts up / down
    x           left to right across the picture, wrapping around    move_right / move_left
    y           top to bottom, wrapping around                       move_down / move_up
    size        smallest to largest, then smallest again             grow / shrink
    angle       a full turn, clockwise on the screen                 turn_clockwise / turn_counterclockwise

The class's attribute drifts; the other three go there and back (as far as `nuisance` lets them):

    value   drifts: each rank once, in order         goes there and back: each rank once, no net drift
      |            . '                                       . ' .
      |        . '                                         '       '
      |    . '                                           '           '
      +--------------- time                            +--------------- time

Why one frame tells nothing. The four phases are uniform and independent of everything else, so at any given frame the
four values are uniform and independent, for every class; shape, colours, texture and noise are drawn without looking at
the class. Hence a frame's distribution is the same for all classes, exactly.

Why shuffled frames tell little. A class and its reverse (left and right, grow and shrink, ...) have exactly the same
distribution of unordered frames, whatever the nuisance. There and back is a reordering of the drift (even ranks up, odd
ranks down), so with `nuisance=1` even the set of values that one attribute visits has the same distribution in all
classes; with less, the range visited gives away which attribute drifts, but not which way.

The class is a property of the whole clip: a short window can catch an attribute on its way there.

The pieces: `sample_spec` draws a scene, `trajectory` and `render` turn it into frames, `captions` into sentences; files
are written by `datamodules.synthetic.writing`. Everything is a function of (seed, split, index).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import DataError

__all__ = [
    "CLASSES",
    "COLOURS",
    "PATTERNS",
    "SHAPES",
    "ClipSpec",
    "captions",
    "check_clip_arguments",
    "clip_spec",
    "object_mask",
    "render",
    "sample_spec",
    "trajectory",
]


@dataclass(frozen=True)
class Motion:
    """What a class means: the attribute that drifts, which way, and how people say it."""

    axis: int
    sign: int
    phrases: tuple[str, str, str]


MOTIONS = {
    "move_left": Motion(0, -1, ("moves to the left", "slides left", "is moving leftwards")),
    "move_right": Motion(0, +1, ("moves to the right", "slides right", "is moving rightwards")),
    "move_up": Motion(1, -1, ("moves up", "rises", "is moving upwards")),
    "move_down": Motion(1, +1, ("moves down", "sinks", "is moving downwards")),
    "grow": Motion(2, +1, ("grows", "gets bigger", "is growing larger")),
    "shrink": Motion(2, -1, ("shrinks", "gets smaller", "is becoming smaller")),
    "turn_clockwise": Motion(3, +1, ("turns clockwise", "rotates clockwise", "is spinning clockwise")),
    "turn_counterclockwise": Motion(
        3, -1, ("turns counterclockwise", "rotates counterclockwise", "is spinning anticlockwise")
    ),
}
CLASSES = tuple(MOTIONS)

COLOURS = {
    "red": (230, 50, 45),
    "orange": (250, 145, 30),
    "yellow": (245, 220, 60),
    "green": (70, 190, 70),
    "teal": (40, 190, 190),
    "blue": (60, 110, 235),
    "purple": (150, 80, 215),
    "pink": (250, 130, 190),
}
# adjective -> the noun used in "over red stripes"
PATTERNS = {
    "striped": "stripes",
    "checkered": "checks",
    "dotted": "dots",
    "wavy": "waves",
    "latticed": "grid lines",
    "cloudy": "clouds",
}

SPLITS = ("train", "val", "test")
CAPTIONS_PER_CLIP = 3
TRAVEL = (0.5, 0.8)  # of the circle, per clip: 8 frames of a clip are 0.06 to 0.1 apart, so directions are unambiguous
RADIUS = (0.25, 0.48)  # of the shorter side; tips that reach further than half a picture are cut off
DARK, LIGHT = 0.14, 0.24  # background tones, of the full colour: any shape is brighter than any background
BODY = 0.8  # tone of the shape, of the full colour: darker than its light end, so that its angle shows
NUISANCE = 0.1  # a small network learns the classes from a few thousand clips; 1 is the hard setting
NOISE_LEVELS = 2.5  # standard deviation of the sensor noise, of 255
BACKGROUND_TRAVEL = 0.5  # of the picture per clip and axis, at most, times nuisance


@dataclass(frozen=True)
class ClipSpec:
    """All that defines one clip, in plain values (JSON can hold it). Rendering adds nothing but arithmetic.

    `phases`, `travels` and `turns` have one entry for each of x, y, size, angle: value at rank 0, range visited (both
    in circles), and the frame at which a there-and-back attribute starts. `background_waves` are whole numbers of
    periods per picture, which makes the texture wrap around.
    """

    motion: str
    shape: str
    colour: str
    background: str
    background_colour: str
    num_frames: int
    fps: float
    size: tuple[int, int]  # width, height in px
    phases: tuple[float, ...]
    travels: tuple[float, ...]
    turns: tuple[int, ...]
    background_waves: tuple[tuple[int, int, float], ...]
    background_phase: tuple[float, float]
    background_travel: tuple[float, float]
    tint: tuple[float, float, float]  # small deviation of the shape's colour, levels
    noise_levels: float
    noise_seed: int
    captions: tuple[str, ...] = ()

    @property
    def pace(self) -> str:
        """The word for how far the drifting attribute goes in the clip."""
        low, high = TRAVEL
        fraction = (self.travels[MOTIONS[self.motion].axis] - low) / (high - low)
        return ("slowly", "steadily", "quickly")[min(2, int(3 * fraction))]

    @property
    def duration_seconds(self) -> float:
        """Time from the first frame to the end of the last one."""
        return self.num_frames / self.fps


# ---- drawing a scene -----------------------------------------------------------------------------------------------


def sample_spec(
    rng: np.random.Generator,
    motion: str,
    *,
    size: tuple[int, int] = (64, 64),
    num_frames: int = 24,
    fps: float = 12,
    nuisance: float = NUISANCE,
) -> ClipSpec:
    """Draws a scene. Draws the same numbers whatever the motion, so a generator state gives one scene in eight motions.

    Args:
        rng: Source of all randomness.
        motion: One of `CLASSES`.
        size: Width and height in px, both even (yuv420p), at least 32.
        num_frames: At least 4.
        fps: Frames per second.
        nuisance: 0..1. How far the attributes other than the class's go, relative to how far they would go if they were
            the class's; scales the background's drift too.

    Raises:
        DataError: For an unknown motion or a number out of range.
    """
    check_clip_arguments([motion], size, num_frames, fps, nuisance)
    colour, background_colour = (list(COLOURS)[i] for i in rng.permutation(len(COLOURS))[:2])
    background = list(PATTERNS)[rng.integers(len(PATTERNS))]
    travels = rng.uniform(*TRAVEL, 4)
    travels *= np.where(np.arange(4) == MOTIONS[motion].axis, 1.0, nuisance)
    spec = ClipSpec(
        motion=motion,
        shape=list(SHAPES)[rng.integers(len(SHAPES))],
        colour=colour,
        background=background,
        background_colour=background_colour,
        num_frames=num_frames,
        fps=fps,
        size=(int(size[0]), int(size[1])),
        phases=tuple(rng.random(4).tolist()),
        travels=tuple(travels.tolist()),
        turns=tuple(rng.integers(num_frames, size=4).tolist()),
        background_waves=_sample_waves(rng, background),
        background_phase=tuple(rng.random(2).tolist()),
        background_travel=tuple((nuisance * BACKGROUND_TRAVEL * rng.uniform(-1, 1, 2)).tolist()),
        tint=tuple(rng.uniform(-12, 12, 3).tolist()),
        noise_levels=NOISE_LEVELS,
        noise_seed=int(rng.integers(2**62)),
    )
    return replace(spec, captions=captions(spec, rng))


def clip_spec(seed: int, split: str, index: int, motion: str, **kwargs: Any) -> ClipSpec:
    """The scene of clip `index` of a split: `sample_spec` on the clip's own random stream."""
    return sample_spec(np.random.default_rng([seed, SPLITS.index(split), index]), motion, **kwargs)


def _sample_waves(rng: np.random.Generator, background: str) -> tuple[tuple[int, int, float], ...]:
    """(periods across, periods down, phase in cycles) of the plane waves that make up a texture."""
    count = 8 if background == "cloudy" else 2
    across, down = rng.integers(1, 5, count), rng.integers(1, 4, count)
    if background == "cloudy":
        across, down = rng.integers(-3, 4, count), rng.integers(-3, 4, count)
    elif background in ("striped", "wavy"):
        across[0], down[0] = [(across[0] + 2, 0), (0, down[0] + 2), (across[0], down[0]), (across[0], -down[0])][
            rng.integers(4)
        ]
    elif background in ("checkered", "dotted", "latticed"):
        across[:], down[:] = (across[0] + 1, 0), (0, down[0] + 1)
    return tuple((int(a), int(d), float(p)) for a, d, p in zip(across, down, rng.random(count), strict=True))


def captions(spec: ClipSpec, rng: np.random.Generator) -> tuple[str, ...]:
    """`CAPTIONS_PER_CLIP` different sentences in lower case that name shape, colour, motion, speed and background."""
    says = MOTIONS[spec.motion].phrases
    thing, texture = f"{spec.colour} {spec.shape}", f"{spec.background_colour} {PATTERNS[spec.background]}"
    scene = f"{spec.background_colour} {spec.background} background"
    sentences = [
        f"{_article(thing)} {says[0]} over {_article(scene)}",
        f"the {thing} {says[1]} {spec.pace} in front of {texture}",
        f"there are {texture}, and {_article(thing)} {says[2]}",
        f"{_article(thing)} on {texture} {says[0]} {spec.pace}",
        f"on {_article(scene)} {_article(thing)} {says[1]}",
    ]
    return tuple(sentences[i] for i in rng.permutation(len(sentences))[:CAPTIONS_PER_CLIP])


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


# ---- motion --------------------------------------------------------------------------------------------------------


def trajectory(spec: ClipSpec) -> NDArray[np.float64]:
    """Values of x, y, size and angle at each frame, on circles: float64 (num_frames, 4) in [0, 1)."""
    motion = MOTIONS[spec.motion]
    ranks = np.arange(spec.num_frames)
    # 0 2 4 ... 5 3 1: each rank once, neighbours (the ends too) at most two ranks apart.
    there_and_back = np.concatenate([ranks[::2], ranks[1::2][::-1]])
    order = np.stack([np.roll(there_and_back, turn) for turn in spec.turns], axis=1)
    order[:, motion.axis] = ranks[:: motion.sign]
    places: NDArray[np.float64] = np.asarray(spec.phases) + np.asarray(spec.travels) * order / spec.num_frames
    return places % 1.0


# ---- rendering -----------------------------------------------------------------------------------------------------

# Shapes are signed distances (negative inside) in a square of side 2 around their centre, y downwards, tabulated once.
TABLE_HALF_WIDTH, TABLE_CELLS = 1.25, 320
Field: TypeAlias = NDArray[np.floating]
Shape: TypeAlias = Callable[[Field, Field], tuple[Field, Field]]
Corners: TypeAlias = tuple[tuple[float, float], ...]


def _box(left: float, top: float, right: float, bottom: float) -> Corners:
    return (left, top), (right, top), (right, bottom), (left, bottom)


def _disc(x: Field, y: Field, cx: float, cy: float, r: float) -> Field:
    distance: Field = np.hypot(x - cx, y - cy) - r
    return distance


def _polygon(x: Field, y: Field, *corners: tuple[float, float]) -> Field:
    """Exact signed distance: distance to the nearest edge, sign from the even-odd rule."""
    nearest, inside = np.full_like(x, np.inf), np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, np.hypot(px - along * ex, py - along * ey))
        crosses = (ay > y) != (by > y)
        inside ^= crosses & (px < ex * py / (ey if ey else 1.0))
    return np.where(inside, -nearest, nearest)


def _joined(second: Corners, other: Corners) -> Shape:
    """Two polygons, the first of them in the second colour."""

    def draw(x: Field, y: Field) -> tuple[Field, Field]:
        painted = _polygon(x, y, *second)
        return np.minimum(painted, _polygon(x, y, *other)), painted

    return draw


def _moon(x: Field, y: Field) -> tuple[Field, Field]:
    return np.maximum(_disc(x, y, 0, 0, 0.95), -_disc(x, y, 0.1, -0.5, 0.7)), 0.1 - x


def _drop(x: Field, y: Field) -> tuple[Field, Field]:
    body = np.minimum(_disc(x, y, -0.3, 0, 0.65), _polygon(x, y, (1.0, 0.0), (0.025, 0.563), (0.025, -0.563)))
    return body, -x


# name -> (outline, part painted in the second colour); none looks the same after a turn of less than a full one
SHAPES: dict[str, Shape] = {
    "arrow": _joined(((0.0, -0.8), (0.98, 0.0), (0.0, 0.8)), _box(-0.95, -0.32, 0.1, 0.32)),
    "corner": _joined(_box(0.35, -0.8, 0.9, 0.7), _box(-0.95, 0.15, 0.9, 0.7)),
    "disc": lambda x, y: (_disc(x, y, 0, 0, 0.88), -x),
    "triangle": lambda x, y: (_polygon(x, y, (1.0, 0.0), (-0.65, 0.9), (-0.65, -0.9)), 0.1 - x),
    "hammer": _joined(_box(0.3, -0.75, 0.9, 0.75), _box(-1.0, -0.22, 0.5, 0.22)),
    "moon": _moon,
    "drop": _drop,
    "flag": _joined(((-0.55, -0.95), (0.9, -0.42), (-0.55, 0.15)), _box(-0.75, -0.95, -0.4, 0.98)),
}


@lru_cache
def _shape_tables(shape: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    centres = (np.arange(TABLE_CELLS) + 0.5) / TABLE_CELLS * 2 - 1
    y, x = np.meshgrid(centres * TABLE_HALF_WIDTH, centres * TABLE_HALF_WIDTH, indexing="ij")
    # A frame of far away cells catches whatever falls outside of the table.
    outline, second = (np.pad(t.astype(np.float32), 1, constant_values=1.0).ravel() for t in SHAPES[shape](x, y))
    return outline, second


def _coverage(distance_px: Field) -> Field:
    """Anti-aliasing: the share of a pixel that an edge at this signed distance leaves inside."""
    share: Field = np.clip(0.5 - distance_px, 0.0, 1.0)
    return share


def _shape_layers(spec: ClipSpec, path: NDArray[np.float64]) -> tuple[Field, Field, Field]:
    """Coverage (T, H, W) of the shape with its rim, of its inside, and of the second colour."""
    width, height = spec.size
    low, high = (r * min(width, height) for r in RADIUS)
    radius = (low * (high / low) ** path[:, 2]).astype(np.float32)[:, None, None]
    angle = (2 * np.pi * path[:, 3]).astype(np.float32)[:, None, None]

    def offset(position: NDArray[np.float64], count: int) -> Field:  # the shorter way around the torus, in px
        return ((np.arange(count) + 0.5 - position[:, None] * count + count / 2) % count - count / 2).astype(np.float32)

    dx, dy = offset(path[:, 0], width)[:, None, :], offset(path[:, 1], height)[:, :, None]
    cos, sin = np.cos(angle) / radius, np.sin(angle) / radius  # y points down: a growing angle turns clockwise
    to_cell = TABLE_CELLS / (2 * TABLE_HALF_WIDTH)

    def cell(along: Field) -> NDArray[np.int32]:  # 0 and TABLE_CELLS + 1 are the far frame
        place: Field = np.clip((along + TABLE_HALF_WIDTH) * to_cell + 1, 0, TABLE_CELLS + 1)
        return place.astype(np.int32)

    cells = cell(dy * cos - dx * sin) * (TABLE_CELLS + 2) + cell(dx * cos + dy * sin)
    outline, second = (table[cells] * radius for table in _shape_tables(spec.shape))
    rim = 0.016 * min(width, height)
    return _coverage(outline - rim), _coverage(outline), _coverage(np.maximum(outline, second))


def _background_level(spec: ClipSpec) -> Field:
    """The texture as brightness 0..1, float32 (T, H, W); periodic in both directions, drifting at constant speed."""
    width, height = spec.size
    time = np.arange(spec.num_frames) / spec.num_frames
    drift_x, drift_y = (
        (p + d * time)[:, None] for p, d in zip(spec.background_phase, spec.background_travel, strict=True)
    )
    x = ((np.arange(width) + 0.5) / width - drift_x).astype(np.float32)[:, None, :]
    y = ((np.arange(height) + 0.5) / height - drift_y).astype(np.float32)[:, :, None]

    def wave(number: int, bend: Field | float = 0.0) -> Field:
        across, down, phase = spec.background_waves[number]
        height: Field = np.sin(np.float32(2 * np.pi) * (across * x + down * y + np.float32(phase) + bend))
        return height

    if spec.background == "cloudy":
        value = sum(wave(i) for i in range(len(spec.background_waves))) * 0.7
    elif spec.background == "striped":
        value = wave(0) * 3
    elif spec.background == "wavy":
        value = wave(0, bend=np.float32(0.15) * wave(1)) * 3
    elif spec.background == "checkered":
        value = wave(0) * wave(1) * 5
    elif spec.background == "dotted":
        value = (wave(0) + wave(1) - 0.8) * 4
    else:
        value = (np.maximum(wave(0), wave(1)) - 0.8) * 7
    level = 0.5 + 0.5 * np.tanh(value)
    return np.broadcast_to(level, (spec.num_frames, height, width))


def render(spec: ClipSpec) -> NDArray[np.uint8]:
    """Draws the clip.

    Returns:
        uint8 (num_frames, height, width, 3), RGB.
    """
    colour = np.clip(np.asarray(COLOURS[spec.colour]) + spec.tint, 0, 255)
    ground = np.asarray(COLOURS[spec.background_colour], float)
    dark, light = DARK * ground + 8, LIGHT * ground + 20
    rim, whole, second = _shape_layers(spec, trajectory(spec))
    level = _background_level(spec)
    noise = np.random.default_rng(spec.noise_seed).standard_normal(level.shape, np.float32) * np.float32(
        spec.noise_levels
    )
    frames = np.empty((*level.shape, 3), np.uint8)
    for channel in range(3):  # one colour plane at a time stays in the cache: twice as fast as (T, H, W, 3) arithmetic
        plane = dark[channel] + np.float32(light[channel] - dark[channel]) * level
        for coverage, target in ((rim, 10.0), (whole, BODY * colour[channel]), (second, 0.15 * colour[channel] + 210)):
            plane += coverage * (np.float32(target) - plane)
        frames[..., channel] = np.clip(plane + noise + np.float32(0.5), 0, 255)
    return frames


def object_mask(spec: ClipSpec) -> NDArray[np.bool_]:
    """Where `render` draws the moving object.

    Returns:
        bool (num_frames, height, width), True where it covers at least half of the pixel, its dark rim included.
    """
    rim, _, _ = _shape_layers(spec, trajectory(spec))
    return rim >= 0.5


def check_clip_arguments(
    classes: Sequence[str], size: tuple[int, int], num_frames: int, fps: float, nuisance: float
) -> None:
    """Raise `DataError` for arguments of `sample_spec` that are out of range, or classes that do not exist."""
    for name in classes:
        if name not in MOTIONS:
            near = get_close_matches(str(name), CLASSES, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(CLASSES)}."
            raise DataError(f"Unknown motion class {name!r}: {hint}")
    if not classes or len(set(classes)) != len(classes):
        raise DataError(f"The classes {list(classes)} must be at least one and all different.")
    if len(size) != 2 or not all(32 <= s <= 4096 and int(s) == s and s % 2 == 0 for s in size):
        raise DataError(f"The size {size} must be an even width and an even height of 32 to 4096 px.")
    if not 4 <= num_frames <= 10_000 or not 0 < fps <= 1000:
        raise DataError(f"A clip has 4 to 10000 frames at up to 1000 a second, not {num_frames} at {fps}.")
    if not 0 <= nuisance <= 1:
        raise DataError(f"The nuisance {nuisance} must lie between 0 (the class's motion alone) and 1.")
