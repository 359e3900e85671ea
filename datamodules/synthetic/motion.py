"""Generator of the demo set: short H.264 videos whose class can be told from the motion only.

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

The pieces: `sample_spec` draws a scene, `trajectory` and `render` turn it into frames, `captions` into sentences,
`write_video` into a file, `generate` into a data set. Everything is a function of (seed, split, index).
"""

import argparse
import csv
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.storage.processes import ProcessPool

__all__ = [
    "CLASSES",
    "COLOURS",
    "PATTERNS",
    "SHAPES",
    "ClipSpec",
    "captions",
    "clip_spec",
    "generate",
    "render",
    "render_clip",
    "sample_spec",
    "trajectory",
    "write_video",
]

# Part of metadata.json: goes up whenever the same arguments would give other frames or files.
VERSION = 3

AXES = ("x", "y", "size", "angle")


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
    def speed(self) -> float:
        """Of the drifting attribute: circles (picture widths, heights, size ranges, turns) per second."""
        return self.travels[MOTIONS[self.motion].axis] * self.fps / self.num_frames

    @property
    def pace(self) -> str:
        """The word for how far the drifting attribute goes in the clip."""
        low, high = TRAVEL
        fraction = (self.travels[MOTIONS[self.motion].axis] - low) / (high - low)
        return ("slowly", "steadily", "quickly")[min(2, int(3 * fraction))]

    @property
    def duration_seconds(self) -> float:
        return self.num_frames / self.fps

    @property
    def verb(self) -> str:
        return self.motion

    @property
    def noun(self) -> str:
        return self.shape


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
        ValueError: For an unknown motion or a number out of range.
    """
    _check_clip_arguments([motion], size, num_frames, fps, nuisance)
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


def trajectory(spec: ClipSpec) -> np.ndarray:
    """Values of x, y, size and angle at each frame, on circles: float64 (num_frames, 4) in [0, 1)."""
    motion = MOTIONS[spec.motion]
    ranks = np.arange(spec.num_frames)
    # 0 2 4 ... 5 3 1: each rank once, neighbours (the ends too) at most two ranks apart.
    there_and_back = np.concatenate([ranks[::2], ranks[1::2][::-1]])
    order = np.stack([np.roll(there_and_back, turn) for turn in spec.turns], axis=1)
    order[:, motion.axis] = ranks[:: motion.sign]
    return (np.asarray(spec.phases) + np.asarray(spec.travels) * order / spec.num_frames) % 1.0


# ---- rendering -----------------------------------------------------------------------------------------------------

# Shapes are signed distances (negative inside) in a square of side 2 around their centre, y downwards, tabulated once.
TABLE_HALF_WIDTH, TABLE_CELLS = 1.25, 320
Field = np.ndarray


def _disc(x: Field, y: Field, cx: float, cy: float, r: float) -> Field:
    return np.hypot(x - cx, y - cy) - r


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


def _arrow(x: Field, y: Field) -> tuple[Field, Field]:
    head = _polygon(x, y, (0.0, -0.8), (0.98, 0.0), (0.0, 0.8))
    return np.minimum(head, _polygon(x, y, (-0.95, -0.32), (0.1, -0.32), (0.1, 0.32), (-0.95, 0.32))), head


def _corner(x: Field, y: Field) -> tuple[Field, Field]:
    foot = _polygon(x, y, (0.35, -0.8), (0.9, -0.8), (0.9, 0.7), (0.35, 0.7))
    return np.minimum(foot, _polygon(x, y, (-0.95, 0.15), (0.9, 0.15), (0.9, 0.7), (-0.95, 0.7))), foot


def _half_disc(x: Field, y: Field) -> tuple[Field, Field]:
    return _disc(x, y, 0, 0, 0.88), -x


def _triangle(x: Field, y: Field) -> tuple[Field, Field]:
    return _polygon(x, y, (1.0, 0.0), (-0.65, 0.9), (-0.65, -0.9)), 0.1 - x


def _hammer(x: Field, y: Field) -> tuple[Field, Field]:
    head = _polygon(x, y, (0.3, -0.75), (0.9, -0.75), (0.9, 0.75), (0.3, 0.75))
    return np.minimum(head, _polygon(x, y, (-1.0, -0.22), (0.5, -0.22), (0.5, 0.22), (-1.0, 0.22))), head


def _moon(x: Field, y: Field) -> tuple[Field, Field]:
    return np.maximum(_disc(x, y, 0, 0, 0.95), -_disc(x, y, 0.1, -0.5, 0.7)), 0.1 - x


def _drop(x: Field, y: Field) -> tuple[Field, Field]:
    body = np.minimum(_disc(x, y, -0.3, 0, 0.65), _polygon(x, y, (1.0, 0.0), (0.025, 0.563), (0.025, -0.563)))
    return body, -x


def _flag(x: Field, y: Field) -> tuple[Field, Field]:
    cloth = _polygon(x, y, (-0.55, -0.95), (0.9, -0.42), (-0.55, 0.15))
    return np.minimum(cloth, _polygon(x, y, (-0.75, -0.95), (-0.4, -0.95), (-0.4, 0.98), (-0.75, 0.98))), cloth


# name -> (outline, part painted in the second colour); none looks the same after a turn of less than a full one
SHAPES: dict[str, Callable[[Field, Field], tuple[Field, Field]]] = {
    "arrow": _arrow,
    "corner": _corner,
    "disc": _half_disc,
    "triangle": _triangle,
    "hammer": _hammer,
    "moon": _moon,
    "drop": _drop,
    "flag": _flag,
}


@lru_cache
def _shape_tables(shape: str) -> tuple[np.ndarray, np.ndarray]:
    centres = (np.arange(TABLE_CELLS) + 0.5) / TABLE_CELLS * 2 - 1
    y, x = np.meshgrid(centres * TABLE_HALF_WIDTH, centres * TABLE_HALF_WIDTH, indexing="ij")
    outline, second = SHAPES[shape](x, y)
    # A frame of far away cells catches whatever falls outside of the table.
    return tuple(np.pad(t.astype(np.float32), 1, constant_values=1.0).ravel() for t in (outline, second))


def _coverage(distance_px: np.ndarray) -> np.ndarray:
    """Anti-aliasing: the share of a pixel that an edge at this signed distance leaves inside."""
    return np.clip(0.5 - distance_px, 0.0, 1.0)


def _shape_layers(spec: ClipSpec, path: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coverage (T, H, W) of the shape with its rim, of its inside, and of the second colour."""
    width, height = spec.size
    low, high = (r * min(width, height) for r in RADIUS)
    radius = (low * (high / low) ** path[:, 2]).astype(np.float32)[:, None, None]
    angle = (2 * np.pi * path[:, 3]).astype(np.float32)[:, None, None]

    def offset(position: np.ndarray, count: int) -> np.ndarray:  # the shorter way around the torus, in px
        return ((np.arange(count) + 0.5 - position[:, None] * count + count / 2) % count - count / 2).astype(np.float32)

    dx, dy = offset(path[:, 0], width)[:, None, :], offset(path[:, 1], height)[:, :, None]
    cos, sin = np.cos(angle) / radius, np.sin(angle) / radius  # y points down: a growing angle turns clockwise
    to_cell = TABLE_CELLS / (2 * TABLE_HALF_WIDTH)

    def cell(along: np.ndarray) -> np.ndarray:  # 0 and TABLE_CELLS + 1 are the far frame
        return np.clip((along + TABLE_HALF_WIDTH) * to_cell + 1, 0, TABLE_CELLS + 1).astype(np.int32)

    cells = cell(dy * cos - dx * sin) * (TABLE_CELLS + 2) + cell(dx * cos + dy * sin)
    outline, second = (table[cells] * radius for table in _shape_tables(spec.shape))
    rim = 0.016 * min(width, height)
    return _coverage(outline - rim), _coverage(outline), _coverage(np.maximum(outline, second))


def _background_level(spec: ClipSpec) -> np.ndarray:
    """The texture as brightness 0..1, float32 (T, H, W); periodic in both directions, drifting at constant speed."""
    width, height = spec.size
    time = np.arange(spec.num_frames) / spec.num_frames
    drift_x, drift_y = (
        (p + d * time)[:, None] for p, d in zip(spec.background_phase, spec.background_travel, strict=True)
    )
    x, y = (np.arange(width) + 0.5) / width - drift_x, (np.arange(height) + 0.5) / height - drift_y
    x, y = x.astype(np.float32)[:, None, :], y.astype(np.float32)[:, :, None]

    def wave(number: int, bend: np.ndarray | float = 0.0) -> np.ndarray:
        across, down, phase = spec.background_waves[number]
        return np.sin(np.float32(2 * np.pi) * (across * x + down * y + np.float32(phase) + bend))

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


def render(spec: ClipSpec) -> np.ndarray:
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


def render_clip(spec: ClipSpec | str, rng: np.random.Generator | None = None) -> tuple[np.ndarray, ClipSpec]:
    """Frames and their description, from a description or from a class name and a random generator.

    Returns:
        uint8 (num_frames, height, width, 3) RGB, and the `ClipSpec`.
    """
    if isinstance(spec, str):
        spec = sample_spec(rng or np.random.default_rng(), spec)
    return render(spec), spec


# ---- files ---------------------------------------------------------------------------------------------------------


def write_video(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Writes H.264 in MP4 (libx264, yuv420p, a key frame every second); the file has its name only once it is complete.

    Args:
        path: Where to; an existing file is replaced.
        frames: uint8 (T, H, W, 3) RGB, H and W even.
        fps: Frames per second.
    """
    import av

    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    rate = Fraction(fps).limit_denominator(1001)
    # mbtree=0: with it, libx264's bytes for pictures this small differ from run to run, one thread or not.
    options = {"crf": "20", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
    options["g"] = str(max(1, round(fps)))
    try:
        with av.open(str(unfinished), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=rate, options=options)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _write_annotations(folder: Path, clips: Sequence[tuple[str, str, ClipSpec]], classes: Sequence[str]) -> None:
    """Annotation files for (split, relative path, spec) in listing order."""
    for split in SPLITS:
        rows = [(path, spec.motion) for s, path, spec in clips if s == split]
        if rows:
            _write_csv(folder / f"{split}.csv", ("path", "label"), rows)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    _write_csv(
        folder / "captions.csv", ("video", "caption"), [(path, c) for _, path, spec in clips for c in spec.captions]
    )
    verbs, nouns = {v: i for i, v in enumerate(classes)}, {n: i for i, n in enumerate(SHAPES)}
    rows = []
    for number, (split, path, spec) in enumerate(clips):
        # As in EPIC-KITCHENS-100, some people of the held-out videos were never seen in training: P07 and P08. A person
        # goes round all classes, so that nobody has a favourite.
        person = f"P{number // len(classes) % (6 if split == 'train' else 8) + 1:02d}"
        times = (_timestamp(0.0), _timestamp(spec.duration_seconds))
        narration = f"{spec.verb.replace('_', ' ')} {spec.noun}"
        labels = (spec.verb, verbs[spec.verb], spec.noun, nouns[spec.noun])
        rows.append((f"{person}_{number}", person, path, *times, narration, *labels))
    times, labels = ("start_timestamp", "stop_timestamp"), ("verb", "verb_class", "noun", "noun_class")
    header = ("narration_id", "participant_id", "video", *times, "narration", *labels)
    _write_csv(folder / "actions.csv", header, rows)


def _timestamp(seconds: float) -> str:
    """HH:MM:SS.ff, as EPIC-KITCHENS-100 writes it."""
    minutes, hundredths = divmod(round(seconds * 100), 6000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{hundredths // 100:02d}.{hundredths % 100:02d}"


# ---- the data set --------------------------------------------------------------------------------------------------


def generate(
    root: str | Path,
    *,
    num_train: int = 2560,
    num_val: int = 160,
    num_test: int = 320,
    classes: Sequence[str] = CLASSES,
    size: tuple[int, int] = (64, 64),
    num_frames: int = 24,
    fps: float = 12,
    nuisance: float = NUISANCE,
    seed: int = 0,
    num_workers: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> Path:
    """Writes the data set and returns its folder.

        root/{train,val,test}/<class>/<number>.mp4
        root/{train,val,test}.csv    path,label                (label: the class's name)
        root/classes.txt             one name a line; the line number, from 0, is the class index
        root/captions.csv            video,caption             (three captions a video)
        root/actions.csv             columns of EPIC-KITCHENS-100: verb is the motion, noun the shape
        root/metadata.json           generator, version, arguments

    All of it is made in a folder beside `root` which takes its name at the very end: `root` is there and complete, or
    not there. A complete data set of the same arguments is left alone. Clips go round the classes in turn, so that
    every class has its share.

    Args:
        root: Folder to make.
        num_train, num_val, num_test: Clips in each split.
        classes: Subset of `CLASSES`, in the order of their indices.
        size, num_frames, fps, nuisance: As in `sample_spec`.
        seed: Same seed, same frames.
        num_workers: Processes; by default one for each CPU core, 0 means this one alone.
        progress: Show a bar.
        overwrite: Replace a data set of this generator that has other arguments or lacks files.

    Raises:
        ValueError: An argument is out of range.
        FileExistsError: `root` holds something else.
    """
    root = Path(root)
    _check_clip_arguments(classes, size, num_frames, fps, nuisance)
    counts = dict(zip(SPLITS, (num_train, num_val, num_test), strict=True))
    if min(counts.values()) < 0 or sum(counts.values()) == 0:
        raise ValueError(f"The numbers of clips {counts} must not be negative and not all zero.")
    look = {"size": (int(size[0]), int(size[1])), "num_frames": num_frames, "fps": fps, "nuisance": nuisance}
    arguments = {"seed": seed, **{f"num_{s}": n for s, n in counts.items()}, "classes": list(classes), **look}
    metadata = {"generator": "datamodules.synthetic", "version": VERSION, "arguments": arguments}
    metadata = json.loads(json.dumps(metadata))  # tuples become lists, as in the file it is compared with
    clips = list(_listing(counts, classes, seed, look))
    if _already_there(root, metadata, [path for _, path, _ in clips], overwrite):
        if progress:
            print(f"{root} already holds this data set, complete: left as it is.")
        return root

    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{root.name}.unfinished-", dir=root.parent))
    try:
        unfinished.chmod(0o777 & ~_umask())  # mkdtemp's folders are private
        for folder in sorted({(unfinished / path).parent for _, path, _ in clips}):
            folder.mkdir(parents=True)
        jobs = [(unfinished / path, spec) for _, path, spec in clips]
        for _ in _bar(_run(_write_clip, jobs, num_workers), len(jobs), f"Writing {root}", progress):
            pass
        _write_annotations(unfinished, clips, classes)
        (unfinished / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
        _move_into_place(unfinished, root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return root


def _listing(
    counts: dict[str, int], classes: Sequence[str], seed: int, look: dict[str, Any]
) -> Iterator[tuple[str, str, ClipSpec]]:
    for split, count in counts.items():
        for index in range(count):
            motion = classes[index % len(classes)]
            yield split, f"{split}/{motion}/{index:05d}.mp4", clip_spec(seed, split, index, motion, **look)


def _write_clip(job: tuple[Path, ClipSpec]) -> None:
    path, spec = job
    write_video(path, render(spec), spec.fps)


def _run(function: Callable[[Any], None], jobs: Sequence[Any], num_workers: int | None) -> Iterator[None]:
    """Yields once for each finished job, in order."""
    num_workers = min(os.cpu_count() or 1, len(jobs) // 16) if num_workers is None else num_workers
    if num_workers <= 1:  # a process to help costs more than a few clips
        yield from map(function, jobs)
        return
    # "spawn": forking a process in which torch has already started threads can hang.
    with ProcessPool(num_workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(function, jobs, chunksize=8)


def _bar(steps: Iterator[None], total: int, title: str, progress: bool) -> Iterator[None]:
    if not progress:
        yield from steps
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        yield from bar.track(steps, total=total, description=title)


def _already_there(root: Path, metadata: dict[str, Any], paths: Sequence[str], overwrite: bool) -> bool:
    """Whether root is what would be made. Raises where it is something that may not be replaced."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / "metadata.json").read_text(encoding="utf-8"))
        ours = found["generator"] == metadata["generator"]
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:  # never replaced, not even with overwrite: it may be someone's videos
        raise FileExistsError(f"{root} is there and was not made by this generator: choose a new or an empty folder.")
    missing = sum(not (root / path).is_file() for path in paths)
    if found == metadata and not missing:
        return True
    if overwrite:
        return False
    if found != metadata:
        old, new = ({"version": m.get("version"), **m.get("arguments", {})} for m in (found, metadata))
        differences = ", ".join(f"{k} {old.get(k)} (asked: {v})" for k, v in new.items() if old.get(k) != v)
        problem = f"a data set with other settings: {differences}"
    else:
        problem = f"this data set, but {missing} of its {len(paths)} videos are missing"
    raise FileExistsError(f"{root} holds {problem}; choose another folder or ask for it to be overwritten.")


def _move_into_place(unfinished: Path, root: Path) -> None:
    if not root.exists() or not any(root.iterdir()):
        os.replace(unfinished, root)  # an empty folder gives way
        return
    old = Path(tempfile.mkdtemp(prefix=f".{root.name}.old-", dir=root.parent))
    os.replace(root, old)
    os.replace(unfinished, root)
    shutil.rmtree(old)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _check_clip_arguments(
    classes: Sequence[str], size: tuple[int, int], num_frames: int, fps: float, nuisance: float
) -> None:
    for name in classes:
        if name not in MOTIONS:
            near = get_close_matches(str(name), CLASSES, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(CLASSES)}."
            raise ValueError(f"Unknown motion class {name!r}: {hint}")
    if not classes or len(set(classes)) != len(classes):
        raise ValueError(f"The classes {list(classes)} must be at least one and all different.")
    if len(size) != 2 or not all(32 <= s <= 4096 and int(s) == s and s % 2 == 0 for s in size):
        raise ValueError(f"The size {size} must be an even width and an even height of 32 to 4096 px.")
    if not 4 <= num_frames <= 10_000 or not 0 < fps <= 1000:
        raise ValueError(f"A clip has 4 to 10000 frames at up to 1000 a second, not {num_frames} at {fps}.")
    if not 0 <= nuisance <= 1:
        raise ValueError(f"The nuisance {nuisance} must lie between 0 (the class's motion alone) and 1.")


# ---- contact sheet and command line --------------------------------------------------------------------------------


def plot_sheet(path: str | Path, specs: Sequence[ClipSpec], num_columns: int = 8) -> None:
    """Draws a picture with one row per clip: name, caption, and frames evenly spread over time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = specs[0].size
    cell_width = 1.45
    cell_height = cell_width * height / width
    left, top, bottom = 2.5, 0.75, 0.45
    gap = 0.06
    total_width = left + num_columns * (cell_width + gap) + 0.15
    total_height = top + len(specs) * (cell_height + gap) + bottom
    figure = Figure((total_width, total_height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)

    def place(x: float, y: float) -> tuple[float, float]:  # inches from the upper left corner
        return x / total_width, 1 - y / total_height

    figure.text(*place(0.15, 0.32), "Motion set: one clip of each class", size=14, weight="bold", va="center")
    for row, spec in enumerate(specs):
        y = top + row * (cell_height + gap)
        middle = y + cell_height / 2
        figure.text(*place(0.15, middle - 0.24), spec.motion.replace("_", " "), size=11, weight="bold", va="center")
        words = _wrap(min(spec.captions, key=len), 34)
        figure.text(*place(0.15, middle + 0.16), words, size=8, color="0.35", va="center", linespacing=1.3)
        frames = render(spec)
        for column, t in enumerate(np.linspace(0, spec.num_frames - 1, num_columns).round().astype(int)):
            x0, y1 = place(left + column * (cell_width + gap), y + cell_height)
            axes = figure.add_axes((x0, y1, cell_width / total_width, cell_height / total_height))
            axes.imshow(frames[t], interpolation="lanczos")
            axes.axis("off")
            if row == 0:
                axes.set_title(f"{t / spec.fps:.1f} s", size=9, color="0.35", pad=4)
    note = "Only the named motion drifts; position, size, angle and background wander without telling the class."
    figure.text(*place(left, total_height - 0.2), note, size=9, color="0.35", va="center")
    figure.savefig(path)


def _wrap(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 64x48") from None
    return width, height


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.synthetic",
        description="Writes a small video data set whose eight classes differ in motion only: a shape that moves left, "
        "right, up or down, grows, shrinks, or turns one way or the other, while all else about it wanders there and "
        "back. Real H.264 .mp4 files in a folder per class, with the annotation files a real data set would have.",
        epilog="example: python -m datamodules.synthetic data/motion --train 640 --nuisance 1 --plot motion.png",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder to make: never half-written, left alone where complete")
    add("--train", type=int, default=2560, metavar="N", help="training clips")
    add("--val", type=int, default=160, metavar="N", help="validation clips")
    add("--test", type=int, default=320, metavar="N", help="test clips")
    add("--classes", nargs="+", default=list(CLASSES), metavar="CLASS", help="which motions")
    add("--size", type=_size, default="64x64", metavar="WxH", help="picture size in pixels, both even")
    add("--frames", type=int, default=24, metavar="N", help="frames in a clip")
    add("--fps", type=float, default=12.0, help="frames per second")
    add("--nuisance", type=float, default=NUISANCE, metavar="0..1", help="how far the attributes go that do not matter")
    add("--seed", type=int, default=0, help="same seed, same frames")
    add("--workers", type=int, metavar="N", help="processes; 0: no others; without it: one for each core")
    add("--overwrite", action="store_true", help="replace an earlier data set of this generator")
    add("--plot", type=Path, metavar="FILE.png", help="also draw one clip of each class")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the unfinished folder is removed
    look = {"size": args.size, "num_frames": args.frames, "fps": args.fps, "nuisance": args.nuisance}
    try:
        root = generate(
            args.out,
            num_train=args.train,
            num_val=args.val,
            num_test=args.test,
            classes=args.classes,
            seed=args.seed,
            num_workers=args.workers,
            overwrite=args.overwrite,
            **look,
        )
        if args.plot:
            args.plot.parent.mkdir(parents=True, exist_ok=True)
            # clips of the first split that has any, so the sheet shows what is in the folder
            split = next(s for s in ("val", "test", "train") if getattr(args, s))
            plot_sheet(args.plot, [clip_spec(args.seed, split, i, c, **look) for i, c in enumerate(args.classes)])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    megabytes = sum(file.stat().st_size for file in root.rglob("*.mp4")) / 1e6
    clips = ", ".join(f"{getattr(args, s)} {s}" for s in SPLITS if getattr(args, s))
    print(
        f"{root}: {clips} clips of {len(args.classes)} classes, {args.frames} frames at {args.fps:g} fps, "
        f"{args.size[0]}x{args.size[1]} px, {megabytes:.1f} MB" + (f"; picture in {args.plot}" if args.plot else "")
    )
    return 0
