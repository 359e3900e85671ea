"""`zoo search`: the moments in indexed videos that fit a text or a clip."""

import argparse
import os
from typing import TYPE_CHECKING, Any

from zoo.commands.console import print_json, show, titled_table
from zoo.files import PAGES, check_target
from zoo.limits import TOPK, check_range
from zoo.printable import clock

if TYPE_CHECKING:
    from rich.console import JustifyMethod
    from rich.table import Table

    from zoo.retrieval.table import Hit

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  zoo search my.index "a red circle moves left"
  zoo search my.index "a dog runs" "a cat sleeps" --topk 20
  zoo search my.index "a dog runs" --where "path LIKE '%kitchen%' AND start > 60"
  zoo search my.index --like clip.mp4                     videos that look like it
  zoo search my.index "a dog runs" --html found.html      thumbnails that play
  zoo search my.index "a dog runs" --json                 for programs
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `zoo search`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("index", help="what `zoo index` made, a folder or a URL")
    parser.add_argument("queries", nargs="*", metavar="TEXT", help="what to look for")
    parser.add_argument(
        "--like",
        action="append",
        default=[],
        metavar="CLIP",
        help="look for what is like this video; may be repeated",
    )
    parser.add_argument(
        "--where", metavar="SQL", help="only what this holds for: path, start, end (seconds), size, mtime, and columns "
        "of --metadata",
    )  # fmt: skip
    parser.add_argument("--exact", action="store_true", help="compare all vectors, in place of an approximate index")
    parser.add_argument("--topk", type=int, default=10, metavar="K", help="results for each text or clip (default 10)")
    parser.add_argument("--html", metavar="FILE.html", help="write a page with the results as pictures that play")
    parser.add_argument("--model", help="model of the index, if it cannot be found automatically")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Print the best stretches of video for each text and clip."""
    check_range("--topk", args.topk, TOPK)
    if args.html is not None:
        check_target(args.html, PAGES)
    from zoo.retrieval.search import check_queries, search
    from zoo.retrieval.table import Index

    check_queries(args.queries)
    index = Index.open(args.index)  # before the model, which takes seconds

    results = search(
        index,
        args.queries,
        topk=args.topk,
        where=args.where,
        exact=args.exact,
        like=args.like,
        model=args.model,
        device=args.device,
    )
    asked = [*args.queries, *args.like]
    if args.html:
        from zoo.retrieval.gallery import write_gallery

        write_gallery(args.html, index, list(zip(asked, results, strict=True)))
    if args.json:
        print_json([_record(*pair) for pair in zip(asked, results, strict=True)])
        return
    nothing = f"{args.index} is empty." if args.where is None else "nothing fits the condition."
    for query, hits in zip(asked, results, strict=True):
        show(_table(query, hits) if hits else f"{query}: {nothing}")
    if args.html:
        show(f"Page: {args.html}")


def _table(query: str, hits: "list[Hit]") -> "Table":
    columns: dict[str, JustifyMethod] = {"": "right", "score": "right", "from": "right", "to": "right", "video": "left"}
    table = titled_table(query, columns, fold="video")
    for number, hit in enumerate(hits, start=1):
        style = "bold" if number == 1 else None
        times = clock(hit.start), clock(hit.end)
        table.add_row(str(number), f"{hit.score:.3f}", *times, _shown(hit.path), style=style)
    return table


def _shown(path: str) -> str:
    """Return a path relative to the current folder if it is below it."""
    below = ".." if "://" in path else os.path.relpath(path)
    return path if below.startswith("..") else below


def _record(query: str, hits: "list[Hit]") -> dict[str, Any]:
    results = [
        {"path": hit.path, "start": round(hit.start, 3), "end": round(hit.end, 3), "score": hit.score} for hit in hits
    ]
    return {"query": query, "results": results}
