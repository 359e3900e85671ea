"""`zoo convert`: a checkpoint as a folder with safe weights and its config."""

import argparse

from zoo.commands.console import show

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  zoo convert runs/demo/version_0/checkpoints/best.ckpt demo/model                           a run of your own
  zoo convert videomamba_t16_k400_f16_res224.pth ti-k400 --name videomamba-ti-k400  an official file
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `zoo convert`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("checkpoint", help="Lightning .ckpt of a model of the zoo, a run's folder, or an official file")
    parser.add_argument(
        "folder",
        help="folder to write: config.json, model.safetensors, README.md, and what the run left: recipe.yaml, "
        "metrics.csv, curves.png",
    )
    parser.add_argument("--name", help="registered name that an official file belongs to; `zoo list` shows the names")


def run(args: argparse.Namespace) -> None:
    """Write the folder and print how to use it."""
    from zoo.share import convert

    folder = convert(args.checkpoint, args.folder, name=args.name)
    show(
        f"{folder} written; use it: zoo predict {folder} clip.mp4, or zoo.load({str(folder)!r}) in Python.",
        f"Share it: zoo push {folder} org/name, with {folder}/README.md as its card.",
    )
