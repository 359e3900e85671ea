"""Pictures of results."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from datamodules.video.views import Views
from zoo.files import PICTURES, check_target, written
from zoo.inference.long_videos import Timeline
from zoo.inference.predict import Prediction
from zoo.printable import clock, printable

__all__ = ["plot_masks", "plot_predictions", "plot_timelines"]

BAR, BEST, TEXT, MUTED = "#c9d3df", "#2f6fb2", "#1d2733", "#6b7785"
FRAMES_SHOWN = 6
MASKS_SHOWN = 8
MASKED = 225  # grey of masked patches
ROWS = 12  # classes of a timeline
COLOURS = ("#2f6fb2", "#d9822b", "#3a9a5b", "#b8437a", "#7a5bc0", "#1f9aa5", "#c0492f", "#7d8a1f", "#5b7fe0", "#a8763e",
           "#4f5b66", "#d07fb0")  # fmt: skip
TICK_SECONDS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)


def plot_predictions(rows: Sequence[tuple[str, Tensor, np.ndarray, list[Prediction]]], out: str | os.PathLike) -> Path:
    """Draw, for each video, some of the frames the model saw and its best classes as bars beside them.

    Args:
        rows: (title, view, seconds, predictions), one per video: a view uint8 (3, T, H, W) and the times of its frames.
        out: picture to write; the ending chooses the format.
    """
    check_target(out, PICTURES)
    height = 2.0 + 0.25
    figure = Figure(figsize=(15, height * len(rows)), facecolor="white")
    grid = figure.add_gridspec(
        len(rows), FRAMES_SHOWN + 3, wspace=0.06, hspace=0.45, left=0.01, right=0.985,
        top=1 - 0.45 / (height * len(rows)), bottom=0.3 / (height * len(rows)),
    )  # fmt: skip
    for i, (title, clip, seconds, predictions) in enumerate(rows):
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
                axis.set_title(_literal(title), loc="left", fontsize=11, color=TEXT, fontweight="bold")
        _bars(figure.add_subplot(grid[i, FRAMES_SHOWN:]), predictions)
    return _save(figure, out)


def plot_masks(views: Views, shown: Tensor, attention: Tensor | None, out: str | os.PathLike) -> Path:
    """Draw the frames of a clip, the attention that chose the patches where there is one, and what stays visible.

    Args:
        views: one view, uint8 (1, 3, T, H, W).
        shown: bool (T, side, side), True where a patch is visible.
        attention: (T, side, side), in any unit.
        out: picture to write; the ending chooses the format.
    """
    check_target(out, PICTURES)
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
            if row == "attention":
                # Stretched over the frame's own range: it is what the frame's patches are drawn by.
                extent = (-0.5, frames.shape[2] - 0.5, frames.shape[1] - 0.5, -0.5)
                axis.imshow(attention[t].numpy(), cmap="magma", alpha=0.75, extent=extent, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        column[0].set_title(f"{views.seconds[0][t]:.1f} s", fontsize=9, color=MUTED)
    for axis, row in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel(row, fontsize=10, color=TEXT)
    return _save(figure, out)


def plot_timelines(rows: Sequence[tuple[str, Timeline]], out: str | os.PathLike) -> Path:
    """Draw, for each video, pictures of it, a strip with its labels, and below it the probability of each class that
    is the best one at some time, in colour where it is: the 12 longest, in the order in which they come.

    Args:
        rows: (title, timeline), one per video.
        out: picture to write; the ending chooses the format.
    """
    check_target(out, PICTURES)
    chosen = [_longest(timeline) for _, timeline in rows]
    heights = [[0.95, 0.42, 0.36 * len(classes) + 0.1] for classes in chosen]
    figure = Figure(figsize=(14, sum(map(sum, heights)) + 1.05 * len(rows)), facecolor="white", layout="constrained")
    parts = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=[sum(h) + 1.05 for h in heights])[:, 0]
    for part, (title, timeline), classes, height in zip(parts, rows, chosen, heights, strict=True):
        pictures, strip, curves = part.subplots(3, 1, sharex=True, height_ratios=height)
        hidden = len({segment.index for segment in timeline.segments()}) - len(classes)
        part.suptitle(
            f"{_literal(title)}  ({clock(timeline.duration, tenths=False)})",
            x=0.01, ha="left", fontsize=11, color=TEXT, fontweight="bold",
        )  # fmt: skip
        colours = dict(zip(classes, COLOURS, strict=False))
        _draw_stills(pictures, timeline)
        _draw_strip(strip, timeline, colours)
        _draw_curves(curves, timeline, colours)
        curves.set_xlim(0, timeline.duration)
        distance = next((t for t in TICK_SECONDS if timeline.duration <= 14 * t), TICK_SECONDS[-1])
        ticks = np.arange(0, timeline.duration + 1e-6, distance)
        curves.set_xticks(ticks, [clock(tick, tenths=False) for tick in ticks], fontsize=9, color=MUTED)
        if hidden > 0:
            curves.set_xlabel(f"grey: {hidden} more classes, each for a shorter time", fontsize=9, color=MUTED)
    return _save(figure, out)


def _longest(timeline: Timeline) -> list[int]:
    """Up to `ROWS` classes that are the best one for the longest time, in the order in which they come."""
    lengths: dict[int, float] = {}
    for segment in timeline.segments():
        lengths[segment.index] = lengths.get(segment.index, 0.0) + segment.end - segment.start
    kept = sorted(lengths, key=lambda index: -lengths[index])[:ROWS]
    return [index for index in lengths if index in kept]


def _draw_stills(axis, timeline: Timeline) -> None:
    slots = min(13, len(timeline.stills))
    middles = (np.arange(slots) + 0.5) * timeline.duration / slots
    width = timeline.duration / 13 * 0.94
    for middle in middles:
        nearest = np.abs(timeline.still_seconds - middle).argmin()
        extent = (middle - width / 2, middle + width / 2, 0, 1)
        axis.imshow(timeline.stills[nearest].permute(1, 2, 0).numpy(), extent=extent, aspect="auto")
    axis.set_ylim(0, 1)
    axis.set_axis_off()


def _draw_strip(axis, timeline: Timeline, colours: dict[int, str]) -> None:
    letters_wide = 125  # that fit side by side
    for segment in timeline.segments():
        length = segment.end - segment.start
        axis.barh(0, length, left=segment.start, height=1, color=colours.get(segment.index, BAR), linewidth=0)
        room = int(length / timeline.duration * letters_wide)
        label = printable(segment.label)
        if len(label) <= room:
            middle = (segment.start + segment.end) / 2
            axis.text(middle, 0, _literal(label), ha="center", va="center", fontsize=9, color="white", clip_on=True)
    axis.set_ylim(-0.5, 0.5)
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.tick_params(bottom=False, labelbottom=False)


def _draw_curves(axis, timeline: Timeline, colours: dict[int, str]) -> None:
    edges, scores = timeline.pieces()
    best = scores.argmax(1).numpy()
    for row, (index, colour) in enumerate(colours.items()):
        height = 0.86 * scores[:, index].numpy()
        floor = np.full(len(height) + 1, len(colours) - 1.0 - row)
        for shown, shade in ((height, "#dfe4ea"), (np.where(best == index, height, 0.0), colour)):
            axis.fill_between(edges, floor, floor + np.append(shown, shown[-1]), step="post", color=shade, linewidth=0)
        axis.axhline(floor[0], color="#eef1f4", linewidth=0.8, zorder=0)
    names = [printable(timeline.labels[index]) for index in colours]
    names = [_literal(name if len(name) <= 40 else f"{name[:39]}…") for name in names]
    axis.set_yticks(np.arange(len(names))[::-1] + 0.4, names, fontsize=9.5, color=TEXT)
    axis.set_ylim(-0.05, len(names) - 0.05)
    axis.tick_params(left=False, color=MUTED)
    axis.spines[["top", "left", "right"]].set_visible(False)


def _save(figure: Figure, out: str | os.PathLike) -> Path:
    out = Path(out)
    with written(out, PICTURES) as beside:
        figure.savefig(beside, dpi=110, format=out.suffix[1:].lower())
    return out


def _literal(text: str) -> str:
    """Text of others as matplotlib draws it: without formulas, which it would look for between dollar signs."""
    return printable(text).replace("$", r"\$")


def _bars(axis, predictions: list[Prediction]) -> None:
    """Label, bar, per cent; label above its bar so that long class names fit."""
    for rank, prediction in enumerate(predictions):
        best = rank == 0
        axis.barh(rank, 1.0, height=0.36, color="#f0f3f7")
        axis.barh(rank, prediction.probability, height=0.36, color=BEST if best else BAR)
        weight = "bold" if best else "normal"
        label = _literal(prediction.label)
        axis.text(0.0, rank - 0.24, label, va="bottom", fontsize=9.5, color=TEXT, fontweight=weight)
        axis.text(
            1.0,
            rank - 0.24,
            f"{prediction.probability:.1%}",
            va="bottom",
            ha="right",
            fontsize=9.5,
            color=TEXT,
            fontweight=weight,
        )
    axis.set_xlim(-0.08, 1.02)
    axis.set_ylim(max(len(predictions), 3) - 0.5, -0.75)
    axis.set_axis_off()
