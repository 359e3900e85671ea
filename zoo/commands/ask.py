"""`zoo ask`: a question about a video, and the model's answers."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.commands.console import print_json, show, titled_table
from zoo.errors import ZooError
from zoo.limits import CLIPS, TOPK, check_range

if TYPE_CHECKING:
    from rich.table import Table

    from lightning_modules.tasks.mambavl import Answer

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  zoo ask runs/mambavl-demo/version_0 clip.mp4 "what is the person doing?"
  zoo ask my-mambavl clip.mp4 "which object is in the hand?" --topk 3 --json
  zoo ask my-mambavl clip.mp4                            without a question: what is happening?
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `zoo ask`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("model", help="MambaVL: registered name, model folder, run, .ckpt, or Hub repository")
    parser.add_argument("video", help="video or image file")
    parser.add_argument("question", nargs="?", default="", help="question in plain words (default: what is happening)")
    parser.add_argument("--checkpoint", metavar="FILE", help="take the weights from this file")
    parser.add_argument("--topk", type=int, default=5, metavar="K", help="answers to show (default 5)")
    parser.add_argument("--clips", type=int, default=1, metavar="N", help="clips in time to average (default 1)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Print the best answers."""
    check_range("--topk", args.topk, TOPK)
    check_range("--clips", args.clips, CLIPS)
    try:
        args.question.encode()
    except UnicodeEncodeError as error:
        raise ZooError(f"The question {args.question!r} is not valid UTF-8; write it in another encoding.") from error
    if not Path(args.video).is_file():
        raise ZooError(f"There is no file {args.video}; check the path.")

    import torch

    from zoo.build import load
    from zoo.inference.predict import check_finite, read_views, to_device

    model = load(args.model, checkpoint=args.checkpoint)
    if not hasattr(model, "answer"):
        raise ZooError(f"{args.model} answers no questions; use a MambaVL, or `zoo predict` for its classes.")
    model = to_device(model, args.device)
    views = read_views(model, args.video, args.clips, 1)
    question = args.question or model.default_question
    answers = model.answer(views.video, args.question, args.topk)
    check_finite(torch.tensor([answer.probability for answer in answers]))
    if args.json:
        found = [answer._asdict() for answer in answers]
        print_json({"model": args.model, "video": args.video, "question": question, "answers": found})
        return
    show(_table(f"{Path(args.video).name}: {question}", answers))


def _table(title: str, answers: "list[Answer]") -> "Table":
    table = titled_table(title, {"": "right", "answer": "left", "kind": "left", "probability": "right"})
    for i, answer in enumerate(answers, start=1):
        style = "bold" if i == 1 else None
        table.add_row(str(i), answer.text, answer.kind, f"{answer.probability:.1%}", style=style)
    return table
