"""`zoo index`: index your videos, to search them by text."""

import argparse
import math

from zoo.commands.console import long_work, print_json, show
from zoo.commands.options import parse_shard
from zoo.files import check_folder
from zoo.limits import BATCH, SECONDS, WORKERS, check_range

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  zoo index my-muse videos/ -o my.index                  run again to resume, or when videos were added or removed
  zoo index my-muse a/ b/ film.mkv -o my.index --window 5
  zoo index my-muse videos/ -o my.index --shard 1/2 &    two processes, each with its own half of the files
  zoo index my-muse videos/ -o my.index --shard 2/2 &

Then: zoo search my.index "a red circle moves left"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `zoo index`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("model", help="text-video model: registered name, model folder, .ckpt, or Hub repository")
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folders, searched at any depth, or video files")
    parser.add_argument(
        "-o", "--out", required=True, metavar="INDEX", help="folder of the index; an existing index is updated"
    )
    parser.add_argument(
        "--window", type=float, metavar="SECONDS",
        help="split longer videos into equal stretches of at most SECONDS, each searched by itself; inf never splits "
        "(default: that of the index, 20 for a new one)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="clips at once (default 8)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that read videos (default: cores, up to 4)")
    parser.add_argument("--shard", metavar="K/N", help="do the K-th of N shares of the files, from 1")
    parser.add_argument(
        "--dtype", choices=("float32", "float16"), help="numbers on disk: float16 takes half the space and is slower "
        "to search (default: that of the index, float32 for a new one)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Make or update the index, and print a summary."""
    shard = parse_shard(args.shard)
    check_range("--batch-size", args.batch_size, BATCH)
    check_range("--workers", args.workers or 0, WORKERS)
    if args.window not in (None, math.inf):
        check_range("--window", args.window, SECONDS)
    check_folder(args.out)
    with long_work("files", args.json) as report:
        from zoo.retrieval.search import index

        summary = index(
            args.model,
            args.folders,
            args.out,
            window=args.window,
            batch_size=args.batch_size,
            num_workers=args.workers,
            shard=shard,
            dtype=args.dtype,
            device=args.device,
            on_files=lambda *counts: report("indexing", *counts),
        )
    if args.json:
        print_json({"index": args.out, **summary._asdict()})
        return
    share = "" if shard == (1, 1) else f" in share {args.shard}"
    show(
        f"{args.out}: {summary.videos} videos{share}: {summary.indexed} indexed now, "
        f"{summary.kept} kept, {summary.unreadable} unreadable, {summary.dropped} dropped; "
        f"{summary.vectors} stretches to search.",
        f'Search them: zoo search {args.out} "a red circle moves left"',
    )
