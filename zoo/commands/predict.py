"""`zoo predict`: label a video, or label a long one over time."""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.commands.console import long_work, print_json, progress_bar, show, titled_table
from zoo.commands.options import add_engine, add_precision, check_engine, show_done
from zoo.errors import ZooError
from zoo.files import PICTURES, check_target
from zoo.inference.precision import check_precision
from zoo.inference.segment_files import check_segments, write_segments
from zoo.limits import (
    CLIPS,
    FRAMES,
    PICTURED,
    TOPK,
    TooManyWindows,
    check_range,
    check_window_and_step,
    check_windows,
)
from zoo.printable import clock
from zoo.sources import find_videos

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import JustifyMethod
    from rich.progress import Progress, TaskID
    from rich.table import Table
    from torch import Tensor

    from lightning_modules.base import BaseModule
    from zoo.inference.long_videos import Timeline

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  zoo predict videomamba-nano-motion clip.mp4            the shipped model, no network needed
  zoo predict videomamba-ti-k400 clip.mp4 --plot out.png fetches the weights on first use
  zoo predict runs/mine/model a.mp4 b.mp4 --json         your own model, for programs
  zoo predict videomamba-ti-k400 holiday/                all videos in a folder
  zoo predict videomamba-ti-k400 clip.mp4 --checkpoint videomamba_t16_k400_f16_res224.pth
  zoo predict model.onnx clip.mp4                        what `zoo export` wrote, run by ONNX Runtime

what happens when, in a video of any length (docs/long_videos.md):
  zoo predict videomamba-ti-k400 film.mkv --timeline out.png    clips slide over the film; picture and table
  zoo predict videomamba-ti-k400 film.mkv --window 10 --step 2  clips of 10 seconds, a new one every 2; no picture
  zoo predict videomamba-ti-k400 film.mkv --window 10 --json    start, end and classes of every clip
  zoo predict videomamba-ti-k400 film.mkv --segments film.srt   subtitles for a player; .csv and .json for tools

or the whole video as one long clip:
  zoo predict videomamba-ti-coin film.mkv --frames 512

or labels of many videos in one table (docs/batches.md):
  zoo predict videomamba-ti-k400 videos/ -o labels.parquet      run again to resume, or when videos were added
  zoo predict videomamba-ti-k400 s3://bucket/videos -o s3://bucket/labels.lance --ray auto
"""


_BARS = 10  # with at most 10 videos, finished ones keep their bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `zoo predict`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("model", help="registered name, model folder, Lightning .ckpt, Hub repository org/name, or "
                        "exported .onnx file")  # fmt: skip
    parser.add_argument(
        "videos", nargs="+", metavar="VIDEO", help="video or image files, or folders: their videos, at any depth; with "
        "-o also .txt and .csv lists of them, tar shards, and URLs",
    )  # fmt: skip
    parser.add_argument("--checkpoint", metavar="FILE", help="take the weights from this file instead of the Hub")
    parser.add_argument("--topk", type=int, default=5, metavar="K", help="classes to show (default 5)")
    parser.add_argument(
        "--clips", type=int, metavar="N", help="clips in time to average (default: as the model was tested)"
    )
    parser.add_argument("--crops", type=int, choices=(1, 3), help="crops in space to average (default: as tested)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    add_precision(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", metavar="PNG", help="save the sampled frames with the scores beside them; "
                        "right and wrong are marked for videos in a folder named after a class")  # fmt: skip
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
        "--segments", metavar="FILE",
        help="save the stretches with the same label: .csv, .json (as ActivityNet's evaluation takes it), or .srt "
        "(subtitles of one video)",
    )  # fmt: skip
    sliding.add_argument(
        "--window", type=float, metavar="SECONDS",
        help="length of a clip (default: of what the model learned from: 10 for Kinetics, 4 for Something-Something, "
        "160 for Breakfast, 140 for COIN; otherwise its frames at 4 a second, or at its stride)",
    )  # fmt: skip
    sliding.add_argument(
        "--step", type=float, metavar="SECONDS",
        help="from one clip to the next; boundaries are found to about this (default: half a window)",
    )  # fmt: skip

    table = parser.add_argument_group("a table", "Labels of any number of videos; a run that was interrupted resumes.")
    table.add_argument("-o", "--out", metavar="TABLE", help="what to write: FILE.parquet, or a folder or URL ending in "
                       ".lance; an existing table is updated")  # fmt: skip
    add_engine(table)


def run(args: argparse.Namespace) -> None:
    """Print the best classes of each video, or the number that a regressor predicts."""
    if args.out is not None:
        _fill_table(args)
        return
    if any(value is not None for value in (args.workers, args.ray, args.shard)):
        raise ZooError("--workers, --ray and --shard are for tables; name one with -o.")
    sliding = any(value is not None for value in (args.timeline, args.segments, args.window, args.step))
    _check(args, sliding)
    videos = find_videos(args.videos)
    pictured = args.plot is not None or args.timeline is not None
    if pictured and len(videos) > PICTURED:
        raise ZooError(f"There are {len(videos)} videos and a picture shows {PICTURED} at most; leave the picture out.")
    if args.segments is not None:
        check_segments(args.segments, len(videos))

    from datamodules.video.opening import DecodeError
    from zoo.deploy.onnx_model import open_model
    from zoo.inference.predict import to_device

    if sliding:
        _check_lengths(videos, args.step or args.window)
    frames = {} if args.frames is None else {"num_frames": args.frames}
    model = open_model(args.model, checkpoint=args.checkpoint, **frames)
    if hasattr(model, "value_name"):
        if sliding or pictured:
            raise ZooError(f"{args.model} predicts a number, and --plot and --timeline show classes; leave them out.")
    elif not hasattr(model, "class_names"):
        raise ZooError(f"{args.model} has no classes to predict; use a classifier.")
    model = to_device(model, args.device)
    if not sliding:
        check_precision(args.precision, model.device)

    answer = _over_time if sliding else _as_a_whole
    results: list[Any] = []
    unreadable: list[str] = []
    with progress_bar("seconds" if sliding else "views", args.json) as progress:
        for video in videos:
            task = progress.add_task(Path(video).name, total=None)
            try:
                results.append(answer(args, model, video, progress, task))
            except (DecodeError, TooManyWindows, OSError) as error:
                if len(videos) == 1:
                    raise
                progress.console.print(f"zoo: {' '.join(str(error).split())}", soft_wrap=True)
                unreadable.append(video)
            progress.update(task, visible=len(videos) <= _BARS)
    if results:
        (_show_timelines if sliding else _show)(args, model, results)
    if unreadable:
        raise ZooError(f"{len(unreadable)} of {len(videos)} videos cannot be read (see above); the first is "
                       f"{unreadable[0]}.")  # fmt: skip


def _fill_table(args: argparse.Namespace) -> None:
    """Write labels into a table, and print a summary."""
    shard = check_engine(args)
    _check(args, sliding=False)
    if any(value is not None for value in (args.plot, args.timeline, args.segments, args.window, args.step)):
        raise ZooError("-o writes one row for each video; omit --plot, --timeline, --segments, --window and --step.")
    with long_work("videos", args.json) as report:
        from zoo.deploy.onnx_model import open_model
        from zoo.inference.predictor import predict_into

        # As without a table: a given number of frames is one clip and one crop.
        frames, views = ({}, None) if args.frames is None else ({"num_frames": args.frames}, 1)
        done = predict_into(
            lambda: open_model(args.model, checkpoint=args.checkpoint, **frames),
            args.videos,
            args.out,
            name=args.model,
            topk=args.topk,
            num_clips=args.clips or views,
            num_crops=args.crops or views,
            num_workers=args.workers,
            ray=args.ray,
            shard=shard,
            precision=args.precision,
            device=args.device,
            on_files=lambda *counts: report("predicting", *counts),
        )
    show_done(args, "predictions", "predicted", done)


def _check(args: argparse.Namespace, sliding: bool) -> None:
    """Refuse wrong options before the model is loaded."""
    check_range("--topk", args.topk, TOPK)
    if args.clips is not None:
        check_range("--clips", args.clips, CLIPS)
    if args.frames is not None:
        check_range("--frames", args.frames, FRAMES)
    check_window_and_step(args.window, args.step, prefix="--")
    if sliding and any(value is not None for value in (args.plot, args.clips, args.crops)):
        raise ZooError("--timeline, --segments, --window and --step slide clips over the video, one crop each; leave "
                       "out --plot, --clips and --crops.")  # fmt: skip
    for picture in (args.plot, args.timeline):
        if picture is not None:
            check_target(picture, PICTURES)


def _check_lengths(videos: list[str], step: float | None) -> None:
    """Refuse videos whose claimed length makes too many windows at a given step."""
    from datamodules.video.opening import DecodeError
    from datamodules.video.streaming import FrameStream

    if step is None:
        return
    for video in videos:
        with suppress(DecodeError, OSError), FrameStream(video) as stream:  # named when its turn comes
            check_windows(video, stream.expected_seconds or 0.0, step)


def _as_a_whole(
    args: argparse.Namespace, model: "BaseModule", video: str, progress: "Progress", task: "TaskID"
) -> "_Answer":
    from zoo.inference.predict import rank, read_views, score_views, value_of_views

    clips, crops = (args.clips, args.crops) if args.frames is None else (args.clips or 1, args.crops or 1)
    views = read_views(model, video, clips, crops)
    progress.update(task, total=len(views.video))

    def advance() -> None:
        progress.advance(task)

    answer: Any  # a number, or a ranking
    if hasattr(model, "value_name"):
        answer = value_of_views(model, views, args.precision, advance)
    else:
        answer = rank(model, score_views(model, views, args.precision, advance), args.topk)
    num_clips = len(views.indices)
    num_crops = len(views.video) // num_clips
    middle = num_clips // 2
    shown = views.video[middle * num_crops + num_crops // 2] if args.plot is not None else None
    return _Answer(video, num_clips, num_crops, views.seconds, shown, answer)


def _over_time(
    args: argparse.Namespace, model: "BaseModule", video: str, progress: "Progress", task: "TaskID"
) -> "tuple[str, Timeline]":
    from zoo.inference.long_videos import timeline

    def report(done: float, expected: float | None) -> None:
        progress.update(task, completed=int(done), total=expected and max(int(expected), int(done)))

    return video, timeline(
        model, video, window=args.window, step=args.step, precision=args.precision, on_seconds=report
    )


def _show(args: argparse.Namespace, model: "BaseModule", results: "list[_Answer]") -> None:
    if args.plot is not None:
        from zoo.inference.plot import plot_predictions

        plot_predictions(
            [(_title(r.video, results), r.shown, r.seconds[r.num_clips // 2], r.answer, _true_class(model, r.video))
             for r in results if r.shown is not None],
            args.plot,
        )  # fmt: skip
    if args.json:
        print_json([_record(model, args.model, result) for result in results])
    elif hasattr(model, "value_name"):
        show(_numbers_table(model.value_name or "value", results))
    else:
        for result in results:
            show(_table(_title(result.video, results), result))
        if args.plot is not None:
            show(f"Picture: {args.plot}")


def _show_timelines(args: argparse.Namespace, model: "BaseModule", results: "list[tuple[str, Timeline]]") -> None:
    if args.timeline is not None:
        from zoo.inference.plot import plot_timelines

        plot_timelines([(_title(video, results), found) for video, found in results], args.timeline)
    if args.segments is not None:
        write_segments([found for _, found in results], args.segments)
    if args.json:
        print_json([_timeline_record(args.model, video, found, args.topk) for video, found in results])
    else:
        for video, found in results:
            show(_timeline_table(_title(video, results), found))
        for kind, file in (("Picture", args.timeline), ("Segments", args.segments)):
            if file is not None:
                show(f"{kind}: {file}")


class _Answer(NamedTuple):
    """A model's answer for one video.

    Attributes:
        video: the file.
        num_clips: clips that were averaged.
        num_crops: crops of each.
        seconds: float64 (num_clips, T), times of the frames.
        shown: the middle view, uint8 (3, T, H, W), where a picture was asked for.
        answer: best classes, or a number.
    """

    video: str
    num_clips: int
    num_crops: int
    seconds: "NDArray[np.float64]"
    shown: "Tensor | None"
    answer: Any


def _title(video: str, results: Sequence[object]) -> str:
    """Return the file's name; among several with its folder, since data sets number the files of each class from 1."""
    path = Path(video)
    return path.name if len(results) == 1 else str(Path(path.parent.name, path.name))


def _true_class(model: "BaseModule", video: str) -> str | None:
    """Return the right class where the video lies in a folder that is named after one of the model's classes."""
    folder = Path(video).absolute().parent.name
    return folder if folder in (model.class_names or ()) else None


def _table(title: str, result: _Answer) -> "Table":
    views = result.num_clips * result.num_crops
    unit = "view" if views == 1 else "views"
    table = titled_table(f"{title}  ({views} {unit})", {"": "right", "label": "left", "probability": "right"})
    for i, prediction in enumerate(result.answer, start=1):
        table.add_row(str(i), prediction.label, f"{prediction.probability:.1%}", style="bold" if i == 1 else None)
    return table


def _numbers_table(name: str, results: list[_Answer]) -> "Table":
    table = titled_table(None, {"video": "left", name: "right"})
    for result in results:
        table.add_row(_title(result.video, results), f"{result.answer:.4g}")
    return table


def _record(model: "BaseModule", name: str, result: _Answer) -> dict[str, Any]:
    if hasattr(model, "value_name"):
        answered: dict[str, Any] = {"value_name": model.value_name, "value": result.answer}
    else:
        answered = {"predictions": [prediction._asdict() for prediction in result.answer]}
    return {
        "model": name,
        "video": result.video,
        "num_clips": result.num_clips,
        "num_crops": result.num_crops,
        "seconds": [[round(float(s), 3) for s in clip] for clip in result.seconds],
        **answered,
    }


def _timeline_table(title: str, found: "Timeline") -> "Table":
    unit = "window" if len(found.seconds) == 1 else "windows"
    columns: dict[str, JustifyMethod] = {"from": "right", "to": "right", "label": "left", "probability": "right"}
    table = titled_table(f"{title}  ({len(found.seconds)} {unit})", columns)
    for start, end, label, probability, _ in found.segments():
        table.add_row(clock(start), clock(end), label, f"{probability:.1%}")
    return table


def _timeline_record(model: str, video: str, found: "Timeline", topk: int) -> dict[str, Any]:
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
