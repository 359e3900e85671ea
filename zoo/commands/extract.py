"""`zoo extract`: features of long videos, to train on without decoding them again."""

import argparse

from zoo.commands.console import long_work, print_json, show
from zoo.commands.options import parse_shard
from zoo.files import check_folder
from zoo.limits import BATCH, SECONDS, check_range

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  zoo extract videomamba-m-k400 EPIC-KITCHENS/ -o features/             run again to resume
  zoo extract videomamba-m-k400 EPIC-KITCHENS/ -o features/ --shard 1/2 &   two processes share the videos
  lightning fit --config mambavl-epic100-features --data.root EPIC-KITCHENS --data.features $PWD/features
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `zoo extract`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("model", help="video model: registered name, model folder, .ckpt, or Hub repository")
    parser.add_argument("data", help="folder of videos, folders of frames or tars of frames, at any depth; or a video")
    parser.add_argument("-o", "--out", required=True, metavar="FOLDER", help="where to write VIDEO.safetensors")
    parser.add_argument(
        "--tokens", choices=("cls", "frames"), default="cls", help="a vector per window (default), or per frame in it"
    )
    parser.add_argument("--window", type=float, default=2.0, metavar="SECONDS", help="seen at once (default 2)")
    parser.add_argument("--stride", type=float, default=1.0, metavar="SECONDS", help="between windows (default 1)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="windows at once (default 8)")
    parser.add_argument("--shard", metavar="K/N", default="1/1", help="do the K-th of N shares of the videos, from 1")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Extract missing features and print a summary."""
    shard = parse_shard(args.shard)
    check_range("--window", args.window, SECONDS)
    check_range("--stride", args.stride, SECONDS)
    check_range("--batch-size", args.batch_size, BATCH)
    check_folder(args.out)
    with long_work("videos", args.json) as report:
        from zoo.inference.features import extract

        done = extract(
            args.model,
            args.data,
            args.out,
            tokens=args.tokens,
            window=args.window,
            stride=args.stride,
            batch_size=args.batch_size,
            shard=shard,
            device=args.device,
            on_files=lambda *counts: report("extracting", *counts),
        )
    if args.json:
        print_json({"features": args.out, **done._asdict()})
        return
    show(
        f"{args.out}: {done.videos} videos: {done.extracted} extracted now, {done.kept} kept, "
        f"{done.unreadable} unreadable."
    )
