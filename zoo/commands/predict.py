"""`zoo predict`: what happens in a video, or when in a long one."""

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

what happens when, in a video of any length (docs/long_videos.md):
  zoo predict videomamba-ti-k400 film.mkv --timeline out.png    clips slide over the film; picture and table
  zoo predict videomamba-ti-k400 film.mkv --window 10 --step 2  clips of 10 seconds, a new one every 2; no picture
  zoo predict videomamba-ti-k400 film.mkv --window 10 --json    start, end and classes of every clip

or the whole video as one long clip:
  zoo predict videomamba-ti-coin film.mkv --frames 512
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
    parser.add_argument(
        "--frames", type=int, metavar="N",
        help="frames of a clip; without --timeline one clip and one crop of N frames spread over the whole video. The "
        "model's temporal embedding is interpolated to N (default: the model's own number)",
    )  # fmt: skip
    sliding = parser.add_argument_group(
        "labels over time", "Any of these lets clips slide over the video, which is read once, in little memory."
    )
    sliding.add_argument("--timeline", metavar="PNG", help="save a strip of labels with their probabilities over time")
    sliding.add_argument(
        "--window", type=float, metavar="SECONDS",
        help="length of a clip (default: of what the model learned from: 10 for Kinetics, 4 for Something-Something, "
        "160 for Breakfast, 140 for COIN; otherwise its frames at 4 a second, or at its stride)",
    )  # fmt: skip
    sliding.add_argument(
        "--step", type=float, metavar="SECONDS",
        help="from one clip to the next; boundaries are found to about this (default: half a window)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Print the best classes of each video, or the number that a regressor predicts."""
    if args.topk < 1:
        raise ZooError(f"--topk is {args.topk}; ask for at least one class.")
    if args.clips is not None and args.clips < 1:
        raise ZooError(f"--clips is {args.clips}; use at least one.")
    missing = [video for video in args.videos if not Path(video).is_file()]
    if missing:
        raise ZooError(f"There is no file {missing[0]}; check the path.")

    sliding = any(value is not None for value in (args.timeline, args.window, args.step))
    if sliding and any(value is not None for value in (args.plot, args.clips, args.crops)):
        raise ZooError("--timeline, --window and --step slide clips over the video, one crop each; leave out --plot, "
                       "--clips and --crops.")  # fmt: skip

    from zoo.build import load
    from zoo.inference import to_device

    frames = {} if args.frames is None else {"num_frames": args.frames}
    model = load(args.model, checkpoint=args.checkpoint, **frames)
    if hasattr(model, "value_name"):
        if sliding or args.plot:
            raise ZooError(f"{args.model} predicts a number, and --plot and --timeline show classes; leave them out.")
    elif not hasattr(model, "class_names"):
        raise ZooError(f"{args.model} has no classes to predict; use a classifier.")
    model = to_device(model, args.device)
    if sliding:
        _over_time(args, model)
    else:
        _as_a_whole(args, model)


def _as_a_whole(args: argparse.Namespace, model) -> None:
    from zoo.inference import rank, read_views, score_views, value_of_views

    number = hasattr(model, "value_name")
    clips, crops = (args.clips, args.crops) if args.frames is None else (args.clips or 1, args.crops or 1)
    results = []
    with progress_bar("views", args.json) as progress:
        for video in args.videos:
            task = progress.add_task(f"reading {Path(video).name}", total=None)
            views = read_views(model, video, clips, crops)
            progress.update(task, description=Path(video).name, total=len(views.video))

            def advance(task=task) -> None:
                progress.advance(task)

            if number:
                results.append((video, views, value_of_views(model, views, advance)))
            else:
                results.append((video, views, rank(model, score_views(model, views, advance), args.topk)))
    if args.plot:
        from zoo.plot import plot_predictions

        plot_predictions([(_title(video, results), views, best) for video, views, best in results], args.plot)
    if args.json:
        print_json([_record(model, args.model, *result) for result in results])
    elif number:
        show(_numbers_table(model.value_name or "value", results))
    else:
        for result in results:
            show(_table(_title(result[0], results), *result[1:]))
        if args.plot:
            show(f"Picture: {args.plot}")


def _over_time(args: argparse.Namespace, model) -> None:
    from zoo.long_videos import timeline

    results = []
    with progress_bar("seconds", args.json) as progress:
        for video in args.videos:
            task = progress.add_task(Path(video).name, total=None)

            def report(done: float, expected: float | None, task=task) -> None:
                progress.update(task, completed=int(done), total=expected and max(int(expected), int(done)))

            results.append((video, timeline(model, video, window=args.window, step=args.step, on_seconds=report)))
    if args.timeline:
        from zoo.plot import plot_timelines

        plot_timelines([(_title(video, results), found) for video, found in results], args.timeline)
    if args.json:
        print_json([_timeline_record(args.model, video, found, args.topk) for video, found in results])
    else:
        for video, found in results:
            show(_timeline_table(_title(video, results), found))
        if args.timeline:
            show(f"Picture: {args.timeline}")


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


def _numbers_table(name: str, results: list):
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("video")
    table.add_column(name, justify="right")
    for video, _, value in results:
        table.add_row(_title(video, results), f"{value:.4g}")
    return table


def _record(model, name: str, video: str, views, answer) -> dict:
    if hasattr(model, "value_name"):
        answered = {"value_name": model.value_name, "value": answer}
    else:
        answered = {"predictions": [prediction._asdict() for prediction in answer]}
    return {
        "model": name,
        "video": video,
        "num_clips": len(views.indices),
        "num_crops": len(views.video) // len(views.indices),
        "seconds": [[round(float(s), 3) for s in clip] for clip in views.seconds],
        **answered,
    }


def _timeline_table(title: str, found):
    from rich import box
    from rich.table import Table

    unit = "window" if len(found.seconds) == 1 else "windows"
    table = Table(title=f"{title}  ({len(found.seconds)} {unit})", title_justify="left", box=box.SIMPLE_HEAD)
    for heading, justify in (("from", "right"), ("to", "right"), ("label", "left"), ("probability", "right")):
        table.add_column(heading, justify=justify)
    for start, end, label, probability, _ in found.segments():
        table.add_row(_clock(start), _clock(end), label, f"{probability:.1%}")
    return table


def _clock(seconds: float) -> str:
    """Minutes, seconds and tenths, hours where there are any: 2:05.0, 1:02:05.0."""
    tenths = round(10 * seconds)
    minutes, rest = divmod(tenths, 600)
    clock = f"{rest // 10:02}.{rest % 10}"
    return f"{minutes}:{clock}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{clock}"


def _timeline_record(model: str, video: str, found, topk: int) -> dict:
    segments = found.segments()
    return {
        "model": model,
        "video": video,
        "duration": round(found.duration, 3),
        "segments": [s._asdict() | {"start": round(s.start, 3), "end": round(s.end, 3)} for s in segments],
        "windows": [
            {"start": round(start, 3), "end": round(end, 3), "predictions": [best._asdict() for best in ranked]}
            for (start, end), ranked in zip(found.seconds.tolist(), found.predictions(topk), strict=True)
        ],
    }
