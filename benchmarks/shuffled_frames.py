"""Does the model use time? The shipped videomamba-nano-motion on generated clips, their frames put in other orders.

    python benchmarks/shuffled_frames.py [--videos 320] [--shuffles 5] [--nuisance 0.1] [--output FILE.json]
                                         [--plot FILE.png]

The eight classes are four pairs of opposite motions (left and right, up and down, grow and shrink, the two turns). The
frames that the model picks from a clip are shown to it in order, backwards, shuffled (each clip and view in its own
order, --shuffles times) and as the middle frame over and over; all else is the demo's test: 3 clips of each video,
softmax averaged. An answer is right, the opposite motion, or another one.

What to expect of a model that ignores order, from how the clips are made (datamodules/synthetic/motion.py):

- A motion and its opposite have the same frames, in reverse order. Without order the two cannot be told apart: of the
  answers that name the right pair half are right, and so at most 50 % of all.
- The pair can be guessed without order: the attribute that drifts visits all its values, the other three only a part,
  0.1 of them in the demo's clips. The floor for shuffled frames therefore lies between chance, 12.5 %, and 50 %. With
  --nuisance near 1 they visit all of theirs too, and the floor is chance.
- One frame has the same distribution in all classes: 12.5 %.

A model that uses order gives the opposite motion when a clip runs backwards.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import REPOSITORY, RESULTS, machine, save
from rich.console import Console
from rich.table import Table
from torch import Tensor

import zoo
from datamodules.synthetic.motion import MOTIONS, NUISANCE
from datamodules.synthetic.writing import generate
from datamodules.video.views import load_views

MODEL = "videomamba-nano-motion"
NUM_CLIPS = 3  # as the demo tests
OPPOSITE = {
    name: other
    for name, motion in MOTIONS.items()
    for other, reverse in MOTIONS.items()
    if (motion.axis, motion.sign) == (reverse.axis, -reverse.sign)
}
ANSWERS = ("right", "opposite", "other")
ORDERS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "in order": lambda n, generator: torch.arange(n),
    "backwards": lambda n, generator: torch.arange(n).flip(0),
    "shuffled": lambda n, generator: torch.randperm(n, generator=generator),
    "one frame": lambda n, generator: torch.full((n,), n // 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=320, help="test clips, of all classes in turn")
    parser.add_argument("--shuffles", type=int, default=5, help="how often to shuffle and measure again")
    parser.add_argument("--nuisance", type=float, default=NUISANCE, help="how far the other attributes go, 0 .. 1")
    parser.add_argument("--output", type=Path, default=RESULTS / "shuffled_frames.json")
    parser.add_argument("--plot", type=Path, help="also draw the answers as bars")
    arguments = parser.parse_args()
    if arguments.videos < len(OPPOSITE) or arguments.shuffles < 1:
        parser.error(f"--videos takes at least {len(OPPOSITE)}, one of each class, and --shuffles at least 1.")
    model = zoo.load(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        root = generate(
            Path(folder) / "clips", num_train=0, num_val=0, num_test=arguments.videos, nuisance=arguments.nuisance,
            progress=False,
        )  # fmt: skip
        files = sorted(root.glob("test/*/*.mp4"))
        views = torch.stack([load_views(f, **model.preprocessing, num_clips=NUM_CLIPS).video for f in files])
    labels = [file.parent.name for file in files]
    orders = {name: measure(model, views, labels, name, arguments.shuffles) for name in ORDERS}
    result = {
        "machine": machine(),
        "model": MODEL,
        "videos": len(files),
        "nuisance": arguments.nuisance,
        "views": NUM_CLIPS,
        "shuffles": arguments.shuffles,
        "chance": 1 / len(OPPOSITE),
        "order_free_ceiling": 0.5,
        "orders": orders,
    }
    save(result, arguments.output)
    print_tables(result)
    if arguments.plot:
        plot(result, arguments.plot)


@torch.inference_mode()
def measure(model: Any, views: Tensor, labels: Sequence[str], order: str, shuffles: int) -> dict[str, Any]:
    """Shares of right, opposite and other answers with the frames of each view in one order.

    Args:
        model: a classifier whose classes are the generated motions.
        views: uint8 (N, V, 3, T, H, W).
        labels: N names of classes.
        order: one of `ORDERS`.
        shuffles: repetitions where the order is random.

    Returns:
        `right`, `opposite`, `other`; `right_std` over the repetitions; `direction`, the share of right ones among the
        answers that name the right pair; and `classes`, the three shares of each class.
    """
    generator = torch.Generator().manual_seed(0)
    rounds = []
    for _ in range(shuffles if order == "shuffled" else 1):
        answers = []
        for video in views.split(32):
            shown = torch.stack(
                [torch.stack([v[:, ORDERS[order](v.shape[1], generator)] for v in clip]) for clip in video]
            )
            answers += [model.class_names[i] for i in model.predict_scores(shown).argmax(dim=1)]
        rounds.append([judge(answer, label) for answer, label in zip(answers, labels, strict=True)])
    judged = [(label, kind) for kinds in rounds for label, kind in zip(labels, kinds, strict=True)]
    shares = share([kind for _, kind in judged])
    pair = shares["right"] + shares["opposite"]
    return {
        **shares,
        "right_std": statistics.stdev([share(kinds)["right"] for kinds in rounds]) if len(rounds) > 1 else 0.0,
        "direction": shares["right"] / pair if pair else None,
        "classes": {name: share([kind for label, kind in judged if label == name]) for name in sorted(OPPOSITE)},
    }


def judge(answer: str, label: str) -> str:
    """Which of `ANSWERS` an answer is."""
    return "right" if answer == label else "opposite" if answer == OPPOSITE[label] else "other"


def share(kinds: Sequence[str]) -> dict[str, float]:
    return {kind: kinds.count(kind) / len(kinds) for kind in ANSWERS}


def print_tables(result: dict[str, Any]) -> None:
    console = Console()
    table = Table(title=f"{result['model']}: {result['videos']} clips of 8 motions, chance {result['chance']:.1%}")
    for column in ("frames", "right", "opposite", "other", "right of right pair"):
        table.add_column(column, justify="left" if column == "frames" else "right")
    for name, shares in result["orders"].items():
        direction = "-" if shares["direction"] is None else f"{shares['direction']:.1%}"
        table.add_row(name, *(f"{shares[kind]:.1%}" for kind in ANSWERS), direction)
    console.print(table)
    table = Table(title="Right answers by class")
    table.add_column("class")
    for name in result["orders"]:
        table.add_column(name, justify="right")
    for label in sorted(OPPOSITE):
        table.add_row(label, *(f"{shares['classes'][label]['right']:.0%}" for shares in result["orders"].values()))
    console.print(table)


def plot(result: dict[str, Any], path: Path) -> None:
    """A bar per order, divided into right, opposite and other answers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = {"right": "#2f6fb2", "opposite": "#e08a3c", "other": "#d5dce4"}
    figure, axis = plt.subplots(figsize=(9, 3.4), layout="constrained")
    names = list(result["orders"])[::-1]
    left = [0.0] * len(names)
    for kind in ANSWERS:
        widths = [100 * result["orders"][name][kind] for name in names]
        label = {"right": "right motion", "opposite": "opposite motion", "other": "another of the eight"}[kind]
        axis.barh(names, widths, left=left, color=colours[kind], label=label, height=0.62)
        for row, (start, width) in enumerate(zip(left, widths, strict=True)):
            if width >= 6:
                colour = "#1d2733" if kind == "other" else "white"
                axis.text(start + width / 2, row, f"{width:.1f}", ha="center", va="center", color=colour, fontsize=10)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axis.axvline(100 * result["chance"], color="#1d2733", linestyle="--", linewidth=1, zorder=0)
    axis.text(100 * result["chance"] + 0.7, len(names) - 0.52, "chance", fontsize=9, color="#1d2733", va="bottom")
    axis.set(xlim=(0, 100), ylim=(-0.5, len(names) - 0.2), xlabel="share of answers in %")
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.set_title("The same frames in other orders", loc="left", fontsize=12)
    figure.legend(loc="outside lower right", ncols=3, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(f"Picture: {path if not path.is_relative_to(REPOSITORY) else path.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
