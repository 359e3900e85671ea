"""`zoo list`: the models as a table, as JSON, or as the Markdown table of the README."""

import argparse
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from zoo.commands.console import is_terminal, print_json, show, width
from zoo.errors import ZooError
from zoo.registry import Entry, Weights, entries, list_models

__all__ = ["add_arguments", "is_cached", "markdown", "run"]

_EXAMPLES = """\
examples:
  zoo list                          every model
  zoo list mask                     names that contain "mask"
  zoo list 'videomamba-m-*-f64*'    a shell pattern (quote it)
  zoo list --task image             image models; --task video, --task retrieval
  zoo list --dataset ssv2 --json    for programs
  zoo list --markdown               the table of docs/models.md
"""


class _Column(NamedTuple):
    title: str
    numeric: bool
    keep: int  # the column with the lowest number is left out first where the terminal is too narrow


_COLUMNS = (
    _Column("name", False, 9),
    _Column("task", False, 0),
    _Column("data", False, 5),
    _Column("frames", True, 6),
    _Column("px", True, 4),
    _Column("top-1", True, 8),
    _Column("params (M)", True, 7),
    _Column("GFLOPs/view", True, 3),
    _Column("source", False, 1),
    _Column("cached", False, 2),
)
_GAP = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `zoo list`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("pattern", nargs="?", default="*", help="part of a name, or a shell pattern such as '*-f64*'")
    parser.add_argument("--task", metavar="TASK", help="image, video, or the task's full name")
    parser.add_argument("--dataset", metavar="NAME", help="data set of the weights: in1k, k400, ssv2, msrvtt, ...")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print a Markdown table")


def run(args: argparse.Namespace) -> None:
    """Print the models that match."""
    pattern = args.pattern if any(sign in args.pattern for sign in "*?[") else f"*{args.pattern}*"
    task = f"{args.task}-classification" if args.task in ("image", "video") else args.task
    wanted = set(list_models(pattern, task=task, dataset=args.dataset))
    found = [entry for entry in entries() if entry.name in wanted]
    if not found:
        raise ZooError(f"No model matches {args.pattern!r}; `zoo list` without a pattern shows all.")
    if args.json:
        print_json([_record(entry) for entry in found])
    elif args.markdown:
        show(*markdown(found))
    else:
        _print_table(found)


def is_cached(weights: Weights | None) -> bool:
    """Whether the weights are on this machine, so that loading needs no network."""
    if weights is None:
        return False
    if weights.repo_id is None:
        return True
    from huggingface_hub import try_to_load_from_cache

    filename = weights.filename or "model.safetensors"
    return isinstance(try_to_load_from_cache(weights.repo_id, filename, revision=weights.revision), str)


def markdown(found: list[Entry]) -> list[str]:
    """The lines of a Markdown table of models, the same on every machine, so without the column of cached models."""
    columns = [column for column in _COLUMNS if column.title != "cached"]
    rows = [[column.title for column in columns], ["--:" if column.numeric else "---" for column in columns]]
    for entry in found:
        cells = _cells(entry)
        rows.append([f"`{entry.name}`", *(cells[column.title] for column in columns[1:])])
    return [f"| {' | '.join(row)} |" for row in rows]


def _record(entry: Entry) -> dict[str, Any]:
    """Return an entry for programs, without the class names; `zoo info --json` has all fields."""
    keys = ("dataset", "frames", "resolution", "top1", "top5", "num_clips", "num_crops", "params", "flops")
    return {
        "name": entry.name,
        "aliases": list(entry.aliases),
        "task": entry.task,
        **{key: entry.meta.get(key) for key in keys},
        "source": _source(entry),
        "cached": is_cached(entry.weights),
    }


def _source(entry: Entry) -> str | None:
    if entry.weights is None:
        return "authors' drive" if entry.meta.get("weights_page") else None
    return entry.weights.repo_id or "shipped"


def _cells(entry: Entry) -> dict[str, str]:
    meta = entry.meta
    values = {
        "name": entry.name,
        "task": entry.task.removesuffix("-classification").removeprefix("text-video-"),
        "data": meta.get("dataset"),
        "frames": meta.get("frames"),
        "px": meta.get("resolution"),
        "top-1": None if meta.get("top1") is None else f"{meta['top1']:.1f}",
        "params (M)": None if meta.get("params") is None else f"{meta['params'] / 1e6:.1f}",
        "GFLOPs/view": None if meta.get("flops") is None else f"{meta['flops'] / 1e9:g}",
        "source": _source(entry),
        "cached": "yes" if is_cached(entry.weights) else "no",
    }
    return {title: "-" if value is None else str(value) for title, value in values.items()}


def _print_table(found: list[Entry]) -> None:
    rows = [_cells(entry) for entry in found]
    columns = _that_fit(rows, width())
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column.title, justify="right" if column.numeric else "left", no_wrap=True)
    for previous, entry, row in zip([None, *found], found, rows, strict=False):
        if is_terminal() and previous and previous.meta.get("dataset") != entry.meta.get("dataset"):
            table.add_row()  # a blank line between data sets for the eye; programs get one line per model
        table.add_row(*[row[column.title] for column in columns])
    show(table)
    if is_terminal():
        left_out = [column.title for column in _COLUMNS if column not in columns]
        hidden = f" Left out (terminal too narrow): {', '.join(left_out)}." if left_out else ""
        show("", Text(f"{len(found)} models. `zoo info NAME` tells the rest.{hidden}", style="dim"))


def _that_fit(rows: list[dict[str, str]], available: int) -> list[_Column]:
    """Drop the least important columns until the table fits into `available` characters."""
    widths = {column: max(len(column.title), *(len(row[column.title]) for row in rows)) for column in _COLUMNS}
    columns = list(_COLUMNS)
    while sum(widths[column] + _GAP for column in columns) - _GAP > available and len(columns) > 1:
        columns.remove(min(columns, key=lambda column: column.keep))
    return columns
