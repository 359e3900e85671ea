"""Output of the subcommands: fitted to a terminal; plain, uncut and without padding in a pipe or a file.

Everything goes through `printable`, so names of files, classes and tensors may hold any characters.
"""

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, JustifyMethod, OverflowMethod, RenderableType
from rich.table import Table
from rich.text import Text

from zoo.printable import acts_on_terminal, printable

if TYPE_CHECKING:
    from rich.progress import Progress, Task

__all__ = ["is_terminal", "long_work", "print_json", "progress_bar", "show", "titled_table", "width"]

# Wider than any line we print: rich cuts at the console's width, but pads a table only to the table's own.
_PIPE_WIDTH = 100_000


def is_terminal() -> bool:
    """Whether standard output is a terminal."""
    return Console().is_terminal


def width() -> int:
    """Characters that fit on a line."""
    return Console().width if is_terminal() else _PIPE_WIDTH


class _Console(Console):
    """Shows strings as they are, without rich's markup and emoji codes, and escapes what a terminal would act on.

    Only strings are escaped: a `Text` is for text of ours, or for what went through `printable`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def show(*parts: RenderableType) -> None:
    """Print tables and lines one below the other."""
    console = _Console(width=width())
    if console.is_terminal:
        console.print(*parts, sep="\n")
        return
    with console.capture() as capture:
        console.print(*parts, sep="\n")
    sys.stdout.writelines(line.rstrip() + "\n" for line in capture.get().splitlines())


def titled_table(title: str | None, columns: Mapping[str, JustifyMethod], fold: str | None = None) -> Table:
    """Return an empty table of results.

    Args:
        title: above it.
        columns: headings and how their cells are justified; one without a heading is for the ranks.
        fold: heading of the column whose long cells take several lines.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading, justify in columns.items():
        overflow: OverflowMethod = "fold" if heading == fold else "ellipsis"
        table.add_column(heading, justify=justify, style=None if heading else "dim", overflow=overflow)
    return table


def print_json(value: object) -> None:
    """Print for a program: one JSON document on standard output.

    What a terminal acts on, or cannot encode, is written by JSON's own escapes, so that nothing is lost.
    """
    text = json.dumps(value, indent=2, ensure_ascii=not (sys.stdout.encoding or "").lower().startswith("utf"))
    lines = (line if line.isprintable() else "".join(map(_in_json, line)) for line in text.split("\n"))
    sys.stdout.writelines(f"{line}\n" for line in lines)


def _in_json(char: str) -> str:
    return json.dumps(char)[1:-1] if acts_on_terminal(char) else char


@contextmanager
def long_work(unit: str, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar with warnings printed above it.

    Args:
        unit: of what is counted.
        quiet: without the bar.

    Yields:
        A function that takes what is being done, and the finished and all units of it.
    """
    with progress_bar(unit, quiet) as progress, warnings.catch_warnings():
        task = progress.add_task("reading", total=None)
        warnings.showwarning = lambda message, *_: progress.console.print(f"zoo: {message}", soft_wrap=True)

        def report(doing: str, done: int, total: int) -> None:
            progress.update(task, description=doing, completed=done, total=total)

        yield report


def progress_bar(unit: str, quiet: bool) -> "Progress":
    """A `rich.progress.Progress` on standard error, which disappears when done; shown only on a terminal.

    What its ``console`` prints appears above the bar.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    class Description(TextColumn):
        def render(self, task: "Task") -> Text:
            return Text(printable(task.description))

    columns = (
        Description("", table_column=Column(no_wrap=True)),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    console = _Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)
