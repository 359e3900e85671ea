"""Where the subcommands print: fitted to a terminal; plain, uncut and without padding into a pipe or a file."""

import json
import sys
from typing import Any

from rich.console import Console, RenderableType

__all__ = ["is_terminal", "print_json", "progress_bar", "show", "width"]

# Wider than any line we print: rich cuts at the console's width, but pads a table only to the table's own.
_PIPE_WIDTH = 100_000


def is_terminal() -> bool:
    """Whether somebody looks at standard output."""
    return Console().is_terminal


def width() -> int:
    """Characters that fit on a line."""
    return Console().width if is_terminal() else _PIPE_WIDTH


def show(*parts: RenderableType) -> None:
    """Print tables and lines one below the other."""
    console = Console(highlight=False, markup=False, width=width())
    if console.is_terminal:
        console.print(*parts, sep="\n")
        return
    with console.capture() as capture:
        console.print(*parts, sep="\n")
    sys.stdout.writelines(line.rstrip() + "\n" for line in capture.get().splitlines())


def print_json(value: Any) -> None:
    """Print for a program: one JSON document on standard output."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def progress_bar(unit: str, quiet: bool):
    """A `rich.progress.Progress` on standard error, which vanishes when done; none unless somebody looks at it.

    What its ``console`` prints appears above the bar.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True, highlight=False, markup=False)
    return Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)
