"""Pictures of results."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datamodules.views import Views
from zoo.inference import Prediction

__all__ = ["plot_predictions"]

BAR, BEST, TEXT, MUTED = "#c9d3df", "#2f6fb2", "#1d2733", "#6b7785"
FRAMES_SHOWN = 6


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
