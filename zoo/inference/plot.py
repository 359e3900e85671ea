"""Pictures of results."""

import os
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from torch import Tensor

from datamodules.video.views import Views
from zoo.files import PICTURES, written
from zoo.inference.long_videos import Segment, Timeline
from zoo.inference.predict import Prediction
from zoo.printable import clock, printable

__all__ = ["plot_masks", "plot_predictions", "plot_timelines", "save_figure"]

BAR, BEST, TEXT, MUTED = "#c9d3df", "#2f6fb2", "#1d2733", "#6b7785"
RIGHT, WRONG = "#2e7d4f", "#c0492f"
FRAMES_SHOWN = 6
MASKS_SHOWN = 8
MASKED = 225  # grey of masked patches
ROWS = 12  # classes of a timeline
WIDE = 14.0  # inches of a timeline
LANES = 6  # for names of segments that are too short to hold them
LABEL = 8.5  # size of those names
PEAK = 0.74  # of a row's height is a probability of 1
COLOURS = ("#2f6fb2", "#d9822b", "#3a9a5b", "#b8437a", "#7a5bc0", "#1f9aa5", "#c0492f", "#7d8a1f", "#5b7fe0", "#a8763e",
           "#4f5b66", "#d07fb0")  # fmt: skip
TICK_SECONDS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)


def plot_predictions(
    rows: Sequence[tuple[str, Tensor, np.ndarray, list[Prediction], str | None]], out: str | os.PathLike[str]
) -> Path:
    """Draw, for each video, some of the frames the model saw and its best classes as bars beside them.

    Args:
        rows: (title, view, seconds, predictions, truth), one per video: a view uint8 (3, T, H, W), the times of its
            frames, and the right class where it is known: answers are then marked as right or wrong.
        out: picture to write; the ending chooses the format.
    """
    height = 2.0 + 0.25
    figure = Figure(figsize=(15, height * len(rows)), facecolor="white")
    grid = figure.add_gridspec(
        len(rows), FRAMES_SHOWN + 3, wspace=0.06, hspace=0.45, left=0.01, right=0.985,
        top=1 - 0.45 / (height * len(rows)), bottom=0.3 / (height * len(rows)),
    )  # fmt: skip
    for i, (title, clip, seconds, predictions, truth) in enumerate(rows):
        shown = np.unique(np.linspace(0, clip.shape[1] - 1, FRAMES_SHOWN).round().astype(int))
        for j, t in enumerate(shown):
            axis = figure.add_subplot(grid[i, j])
            axis.imshow(clip[:, t].permute(1, 2, 0).numpy())
            axis.set_axis_off()
            axis.text(
                0.5,
                -0.04,
                f"{seconds[t]:.1f} s",
                transform=axis.transAxes,
                ha="center",
                va="top",
                fontsize=9,
                color=MUTED,
            )
            if j == 0:
                axis.set_title(
                    _literal(_cut(printable(title), 11, 9.5, "bold")),
                    loc="left",
                    fontsize=11,
                    color=TEXT,
                    fontweight="bold",
                )
        _bars(figure.add_subplot(grid[i, FRAMES_SHOWN:]), predictions, truth)
    return save_figure(figure, out)


def plot_masks(views: Views, shown: Tensor, attention: Tensor | None, out: str | os.PathLike[str]) -> Path:
    """Draw the frames of a clip, the attention that chose the patches where there is one, and what stays visible.

    Args:
        views: one view, uint8 (1, 3, T, H, W).
        shown: bool (T, side, side), True where a patch is visible.
        attention: (T, side, side), in any unit.
        out: picture to write; the ending chooses the format.
    """
    frames = views.video[0].permute(1, 2, 3, 0).numpy()
    chosen = np.unique(np.linspace(0, len(frames) - 1, MASKS_SHOWN).round().astype(int))
    patch = frames.shape[1] // shown.shape[1]
    rows = ["frame", *([] if attention is None else ["attention"]), "visible"]
    figure = Figure(figsize=(1.75 * len(chosen), 1.8 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(chosen), squeeze=False)
    for column, t in zip(axes.T, chosen, strict=True):
        mask = shown[t].numpy().repeat(patch, 0).repeat(patch, 1)[..., None]
        pictures = {"frame": frames[t], "visible": np.where(mask, frames[t], np.uint8(MASKED))}
        for axis, row in zip(column, rows, strict=True):
            axis.imshow(pictures.get(row, frames[t]))
            if row == "attention" and attention is not None:
                # Stretched over the frame's own range: it is what the frame's patches are drawn by.
                extent = (-0.5, frames.shape[2] - 0.5, frames.shape[1] - 0.5, -0.5)
                axis.imshow(attention[t].numpy(), cmap="magma", alpha=0.75, extent=extent, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        column[0].set_title(f"{views.seconds[0][t]:.1f} s", fontsize=9, color=MUTED)
    for axis, row in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel(row, fontsize=10, color=TEXT)
    return save_figure(figure, out)


def plot_timelines(rows: Sequence[tuple[str, Timeline]], out: str | os.PathLike[str]) -> Path:
    """Draw, for each video, pictures of it, a strip with its segments, and curves of its classes.

    Each segment has its name in it or below it; where segments are too many for their names, a line says how many have
    none. Curves show the probability of each class that is the best one at some time, in colour where it is: the 12
    longest, in the order in which they come.

    Args:
        rows: (title, timeline), one per video.
        out: picture to write; the ending chooses the format.
    """
    drawn = [_TimelineDrawing(title, timeline) for title, timeline in rows]
    height = sum(drawing.height for drawing in drawn)
    figure = Figure(figsize=(WIDE, height), facecolor="white")
    top = height
    for drawing in drawn:
        drawing.draw(figure, top)
        top -= drawing.height
    return save_figure(figure, out)


class _TimelineDrawing:
    """One video's part of a picture. Everything is placed in inches, so that names, which may be long, stay inside."""

    title, stills, strip, lane, row, ticks, between = 0.36, 0.95, 0.42, 0.17, 0.42, 0.3, 0.1  # heights
    edge, scale, names = 0.15, 0.55, 3.0  # widths: of the margin, of the probabilities' scale, of the names at most

    def __init__(self, title: str, timeline: Timeline) -> None:
        self.timeline = timeline
        self.classes = dict(zip(_longest(timeline), COLOURS, strict=False))
        room = WIDE - 2 * self.edge
        length = f"  ({clock(timeline.duration, tenths=False)})"
        self.heading = _cut(printable(title), 11, room - _inches(length, 11, "bold"), "bold") + length
        self.labels = [_cut(printable(timeline.labels[index]), 9.5, self.names) for index in self.classes]
        self.left = self.edge + max(_inches(label, 9.5) for label in self.labels) + 0.1
        self.width = WIDE - self.left - self.scale
        self.placed, self.lanes, nameless = _place_names(timeline, self.width)
        hidden = len({segment.index for segment in timeline.segments()}) - len(self.classes)
        self.notes = [f"grey: {hidden} more classes, each for a shorter time"] if hidden > 0 else []
        self.notes += [f"{nameless} short segments without a name here; --segments lists all"] if nameless else []
        self.height = sum(
            (self.title, self.stills, self.strip, self.lanes * self.lane, len(self.classes) * self.row, self.ticks,
             self.ticks if self.notes else 0.0, 3 * self.between)
        )  # fmt: skip

    def draw(self, figure: Figure, top: float) -> None:
        """Draw from `top` downwards, in inches from the bottom of the figure."""
        self.figure, self.top = figure, top - self.title
        figure.text(
            self.edge / WIDE, (top - 0.24) / figure.get_figheight(), _literal(self.heading), fontsize=11, color=TEXT,
            fontweight="bold",
        )  # fmt: skip
        _draw_stills(self._axis(self.stills), self.timeline)
        self._draw_segments(self._axis(self.strip + self.lanes * self.lane))
        self._draw_curves(self._axis(len(self.classes) * self.row))

    def _axis(self, height: float) -> Axes:
        """An axis over time, below the last one."""
        bottom, whole = self.top - height, self.figure.get_figheight()
        axis = self.figure.add_axes((self.left / WIDE, bottom / whole, self.width / WIDE, height / whole))
        axis.set_xlim(0, self.timeline.duration)
        self.top = bottom - self.between
        return axis

    def _draw_segments(self, axis: Axes) -> None:
        """The strip, its top at 0 and its bottom at -1, and lanes of names below it."""
        step = self.lane / self.strip
        for segment, name, lane, middle in self.placed:
            colour = self.classes.get(segment.index, BAR)
            axis.barh(-0.5, segment.end - segment.start, left=segment.start, height=1, color=colour, linewidth=0)
            centre = (segment.start + segment.end) / 2
            if lane == 0:
                inside = "white" if segment.index in self.classes else TEXT
                axis.text(centre, -0.5, name, ha="center", va="center", fontsize=LABEL, color=inside)
            elif lane > 0:
                y = -1 - step * (lane - 0.45)
                axis.plot((centre, centre), (-1, y), color=colour, linewidth=0.6, zorder=0.5)
                axis.text(
                    middle, y, name, ha="center", va="center", fontsize=LABEL, clip_on=False,
                    color=TEXT, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
                )  # fmt: skip
        axis.set_ylim(-1 - step * self.lanes, 0)
        axis.set_axis_off()

    def _draw_curves(self, axis: Axes) -> None:
        edges, scores = self.timeline.pieces()
        best = scores.argmax(1).numpy()
        floors = np.arange(len(self.classes))[::-1].astype(float)
        for floor, (index, colour) in zip(floors, self.classes.items(), strict=True):
            height = PEAK * scores[:, index].numpy()
            base = np.full(len(edges), floor)
            for shown, shade in ((height, "#dfe4ea"), (np.where(best == index, height, 0.0), colour)):
                axis.fill_between(
                    edges, base, base + np.append(shown, shown[-1]), step="post", color=shade, linewidth=0
                )
            axis.axhline(floor, color="#dfe4ea", linewidth=0.8, zorder=0)
            axis.axhline(floor + PEAK, color="#eef1f4", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axis.set_yticks(floors + PEAK / 2, map(_literal, self.labels), fontsize=9.5, color=TEXT)
        axis.set_ylim(-0.03, len(floors) - 0.03)
        axis.tick_params(left=False, color=MUTED)
        axis.spines[["top", "left", "right"]].set_visible(False)
        scale = axis.secondary_yaxis("right")
        scale.set_yticks(np.sort([*floors, *(floors + PEAK)]), ["0", "100 %"] * len(floors), fontsize=6.5, color=MUTED)
        scale.tick_params(length=2, pad=2, color=MUTED)
        scale.spines["right"].set_visible(False)
        duration = self.timeline.duration
        distance = next((t for t in TICK_SECONDS if duration <= 14 * t), TICK_SECONDS[-1])
        ticks = np.arange(0, duration + 1e-6, distance)
        axis.set_xticks(ticks, [clock(tick, tenths=False) for tick in ticks], fontsize=9, color=MUTED)
        axis.set_xlabel("; ".join(self.notes), fontsize=9, color=MUTED)


def _place_names(timeline: Timeline, width: float) -> tuple[list[tuple[Segment, str, int, float]], int, int]:
    """Find room for the name of each segment, on a strip of so many inches.

    Returns:
        For each segment its name, a lane (0 is the strip, 1 and more lie below it, -1 is none) and where on the axis of
        time the name's middle is; how many lanes there are; and how many segments have no room for their name.
    """
    inch, gap = timeline.duration / width, 0.08
    ends = [-gap] * LANES
    placed = []
    for segment in timeline.segments():
        name = _cut(printable(segment.label), LABEL, 2.5)
        wide = _inches(name, LABEL) + gap
        middle, lane = (segment.start + segment.end) / 2, 0
        if (segment.end - segment.start) / inch < wide:
            left = min(max(middle / inch - wide / 2, 0), width - wide)
            lane = next((number for number, end in enumerate(ends, start=1) if end <= left), -1)
            if lane > 0:
                ends[lane - 1] = left + wide
                middle = (left + wide / 2) * inch
        placed.append((segment, _literal(name), lane, middle))
    lanes = [lane for _, _, lane, _ in placed]
    return placed, max(lanes, default=0), lanes.count(-1)


@lru_cache(maxsize=10_000)
def _inches(text: str, size: float, weight: str = "normal") -> float:
    """Width of a text, with some room for how letters are fitted to pixels."""
    if not text.strip():  # matplotlib finds no extent in blanks, and fails on nothing
        return 0.0
    extents = TextPath((0, 0), _literal(text), size=size, prop=FontProperties(weight=weight)).get_extents()
    return 1.05 * extents.width / 72


def _cut(text: str, size: float, room: float, weight: str = "normal") -> str:
    """The text, or its beginning and an ellipsis where it is wider than so many inches."""
    text = text[:400]
    if _inches(text, size, weight) <= room:
        return text
    fitting = bisect_right(range(len(text)), room, key=lambda kept: _inches(f"{text[:kept]}…", size, weight))
    return f"{text[: max(fitting - 1, 0)]}…"  # one of those that fit has no letter


def _longest(timeline: Timeline) -> list[int]:
    """Up to `ROWS` classes that are the best one for the longest time, in the order in which they come."""
    lengths: dict[int, float] = {}
    for segment in timeline.segments():
        lengths[segment.index] = lengths.get(segment.index, 0.0) + segment.end - segment.start
    kept = sorted(lengths, key=lambda index: -lengths[index])[:ROWS]
    return [index for index in lengths if index in kept]


def _draw_stills(axis: Axes, timeline: Timeline) -> None:
    slots = min(13, len(timeline.stills))
    middles = (np.arange(slots) + 0.5) * timeline.duration / slots
    width = timeline.duration / 13 * 0.94
    for middle in middles:
        nearest = np.abs(timeline.still_seconds - middle).argmin()
        extent = (middle - width / 2, middle + width / 2, 0, 1)
        axis.imshow(timeline.stills[nearest].permute(1, 2, 0).numpy(), extent=extent, aspect="auto")
    axis.set_ylim(0, 1)
    axis.set_axis_off()


def save_figure(figure: Figure, out: str | os.PathLike[str]) -> Path:
    """Write a picture; the ending chooses the format."""
    out = Path(out)
    with written(out, PICTURES) as beside:
        figure.savefig(beside, dpi=110, format=out.suffix[1:].lower())
    return out


def _literal(text: str) -> str:
    """Text of others as matplotlib draws it: without formulas, which it would look for between dollar signs."""
    return printable(text).replace("$", r"\$")


def _bars(axis: Axes, predictions: list[Prediction], truth: str | None) -> None:
    """Label, bar, per cent; label above its bar so that long class names fit. A known truth is marked."""
    labels = [prediction.label for prediction in predictions]
    for rank, prediction in enumerate(predictions):
        best, right = rank == 0, prediction.label == truth
        colour = BAR if not best else BEST if truth is None else RIGHT if right else WRONG
        axis.barh(rank, 1.0, height=0.36, color="#f0f3f7")
        axis.barh(rank, prediction.probability, height=0.36, color=RIGHT if right else colour)
        weight = "bold" if best or right else "normal"
        mark = "" if truth is None else "✓ " if right else "✗ " if best else ""
        style: dict[str, Any] = {
            "va": "bottom",
            "fontsize": 9.5,
            "color": RIGHT if right else TEXT,
            "fontweight": weight,
        }
        axis.text(0.0, rank - 0.24, _literal(mark + _cut(printable(prediction.label), 9.5, 3.7, weight)), **style)
        axis.text(1.0, rank - 0.24, f"{prediction.probability:.1%}", ha="right", **style)
    if truth is not None:
        known = _cut(printable(truth), 9.5, 3.0)
        verdict, colour = ("right", RIGHT) if truth in labels[:1] else (f"wrong; the folder says {known}", WRONG)
        axis.text(0.0, -0.82, _literal(verdict), va="bottom", fontsize=9.5, color=colour)
    axis.set_xlim(-0.08, 1.02)
    axis.set_ylim(max(len(predictions), 3) - 0.5, -0.75)
    axis.set_axis_off()
