"""`zoo explain`: which places and times of a video support a class."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.commands.console import long_work, print_json, show, titled_table
from zoo.errors import ZooError
from zoo.files import PICTURES, check_target

if TYPE_CHECKING:
    from rich.console import JustifyMethod
    from rich.table import Table
    from torch import Tensor

    from zoo.inference.explain import Explanation

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  zoo explain videomamba-nano-motion clip.mp4 --plot heat.png        frames, and below each its heat
  zoo explain videomamba-nano-motion clip.mp4 --animation heat.webp  the clip beside its heat, moving
  zoo explain my-model clip.mp4 --target grow --array heat.npy       another class than the best; for NumPy
  zoo explain my-model clip.mp4 --tube 4 32                          finer: tubes of 4 frames and 32 pixels
"""
_GRID = 16  # cells per side in JSON
_METHODS = ("occlusion", "integrated-gradients")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `zoo explain`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("model", help="classifier: registered name, model folder, run, .ckpt, or Hub repository")
    parser.add_argument("video", help="video or image file")
    parser.add_argument("--checkpoint", metavar="FILE", help="take the weights from this file")
    parser.add_argument("--target", metavar="LABEL", help="class to explain (default: the most probable one)")
    parser.add_argument("--method", choices=_METHODS, default=_METHODS[0],
                        help="cover each tube in turn, or follow gradients (needs Captum)")  # fmt: skip
    parser.add_argument("--tube", nargs=2, type=int, metavar=("FRAMES", "PIXELS"),
                        help="what is judged together (default: a quarter of frames and side, or less)")  # fmt: skip
    parser.add_argument("--plot", metavar="PNG", help="save the frames, and below each its heat")
    parser.add_argument("--animation", metavar="WEBP", help="save the clip beside its heat as animated WebP or GIF")
    parser.add_argument("--array", metavar="NPY", help="save the heat (T, H, W) for NumPy; .npz has the frames, too")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    parser.add_argument(
        "--json", action="store_true", help=f"print JSON; heat in {_GRID} x {_GRID} cells of each frame"
    )


def run(args: argparse.Namespace) -> None:
    """Explain one video, and print and save the heat."""
    if args.plot is not None:
        check_target(args.plot, PICTURES)
    if not Path(args.video).is_file():
        raise ZooError(f"There is no file {args.video}; check the path.")

    from zoo.inference.heat_pictures import ANIMATIONS, ARRAYS, animate_heat, plot_heat, save_heat

    for path, endings in ((args.animation, ANIMATIONS), (args.array, ARRAYS)):
        if path is not None:
            check_target(path, endings)

    from zoo.build import load
    from zoo.inference.explain import explain
    from zoo.inference.predict import to_device

    model = to_device(load(args.model, checkpoint=args.checkpoint), args.device)
    tube = None if args.tube is None else (args.tube[0], args.tube[1])
    with long_work("passes", quiet=args.json) as report:

        def on_step(done: int, total: int) -> None:
            report(Path(args.video).name, done, total)

        found = explain(model, args.video, args.target, args.method, tube=tube, on_step=on_step)
    saved = {
        "Picture": args.plot and plot_heat(found, args.plot, Path(args.video).name),
        "Animation": args.animation and animate_heat(found, args.animation),
        "Array": args.array and save_heat(found, args.array),
    }
    if args.json:
        print_json(_record(args, found))
        return
    show(_table(Path(args.video).name, found))
    for kind, path in saved.items():
        if path is not None:
            show(f"{kind}: {path}")


def _table(title: str, found: "Explanation") -> "Table":
    """A row per frame: its share of all support, and the middle of that in the picture."""
    heading = f"{title}: {found.label} {found.probability:.1%}"
    columns: dict[str, JustifyMethod] = dict.fromkeys(("time", "support", "from the left", "from the top"), "right")
    table = titled_table(heading, columns)
    support = found.heat.clamp_min(0)
    total = support.sum().clamp_min(1e-12)
    for seconds, frame in zip(found.seconds.tolist(), support, strict=True):
        middle = ["-", "-"]
        if frame.sum() > 0:
            middle = [f"{_middle(frame.sum(dim=axis)):.0%}" for axis in (0, 1)]
        table.add_row(f"{seconds:.2f} s", f"{frame.sum() / total:.1%}", *middle)
    return table


def _middle(weights: "Tensor") -> float:
    """Mean position in 0 .. 1 of weights (n,)."""
    numbers: list[float] = weights.tolist()
    places = [(i + 0.5) / len(numbers) for i in range(len(numbers))]
    return sum(p * w for p, w in zip(places, numbers, strict=True)) / float(weights.sum())


def _record(args: argparse.Namespace, found: "Explanation") -> dict[str, Any]:
    from torch.nn.functional import adaptive_avg_pool2d

    side = min(_GRID, found.heat.shape[-1])
    cells = adaptive_avg_pool2d(found.heat, side)
    return {
        "model": args.model,
        "video": args.video,
        "label": found.label,
        "probability": found.probability,
        "method": args.method,
        "seconds": [round(second, 3) for second in found.seconds.tolist()],
        "heat": [[[round(value, 4) for value in row] for row in frame] for frame in cells.tolist()],
    }
