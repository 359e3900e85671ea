"""A table of the data, printed before the training starts."""

from collections.abc import Sequence
from typing import NamedTuple

from rich import get_console
from rich.table import Table
from rich.text import Text

__all__ = ["SplitOverview", "print_overview"]


class SplitOverview(NamedTuple):
    """One split of a data set.

    Attributes:
        split: "train", "val" or "test".
        videos: number of different files.
        clips: items of an epoch: clips, pairs or windows, times views or repeats.
        classes: number of classes that have a video; None without classes.
        num_classes: number of all classes; None without classes.
        origin: list or folder that names the videos, or how they were set aside; empty where it is not known.
        left_out: videos that are listed but not used: missing, or without what is needed of them.
    """

    split: str
    videos: int
    clips: int
    classes: int | None
    num_classes: int | None
    origin: str
    left_out: Sequence[str]


def print_overview(title: str, splits: Sequence[SplitOverview]) -> None:
    """Print a table with a row per split, and below it the first videos that are left out."""
    console = get_console()
    console.print(_table(title, splits))
    for row in splits:
        if row.left_out:
            more = f" and {len(row.left_out) - 3:,} more" if len(row.left_out) > 3 else ""
            shown = _printable(", ".join(row.left_out[:3]))
            console.print(Text(f"Left out of {row.split}: {shown}{more}"), soft_wrap=True)


def _table(title: str, splits: Sequence[SplitOverview]) -> Table:
    has_classes = any(row.classes is not None for row in splits)
    table = Table(title=title)
    table.add_column("split")
    for column in ("videos", *(["classes"] if has_classes else []), "clips", "left out"):
        table.add_column(column, justify="right")
    table.add_column("from", overflow="fold")
    for row in splits:
        classes = "" if row.classes is None else f"{row.classes:,}"
        if row.classes != row.num_classes:
            classes += f" of {row.num_classes:,}"
        cells = [f"{row.videos:,}", *([classes] if has_classes else []), f"{row.clips:,}", f"{len(row.left_out):,}"]
        table.add_row(row.split, *cells, Text(_printable(row.origin)))
    return table


def _printable(text: str) -> str:
    """The text with characters that a terminal would obey or cannot show (controls, bidi marks, surrogates) escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
