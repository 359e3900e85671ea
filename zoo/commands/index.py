"""`zoo index`: index your videos, to search them by text or by a clip."""

import argparse
import math

from zoo.commands.console import long_work, print_json, show
from zoo.commands.options import add_engine, add_precision, check_engine
from zoo.errors import ZooError
from zoo.limits import BATCH, SECONDS, check_range

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  zoo index my-muse videos/ -o my.index                  run again to resume, or when videos were added or removed
  zoo index my-muse a/ b/ film.mkv -o my.index --window 5
  zoo index my-muse s3://bucket/videos -o my.index       also hf://, https://, ... by fsspec
  zoo index my-muse videos/ -o my.index --metadata about.csv    columns for zoo search --where
  zoo index my-muse videos/ -o my.index --ray auto       all machines of a Ray cluster
  torchrun --nproc-per-node 8 --no-python zoo index my-muse videos/ -o my.index --shard auto
  zoo index --convert old.index -o my.index              an index of the format before LanceDB

Then: zoo search my.index "a red circle moves left"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `zoo index`."""
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "model",
        nargs="?",
        help="video model: registered name, model folder, .ckpt, or Hub repository",
    )
    parser.add_argument(
        "sources", nargs="*", metavar="SOURCE", help="folders, searched at any depth, video files, .txt and .csv lists "
        "of them, or tar shards; paths or URLs",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--out", required=True, metavar="INDEX", help="LanceDB database, a local folder or a URL (s3://, gs://, "
        "az://, hf://); an existing index is updated",
    )  # fmt: skip
    parser.add_argument("--metadata", metavar="CSV", help="list with `path` and further columns for zoo search --where")
    parser.add_argument("--convert", metavar="OLD", help="copy an index of the format before LanceDB; no model needed")
    parser.add_argument(
        "--optimise", action="store_true", help="build the approximate index of INDEX anew; no model needed"
    )
    parser.add_argument(
        "--window", type=float, metavar="SECONDS",
        help="split longer videos into equal stretches of at most SECONDS, each searched by itself; inf never splits "
        "(default: that of the index, 20 for a new one)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="clips at once (default 8)")
    add_engine(parser)
    parser.add_argument(
        "--dtype", choices=("float32", "float16"), help="numbers in the table: float16 takes half the space "
        "(default: that of the index, float32 for a new one)",
    )  # fmt: skip
    add_precision(parser)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Make or update the index, and print a summary."""
    shard = check_engine(args)
    check_range("--batch-size", args.batch_size, BATCH)
    if args.window not in (None, math.inf):
        check_range("--window", args.window, SECONDS)
    if args.convert is not None or args.optimise:
        _keep_house(args)
        return
    if args.model is None or not args.sources:
        raise ZooError("A model and videos are needed; write: zoo index MODEL VIDEOS -o INDEX.")
    with long_work("files", args.json) as report:
        from zoo.retrieval.search import index

        summary = index(
            args.model,
            args.sources,
            args.out,
            window=args.window,
            batch_size=args.batch_size,
            num_workers=args.workers,
            ray=args.ray,
            shard=shard,
            dtype=args.dtype,
            metadata=args.metadata,
            precision=args.precision,
            device=args.device,
            on_files=lambda *counts: report("indexing", *counts),
        )
    if args.json:
        print_json({"index": args.out, **summary._asdict()})
        return
    share = "" if shard == (1, 1) else " in share {} of {}".format(*shard)
    show(
        f"{args.out}: {summary.videos} videos{share}: {summary.indexed} indexed now, "
        f"{summary.kept} kept, {summary.unreadable} unreadable, {summary.dropped} dropped; "
        f"{summary.vectors} stretches to search.",
        f'Search them: zoo search {args.out} "a red circle moves left", or by a clip: --like CLIP.mp4',
    )


def _keep_house(args: argparse.Namespace) -> None:
    """Do what needs neither a model nor videos."""
    if args.model is not None or (args.convert is not None and args.optimise):
        raise ZooError("--convert and --optimise stand alone, without a model and videos; omit the rest.")
    from zoo.retrieval.search import convert_index, optimise

    vectors = optimise(args.out) if args.optimise else convert_index(args.convert, args.out)
    if args.json:
        print_json({"index": args.out, "vectors": vectors})
    else:
        show(f"{args.out}: {vectors} stretches to search.")
