"""`zoo push`: a trained model in a repository of the Hugging Face Hub."""

import argparse
import sys

from zoo.commands.console import print_json, show

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  zoo push runs/finetune/version_0 me/my-actions             the best checkpoint of a run
  zoo push runs/finetune/version_0/checkpoints/last.ckpt me/my-actions --private
  zoo push my_model me/my-actions --license apache-2.0       a folder of `zoo convert`, its README.md as you edited it

The access token is that of HF_TOKEN, or of `hf auth login`; it has to have the right to write.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `zoo push`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("source", metavar="RUN_OR_FOLDER", help="folder of a run, Lightning .ckpt, or model folder")
    parser.add_argument("repository", metavar="org/name", help="repository on the Hub; created if missing")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument(
        "--license", metavar="ID", help="such as apache-2.0 (default: that of the weights it started from, if known)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Push, and print how others can use the model."""
    from huggingface_hub.utils import disable_progress_bars

    from zoo.share import push

    if args.json or not sys.stderr.isatty():
        disable_progress_bars()
    address = push(args.source, args.repository, private=args.private, license=args.license)
    if args.json:
        print_json({"repository": args.repository, "commit": address})
        return
    show(f"Pushed: {address}", f'Use it: zoo predict {args.repository} clip.mp4, or zoo.load("{args.repository}").')
