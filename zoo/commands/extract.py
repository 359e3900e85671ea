"""`zoo extract`: features of long videos, to train on without decoding them again."""

import argparse

from zoo.commands.console import long_work
from zoo.commands.options import add_engine, add_precision, check_engine, show_done
from zoo.limits import BATCH, SECONDS, check_range

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  zoo extract videomamba-m-k400 EPIC-KITCHENS/ -o features.parquet      run again to resume, or to add videos
  zoo extract videomamba-m-k400 s3://bucket/videos -o s3://bucket/features.lance --ray auto
  lightning fit --config mambavl-joint-epic100-features --data.root EPIC-KITCHENS \\
      --data.features $PWD/features.parquet
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `zoo extract`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("model", help="video model: registered name, model folder, .ckpt, or Hub repository")
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="folders of videos, folders of frames or tars of frames, at any "
        "depth; videos; .txt and .csv lists of them; tar shards; paths or URLs",
    )  # fmt: skip
    parser.add_argument("-o", "--out", required=True, metavar="TABLE", help="what to write: FILE.parquet, or a folder "
                        "or URL ending in .lance; an existing table is updated")  # fmt: skip
    parser.add_argument(
        "--tokens", choices=("cls", "frames"), default="cls", help="a vector per window (default), or per frame in it"
    )
    parser.add_argument("--window", type=float, default=2.0, metavar="SECONDS", help="seen at once (default 2)")
    parser.add_argument("--stride", type=float, default=1.0, metavar="SECONDS", help="between windows (default 1)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="windows at once (default 8)")
    add_engine(parser)
    add_precision(parser)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Extract missing features and print a summary."""
    shard = check_engine(args)
    check_range("--window", args.window, SECONDS)
    check_range("--stride", args.stride, SECONDS)
    check_range("--batch-size", args.batch_size, BATCH)
    with long_work("videos", args.json) as report:
        from zoo.inference.features import extract

        done = extract(
            args.model,
            args.sources,
            args.out,
            tokens=args.tokens,
            window=args.window,
            stride=args.stride,
            batch_size=args.batch_size,
            num_workers=args.workers,
            ray=args.ray,
            shard=shard,
            precision=args.precision,
            device=args.device,
            on_files=lambda *counts: report("extracting", *counts),
        )
    show_done(args, "features", "extracted", done)
