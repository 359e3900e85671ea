"""Pictures of results."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from datamodules.views import Views
from zoo.inference import Prediction

__all__ = ["plot_masks", "plot_predictions"]

BAR, BEST, TEXT, MUTED = "#c9d3df", "#2f6fb2", "#1d2733", "#6b7785"
FRAMES_SHOWN = 6
MASKS_SHOWN = 8
MASKED = 225  # grey of masked patches

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_predictions(rows: Sequence[tuple[str, Views, list[Prediction]]], out: str | os.PathLike) -> Path:
    """Draws, for each video, some of the frames the model saw and its best classes as bars beside them.

    Args:
        rows: (title, views, predictions), one per video.
        out: picture to write; the ending chooses the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    height = 2.0 + 0.25
    figure = plt.figure(figsize=(15, height * len(rows)), facecolor="white")
    grid = figure.add_gridspec(
        len(rows), FRAMES_SHOWN + 3, wspace=0.06, hspace=0.45, left=0.01, right=0.985,
        top=1 - 0.45 / (height * len(rows)), bottom=0.3 / (height * len(rows)),
    )  # fmt: skip
    for i, (title, views, predictions) in enumerate(rows):
        crops = len(views.video) // len(views.indices)
        middle = (len(views.indices) // 2) * crops + crops // 2
        clip, seconds = views.video[middle], views.seconds[len(views.indices) // 2]
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
                axis.set_title(title, loc="left", fontsize=11, color=TEXT, fontweight="bold")
        _bars(figure.add_subplot(grid[i, FRAMES_SHOWN:]), predictions)
    return _save(figure, out)


def plot_masks(views: Views, shown: Tensor, attention: Tensor | None, out: str | os.PathLike) -> Path:
    """Draws the frames of a clip, the attention that chose the patches where there is one, and what stays visible.

    Args:
        views: one view, uint8 (1, 3, T, H, W).
        shown: bool (T, side, side), True where a patch is visible.
        attention: (T, side, side), in any unit.
        out: picture to write; the ending chooses the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    frames = views.video[0].permute(1, 2, 3, 0).numpy()
    chosen = np.unique(np.linspace(0, len(frames) - 1, MASKS_SHOWN).round().astype(int))
    patch = frames.shape[1] // shown.shape[1]
    rows = ["frame", *([] if attention is None else ["attention"]), "visible"]
    figure, axes = plt.subplots(
        len(rows), len(chosen), figsize=(1.75 * len(chosen), 1.8 * len(rows)), squeeze=False, layout="constrained"
    )
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


def _save(figure: "Figure", out: str | os.PathLike) -> Path:
    """Writes a picture: it is there and complete, or not there. The figure is closed."""
    from matplotlib import pyplot as plt

    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.stem}-{os.getpid()}{out.suffix}")
    try:
        figure.savefig(beside, dpi=110)
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)
        plt.close(figure)
    return out


def _bars(axis, predictions: list[Prediction]) -> None:
    """Label, bar, per cent; label above its bar so that long class names fit."""
    for rank, prediction in enumerate(predictions):
        best = rank == 0
        axis.barh(rank, 1.0, height=0.36, color="#f0f3f7")
        axis.barh(rank, prediction.probability, height=0.36, color=BEST if best else BAR)
        weight = "bold" if best else "normal"
        axis.text(0.0, rank - 0.24, prediction.label, va="bottom", fontsize=9.5, color=TEXT, fontweight=weight)
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
