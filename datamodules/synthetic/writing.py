"""The demo set as files: H.264 videos in a folder of each class, annotations, captions; and the command that makes it.

What is in a clip is up to `datamodules.synthetic.motion`.
"""

import argparse
import csv
import json
import multiprocessing
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from datamodules.errors import DataError
from datamodules.storage.processes import ProcessPool
from datamodules.storage.writing import written, written_folder
from datamodules.synthetic.motion import (
    CLASSES,
    NUISANCE,
    SHAPES,
    SPLITS,
    ClipSpec,
    check_clip_arguments,
    clip_spec,
    render,
)

__all__ = ["generate", "plot_sheet", "write_files", "write_video"]

# Part of metadata.json: goes up whenever the same arguments would give other frames or files.
VERSION = 3


# ---- files ---------------------------------------------------------------------------------------------------------


def write_video(path: str | Path, frames: NDArray[np.uint8], fps: float) -> None:
    """Writes H.264 in MP4 (libx264, yuv420p, a key frame every second); the file has its name only once it is complete.

    Args:
        path: Where to; an existing file is replaced.
        frames: uint8 (T, H, W, 3) RGB, H and W even.
        fps: Frames per second.
    """
    import av

    rate = Fraction(fps).limit_denominator(1001)
    # mbtree=0: with it, libx264's bytes for pictures this small differ from run to run, one thread or not.
    options = {"crf": "20", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
    options["g"] = str(max(1, round(fps)))
    with written(Path(path)) as unfinished, av.open(str(unfinished), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _write_annotations(folder: Path, clips: Sequence[tuple[str, str, ClipSpec]], classes: Sequence[str]) -> None:
    """Annotation files for (split, relative path, spec) in listing order."""
    for split in SPLITS:
        labelled = [(path, spec.motion) for s, path, spec in clips if s == split]
        if labelled:
            _write_csv(folder / f"{split}.csv", ("path", "label"), labelled)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    _write_csv(
        folder / "captions.csv", ("video", "caption"), [(path, c) for _, path, spec in clips for c in spec.captions]
    )
    verbs, nouns = {v: i for i, v in enumerate(classes)}, {n: i for i, n in enumerate(SHAPES)}
    rows = []
    for number, (split, path, spec) in enumerate(clips):
        # As in EPIC-KITCHENS-100, some people of the held-out videos were never seen in training: P07 and P08. A person
        # goes round all classes, so that nobody has a favourite.
        person = f"P{number // len(classes) % (6 if split == 'train' else 8) + 1:02d}"
        times = (_timestamp(0.0), _timestamp(spec.duration_seconds))
        narration = f"{spec.motion.replace('_', ' ')} {spec.shape}"
        labels = (spec.motion, verbs[spec.motion], spec.shape, nouns[spec.shape])
        rows.append((f"{person}_{number}", person, path, *times, narration, *labels))
    header = ("narration_id", "participant_id", "video", "start_timestamp", "stop_timestamp", "narration", "verb",
              "verb_class", "noun", "noun_class")  # fmt: skip
    _write_csv(folder / "actions.csv", header, rows)


def _timestamp(seconds: float) -> str:
    """HH:MM:SS.ff, as EPIC-KITCHENS-100 writes it."""
    minutes, hundredths = divmod(round(seconds * 100), 6000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{hundredths // 100:02d}.{hundredths % 100:02d}"


# ---- the data set --------------------------------------------------------------------------------------------------


def generate(
    root: str | Path,
    *,
    num_train: int = 2560,
    num_val: int = 160,
    num_test: int = 320,
    classes: Sequence[str] = CLASSES,
    size: tuple[int, int] = (64, 64),
    num_frames: int = 24,
    fps: float = 12,
    nuisance: float = NUISANCE,
    seed: int = 0,
    num_workers: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> Path:
    """Writes the data set and returns its folder.

        root/{train,val,test}/<class>/<number>.mp4
        root/{train,val,test}.csv    path,label                (label: the class's name)
        root/classes.txt             one name a line; the line number, from 0, is the class index
        root/captions.csv            video,caption             (three captions a video)
        root/actions.csv             columns of EPIC-KITCHENS-100: verb is the motion, noun the shape
        root/metadata.json           generator, version, arguments

    All of it is made in a folder beside `root` which takes its name at the very end: `root` is there and complete, or
    not there. A complete data set of the same arguments is left alone. Clips go round the classes in turn, so that
    every class has its share.

    Args:
        root: Folder to make.
        num_train, num_val, num_test: Clips in each split.
        classes: Subset of `CLASSES`, in the order of their indices.
        size, num_frames, fps, nuisance: As in `sample_spec`.
        seed: Same seed, same frames.
        num_workers: Processes; by default one for each CPU core, 0 means this one alone.
        progress: Show a bar.
        overwrite: Replace a data set of this generator that has other arguments or lacks files.

    Raises:
        DataError: An argument is out of range.
        FileExistsError: `root` holds something else.
    """
    root = Path(root)
    check_clip_arguments(classes, size, num_frames, fps, nuisance)
    counts = dict(zip(SPLITS, (num_train, num_val, num_test), strict=True))
    if min(counts.values()) < 0 or sum(counts.values()) == 0:
        raise DataError(f"The numbers of clips {counts} must not be negative and not all zero.")
    look = {"size": (int(size[0]), int(size[1])), "num_frames": num_frames, "fps": fps, "nuisance": nuisance}
    arguments = {"seed": seed, **{f"num_{s}": n for s, n in counts.items()}, "classes": list(classes), **look}
    metadata = {"generator": "datamodules.synthetic", "version": VERSION, "arguments": arguments}
    metadata = json.loads(json.dumps(metadata))  # tuples become lists, as in the file it is compared with
    clips = list(_listing(counts, classes, seed, look))
    if _already_there(root, metadata, [path for _, path, _ in clips], overwrite):
        if progress:
            print(f"{root} already holds this data set, complete: left as it is.")
        return root

    with written_folder(root) as unfinished:
        jobs = [(unfinished / path, spec) for _, path, spec in clips]
        write_files(_write_clip, jobs, num_workers, f"Writing {root}", progress)
        _write_annotations(unfinished, clips, classes)
        (unfinished / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    return root


def _listing(
    counts: dict[str, int], classes: Sequence[str], seed: int, look: dict[str, Any]
) -> Iterator[tuple[str, str, ClipSpec]]:
    for split, count in counts.items():
        for index in range(count):
            motion = classes[index % len(classes)]
            yield split, f"{split}/{motion}/{index:05d}.mp4", clip_spec(seed, split, index, motion, **look)


def _write_clip(job: tuple[Path, ClipSpec]) -> None:
    path, spec = job
    write_video(path, render(spec), spec.fps)


def write_files(
    function: Callable[[Any], None], jobs: Sequence[tuple[Path, Any]], num_workers: int | None, title: str, bar: bool
) -> None:
    """Write each file: `function` is called with its path and what it holds, in processes, and a bar shows progress."""
    for folder in {path.parent for path, _ in jobs}:
        folder.mkdir(parents=True, exist_ok=True)
    for _ in track(_run(function, jobs, num_workers), title, len(jobs), disable=not bar):
        pass


def _run(function: Callable[[Any], None], jobs: Sequence[Any], num_workers: int | None) -> Iterator[None]:
    """Yields once for each finished job, in order."""
    num_workers = min(os.cpu_count() or 1, len(jobs) // 16) if num_workers is None else num_workers
    if num_workers <= 1:  # a process to help costs more than a few clips
        yield from map(function, jobs)
        return
    # "spawn": forking a process in which torch has already started threads can hang.
    with ProcessPool(num_workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(function, jobs, chunksize=8)


def _already_there(root: Path, metadata: dict[str, Any], paths: Sequence[str], overwrite: bool) -> bool:
    """Whether root is what would be made. Raises where it is something that may not be replaced."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / "metadata.json").read_text(encoding="utf-8"))
        ours = found["generator"] == metadata["generator"]
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:  # never replaced, not even with overwrite: it may be someone's videos
        raise FileExistsError(f"{root} is there and was not made by this generator: choose a new or an empty folder.")
    missing = sum(not (root / path).is_file() for path in paths)
    if found == metadata and not missing:
        return True
    if overwrite:
        return False
    if found != metadata:
        old, new = ({"version": m.get("version"), **m.get("arguments", {})} for m in (found, metadata))
        differences = ", ".join(f"{k} {old.get(k)} (asked: {v})" for k, v in new.items() if old.get(k) != v)
        problem = f"a data set with other settings: {differences}"
    else:
        problem = f"this data set, but {missing} of its {len(paths)} videos are missing"
    raise FileExistsError(f"{root} holds {problem}; choose another folder or ask for it to be overwritten.")


# ---- contact sheet and command line --------------------------------------------------------------------------------


def plot_sheet(path: str | Path, specs: Sequence[ClipSpec], num_columns: int = 8) -> None:
    """Draws a picture with one row per clip: name, caption, and frames evenly spread over time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = specs[0].size
    cell_width = 1.45
    cell_height = cell_width * height / width
    left, top, bottom = 2.5, 0.75, 0.45
    gap = 0.06
    total_width = left + num_columns * (cell_width + gap) + 0.15
    total_height = top + len(specs) * (cell_height + gap) + bottom
    figure = Figure((total_width, total_height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)

    def place(x: float, y: float) -> tuple[float, float]:  # inches from the upper left corner
        return x / total_width, 1 - y / total_height

    figure.text(*place(0.15, 0.32), "Motion set: one clip of each class", size=14, weight="bold", va="center")
    for row, spec in enumerate(specs):
        y = top + row * (cell_height + gap)
        middle = y + cell_height / 2
        figure.text(*place(0.15, middle - 0.24), spec.motion.replace("_", " "), size=11, weight="bold", va="center")
        words = textwrap.fill(min(spec.captions, key=len), 34)
        figure.text(*place(0.15, middle + 0.16), words, size=8, color="0.35", va="center", linespacing=1.3)
        frames = render(spec)
        for column, t in enumerate(np.linspace(0, spec.num_frames - 1, num_columns).round().astype(int)):
            x0, y1 = place(left + column * (cell_width + gap), y + cell_height)
            axes = figure.add_axes((x0, y1, cell_width / total_width, cell_height / total_height))
            axes.imshow(frames[t], interpolation="lanczos")
            axes.axis("off")
            if row == 0:
                axes.set_title(f"{t / spec.fps:.1f} s", size=9, color="0.35", pad=4)
    note = "Only the named motion drifts; position, size, angle and background wander without telling the class."
    figure.text(*place(left, total_height - 0.2), note, size=9, color="0.35", va="center")
    figure.savefig(path)


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 64x48") from None
    return width, height


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.synthetic",
        description="Writes a small video data set whose eight classes differ in motion only: a shape that moves left, "
        "right, up or down, grows, shrinks, or turns one way or the other, while all else about it wanders there and "
        "back. Real H.264 .mp4 files in a folder per class, with the annotation files a real data set would have.",
        epilog="example: python -m datamodules.synthetic data/motion --train 640 --nuisance 1 --plot motion.png",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder to make: never half-written, left alone where complete")
    add("--train", type=int, default=2560, metavar="N", help="training clips")
    add("--val", type=int, default=160, metavar="N", help="validation clips")
    add("--test", type=int, default=320, metavar="N", help="test clips")
    add("--classes", nargs="+", default=list(CLASSES), metavar="CLASS", help="which motions")
    add("--size", type=_size, default="64x64", metavar="WxH", help="picture size in pixels, both even")
    add("--frames", type=int, default=24, metavar="N", help="frames in a clip")
    add("--fps", type=float, default=12.0, help="frames per second")
    add("--nuisance", type=float, default=NUISANCE, metavar="0..1", help="how far the attributes go that do not matter")
    add("--seed", type=int, default=0, help="same seed, same frames")
    add("--workers", type=int, metavar="N", help="processes; 0: no others; without it: one for each core")
    add("--overwrite", action="store_true", help="replace an earlier data set of this generator")
    add("--plot", type=Path, metavar="FILE.png", help="also draw one clip of each class")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the unfinished folder is removed
    look = {"size": args.size, "num_frames": args.frames, "fps": args.fps, "nuisance": args.nuisance}
    try:
        root = generate(
            args.out,
            num_train=args.train,
            num_val=args.val,
            num_test=args.test,
            classes=args.classes,
            seed=args.seed,
            num_workers=args.workers,
            overwrite=args.overwrite,
            **look,
        )
        if args.plot:
            args.plot.parent.mkdir(parents=True, exist_ok=True)
            # clips of the first split that has any, so the sheet shows what is in the folder
            split = next(s for s in ("val", "test", "train") if getattr(args, s))
            plot_sheet(args.plot, [clip_spec(args.seed, split, i, c, **look) for i, c in enumerate(args.classes)])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    megabytes = sum(file.stat().st_size for file in root.rglob("*.mp4")) / 1e6
    clips = ", ".join(f"{getattr(args, s)} {s}" for s in SPLITS if getattr(args, s))
    print(
        f"{root}: {clips} clips of {len(args.classes)} classes, {args.frames} frames at {args.fps:g} fps, "
        f"{args.size[0]}x{args.size[1]} px, {megabytes:.1f} MB" + (f"; picture in {args.plot}" if args.plot else "")
    )
    return 0
