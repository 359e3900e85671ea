"""`zoo export`: a model as a file that runs where this package is not installed."""

import argparse
from pathlib import Path

from zoo.commands.console import print_json, show
from zoo.deploy.formats import FORMATS, INPUTS, OUTPUTS, TOWERS, check_format
from zoo.files import check_target
from zoo.limits import FRAMES, check_range

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  zoo export videomamba-nano-motion model.onnx        for ONNX Runtime, TensorRT, OpenVINO
  zoo predict model.onnx clip.mp4                     compare it with the model
  zoo export videomamba-ti-k400 ti.pt2                a program that plain PyTorch loads
  zoo export runs/mine/model features.onnx --output features
  zoo export muse-vit-b32-msrvtt video.onnx --tower video
  zoo export muse-vit-b32-msrvtt text.onnx --tower text

docs/deploy.md shows how to run the files.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `zoo export`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("model", help="registered name, model folder, run, Lightning .ckpt, or Hub repository")
    parser.add_argument("out", metavar="OUT", help="file to write; one that is there is replaced")
    parser.add_argument("--format", choices=FORMATS, help="default: by the ending of OUT")
    parser.add_argument(
        "--output", choices=OUTPUTS, default="scores",
        help="scores: logits, a regressor's number, a tower's vectors; features: what the head sees (default scores)",
    )  # fmt: skip
    parser.add_argument("--tower", choices=TOWERS, help="which one of a model of texts and videos")
    parser.add_argument(
        "--input", choices=INPUTS, default="uint8",
        help="pixels of 0 to 255, or of 0 to 1; the file normalises them (default uint8)",
    )  # fmt: skip
    parser.add_argument("--frames", type=int, metavar="N", help="frames of a clip (default: the model's own number)")
    parser.add_argument("--checkpoint", metavar="FILE", help="take the weights from this file instead of the Hub")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Write the file, and print what it takes and gives and how near it is to the model."""
    args.format = check_format(args.out, args.format)
    check_target(args.out)
    if args.frames is not None:
        check_range("--frames", args.frames, FRAMES)

    from zoo.build import load
    from zoo.deploy.export import export

    frames = {} if args.frames is None else {"num_frames": args.frames}
    model = load(args.model, checkpoint=args.checkpoint, **frames)
    done = export(model, args.out, format=args.format, output=args.output, tower=args.tower, input=args.input)
    if args.json:
        print_json({**done._asdict(), "path": str(done.path)})
        return
    shape = ", ".join(map(str, ("batch", *done.shape)))
    size = Path(done.path).stat().st_size / 1e6
    show(
        f"{done.path} written, {size:.1f} MB: {done.input} ({shape}) -> {done.output}.",
        f"Largest difference from the model: {done.difference:.1g}, where its largest number is {done.largest:.3g}.",
    )
