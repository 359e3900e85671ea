"""`zoo predict`: what happens in a video."""

import argparse
from pathlib import Path

from zoo.commands.console import print_json, progress_bar, show
from zoo.errors import ZooError

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  zoo predict videomamba-nano-motion clip.mp4            the shipped model, no network needed
  zoo predict videomamba-ti-k400 clip.mp4 --plot out.png fetches the weights on first use
  zoo predict runs/mine/model a.mp4 b.mp4 --json         your own model, for programs
  zoo predict videomamba-ti-k400 clip.mp4 --checkpoint videomamba_t16_k400_f16_res224.pth
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `zoo predict`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("model", help="registered name, model folder, Lightning .ckpt, or Hub repository org/name")
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video or image files")
    parser.add_argument("--checkpoint", metavar="FILE", help="take the weights from this file instead of the Hub")
    parser.add_argument("--topk", type=int, default=5, metavar="K", help="classes to show (default 5)")
    parser.add_argument(
        "--clips", type=int, metavar="N", help="clips in time to average (default: as the model was tested)"
    )
    parser.add_argument("--crops", type=int, choices=(1, 3), help="crops in space to average (default: as tested)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", metavar="PNG", help="save the sampled frames with the scores beside them")


def run(args: argparse.Namespace) -> None:
    """Print the best classes of each video."""
    if args.topk < 1:
        raise ZooError(f"--topk is {args.topk}; ask for at least one class.")
    if args.clips is not None and args.clips < 1:
        raise ZooError(f"--clips is {args.clips}; use at least one.")
    missing = [video for video in args.videos if not Path(video).is_file()]
    if missing:
        raise ZooError(f"There is no file {missing[0]}; check the path.")

    from zoo.build import load
    from zoo.inference import rank, read_views, score_views, to_device

    model = load(args.model, checkpoint=args.checkpoint)
    if not hasattr(model, "class_names"):
        raise ZooError(f"{args.model} has no classes to predict; use a classifier.")
    model = to_device(model, args.device)

    results = []
    with progress_bar("views", args.json) as progress:
        for video in args.videos:
            views = read_views(model, video, args.clips, args.crops)
            task = progress.add_task(Path(video).name, total=len(views.video))
            scores = score_views(model, views, lambda task=task: progress.advance(task))
            results.append((video, views, rank(model, scores, args.topk)))
    if args.plot:
        from zoo.plot import plot_predictions

        plot_predictions([(_title(video, results), views, best) for video, views, best in results], args.plot)
    if args.json:
        print_json([_record(args.model, *result) for result in results])
    else:
        for result in results:
            show(_table(_title(result[0], results), *result[1:]))
        if args.plot:
            show(f"Picture: {args.plot}")


def _title(video: str, results: list) -> str:
    """The file's name; with its folder where several are shown, since data sets number the files of each class anew."""
    path = Path(video)
    return path.name if len(results) == 1 else str(Path(path.parent.name, path.name))


def _table(title: str, views, best):
    from rich import box
    from rich.table import Table

    clips, crops = len(views.indices), len(views.video) // len(views.indices)
    unit = "view" if clips * crops == 1 else "views"
    table = Table(title=f"{title}  ({clips * crops} {unit})", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", justify="right", style="dim")
    table.add_column("label")
    table.add_column("probability", justify="right")
    for i, prediction in enumerate(best, start=1):
        table.add_row(str(i), prediction.label, f"{prediction.probability:.1%}", style="bold" if i == 1 else None)
    return table


def _record(model: str, video: str, views, best) -> dict:
    return {
        "model": model,
        "video": video,
        "num_clips": len(views.indices),
        "num_crops": len(views.video) // len(views.indices),
        "seconds": [[round(float(s), 3) for s in clip] for clip in views.seconds],
        "predictions": [prediction._asdict() for prediction in best],
    }
