"""Figures of a report, as PNG; each is drawn for a light and for a dark page."""

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from lightning_modules.report.numbers import Calibration

__all__ = ["Both", "Theme", "both", "draw_confusion", "draw_ranks", "draw_recall", "draw_reliability", "on_white"]

COUNTED = 20  # classes up to which the cells of a confusion matrix have their numbers
LETTERS = 24  # of a class's name
DPI = 110


class Theme(NamedTuple):
    """Colours of a page."""

    paper: str
    text: str
    muted: str
    line: str
    accent: str
    second: str


LIGHT = Theme("#ffffff", "#1d2733", "#5b6775", "#dfe4ea", "#2f6fb2", "#c2671b")
DARK = Theme("#161b22", "#e3e8ee", "#9aa7b5", "#333c47", "#6aa5e3", "#e29a55")


class Both(NamedTuple):
    """One figure as PNG for a light and for a dark page."""

    light: bytes
    dark: bytes


def both(draw: Callable[..., Figure], *what: Any) -> Both:
    """``draw(*what, theme)`` in both themes."""
    return Both(*(_png(draw(*what, theme)) for theme in (LIGHT, DARK)))


def on_white(draw: Callable[..., Figure], *what: Any) -> bytes:
    """``draw(*what, theme)`` as the PNG of a file of its own."""
    return _png(draw(*what, LIGHT))


def draw_confusion(matrix: Tensor, names: Sequence[str], elsewhere: Tensor | None, theme: Theme) -> Figure:
    """A confusion matrix, each row as shares of its class.

    Args:
        matrix: int64 (n, n), rows are classes and columns answers.
        names: n names.
        elsewhere: int64 (n,), answers that are no column; None without any.
        theme: colours.
    """
    counts = (matrix if elsewhere is None else torch.cat([matrix, elsewhere[:, None]], dim=1)).numpy()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    titles = [_short(name) for name in names]
    size = max(0.24 * len(names), 3.2)
    figure = Figure(figsize=(size + 2.6, size + 2.2), facecolor=theme.paper, layout="constrained")
    axis = figure.subplots()
    colours = LinearSegmentedColormap.from_list("shares", [theme.paper, theme.accent])
    image = axis.imshow(shares, cmap=colours, vmin=0, vmax=1, aspect="auto")
    columns = [*titles, "another"] if elsewhere is not None else titles
    axis.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(titles)), titles)
    axis.tick_params(length=0, labelsize=8, labelcolor=theme.text)
    axis.set_xlabel("answer", color=theme.muted)
    axis.set_ylabel("truth", color=theme.muted)
    if len(names) <= COUNTED:
        for row, column in zip(*counts.nonzero(), strict=True):
            colour = theme.paper if shares[row, column] > 0.5 else theme.text
            axis.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=7.5, color=colour)
    axis.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(len(titles) + 1) - 0.5, minor=True)
    axis.grid(which="minor", color=theme.line, linewidth=0.4)
    axis.tick_params(which="minor", length=0)
    axis.spines[:].set_color(theme.line)
    bar = figure.colorbar(image, ax=axis, fraction=0.035, pad=0.02, format=lambda share, _: f"{share:.0%}")
    bar.outline.set_edgecolor(theme.line)
    bar.ax.tick_params(labelsize=8, colors=theme.muted)
    bar.set_label("share of the class", fontsize=8, color=theme.muted)
    return figure


def draw_reliability(found: Calibration, theme: Theme) -> Figure:
    """Accuracy of the answers of each bin of confidence, and how many there are."""
    figure = Figure(figsize=(5.4, 4.6), facecolor=theme.paper, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    edges = np.linspace(0, 1, len(found.count) + 1)
    middles, width = (edges[1:] + edges[:-1]) / 2, edges[1]
    upper.plot((0, 1), (0, 1), color=theme.muted, linewidth=1, linestyle=(0, (4, 3)), label="as confident as right")
    count, confidence, accuracy = (values.numpy() for values in found[:3])
    used = count > 0
    upper.plot(confidence[used], accuracy[used], color=theme.accent, marker="o", markersize=4,
               linewidth=1.6, clip_on=False, label="the model")  # fmt: skip
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="right")
    upper.legend(frameon=False, labelcolor=theme.text, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    lower.bar(middles, count / max(count.sum(), 1), width=0.9 * width, color=theme.accent)
    lower.set(xlabel="probability of the answer", ylabel="answers")
    for axis in (upper, lower):
        _plain(axis, theme)
    lower.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    return figure


def draw_recall(curves: dict[str, Tensor], theme: Theme) -> Figure:
    """Share of queries whose match is among the first k; each curve is (K,), for k from 1 to K."""
    figure = Figure(figsize=(5.4, 3.8), facecolor=theme.paper, layout="constrained")
    axis = figure.subplots()
    for (title, curve), colour in zip(curves.items(), (theme.accent, theme.second), strict=False):
        axis.plot(np.arange(1, len(curve) + 1), curve.numpy(), color=colour, linewidth=1.8, label=title)
    axis.set(xlabel="k", ylabel="match among the first k", ylim=(0, 1), xlim=(1, max(map(len, curves.values()))))
    axis.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]  # it is a MaxNLocator
    axis.legend(frameon=False, labelcolor=theme.text, fontsize=9, loc="lower right")
    _plain(axis, theme)
    return figure


def draw_ranks(histogram: dict[str, Tensor], titles: Sequence[str], theme: Theme) -> Figure:
    """How many queries have their match at a range of ranks: shares (n,) of each direction, for n titles."""
    figure = Figure(figsize=(5.4, 3.8), facecolor=theme.paper, layout="constrained")
    axis = figure.subplots()
    places, width = np.arange(len(titles)), 0.8 / len(histogram)
    for number, (title, shares) in enumerate(histogram.items()):
        offset = (number - (len(histogram) - 1) / 2) * width
        axis.bar(
            places + offset, shares.numpy(), width=0.92 * width, color=(theme.accent, theme.second)[number], label=title
        )
    axis.set_xticks(places, titles)
    axis.set(xlabel="rank of the match", ylabel="queries")
    axis.legend(frameon=False, labelcolor=theme.text, fontsize=9)
    _plain(axis, theme)
    return figure


def _plain(axis: Axes, theme: Theme) -> None:
    axis.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axis.set_facecolor(theme.paper)
    axis.grid(color=theme.line, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(colors=theme.muted, labelsize=9, length=0)
    axis.xaxis.label.set_color(theme.muted)
    axis.yaxis.label.set_color(theme.muted)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(theme.line)


def _short(name: str) -> str:
    """A name as matplotlib draws it: on one line, without formulas, which it would look for between dollar signs."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    name = name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"
    return name.replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()
