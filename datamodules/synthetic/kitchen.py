"""Generator of a small EPIC-KITCHENS: long videos of generated motions with the official annotation files.

The clips are those of `datamodules.synthetic.motion`: the verb of an action is a motion, its noun a shape, and the
second noun of its narration, as in "move-left disc over stripes", the texture of the background. A video is a row of
actions with still pauses in between:

    | grow disc over dots | pause | shrink disc over waves | pause | turn-clockwise disc over checks | ...

As a tomato is mostly red, a shape mostly has a colour of its own (with probability `typical`). So that the next action
can be anticipated, a video keeps its shape, and each motion is followed by the next one in the order of
`datamodules.synthetic.motion.CLASSES`, or with probability `surprise` by any.

    root/P01/videos/P01_01.MP4
    root/annotations/EPIC_100_train.csv, EPIC_100_validation.csv, EPIC_100_test_timestamps.csv, and the tables
    root/annotations/retrieval_annotations/EPIC_100_retrieval_train.csv, EPIC_100_retrieval_train_sentence.csv, and test
    root/annotations/EPIC_100_train_actions_gpt_questions_clean.pkl, EPIC_100_train_questions.csv, and of validation
    root/metadata.json
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.errors import DataError
from datamodules.storage.writing import written_folder
from datamodules.synthetic.motion import CLASSES, COLOURS, PATTERNS, SHAPES, ClipSpec, render, sample_spec
from datamodules.synthetic.questions import write_questions
from datamodules.synthetic.writing import _timestamp, _write_csv, write_files, write_video

__all__ = ["NOUNS", "VERBS", "generate_kitchen"]

VERSION = 2
VERBS = tuple(name.replace("_", "-") for name in CLASSES)
NOUNS = (*SHAPES, *PATTERNS.values())
"""Shapes, then textures."""

_SPLITS = ("train", "validation", "test")
_SEEN, _UNSEEN = ("P01", "P02", "P03", "P04"), ("P05",)
_TAIL = 2  # the last so many verbs and shapes count as rare


class _Video(NamedTuple):
    split: str
    participant: str
    name: str
    actions: list[ClipSpec]
    pause_seconds: float

    @property
    def path(self) -> str:
        return f"{self.participant}/videos/{self.name}.MP4"


def generate_kitchen(
    root: str | Path,
    *,
    num_train: int = 160,
    num_val: int = 30,
    num_test: int = 10,
    actions: int = 8,
    size: tuple[int, int] = (64, 64),
    num_frames: int = 24,
    fps: float = 12,
    pause_seconds: float = 1.0,
    surprise: float = 0.1,
    typical: float = 0.9,
    nuisance: float = 0.1,
    seed: int = 0,
    num_workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Writes the videos and annotations and returns their folder.

    Args:
        root: folder to make; one that is there with the same arguments is left alone.
        num_train, num_val, num_test: videos of each split.
        actions: of each video.
        size, num_frames, fps, nuisance: of an action's clip, as in `datamodules.synthetic.motion.sample_spec`.
        pause_seconds: in which the last frame of an action stands still.
        surprise: probability that an action does not follow the order.
        typical: probability that a shape has its own colour.
        seed: same seed, same videos.
        num_workers: processes; by default one for each CPU core, 0 means this one alone.
        progress: show a bar.

    Raises:
        FileExistsError: `root` holds something else.
        DataError: an argument is out of range.
    """
    root = Path(root)
    counts = dict(zip(_SPLITS, (num_train, num_val, num_test), strict=True))
    look = {"size": (int(size[0]), int(size[1])), "num_frames": num_frames, "fps": fps, "nuisance": nuisance}
    rules = {"actions": actions, "pause_seconds": pause_seconds, "surprise": surprise,
             "typical": typical, "seed": seed}  # fmt: skip
    if actions < 1 or pause_seconds < 0 or not 0 <= surprise <= 1 or not 0 <= typical <= 1:
        raise DataError(f"actions {actions}, pause_seconds {pause_seconds}, surprise {surprise} and typical {typical} "
                         "have to be at least 1, at least 0, and between 0 and 1.")  # fmt: skip
    arguments = {**{f"num_{split}": n for split, n in counts.items()}, **look, **rules}
    metadata = {"generator": "datamodules.synthetic_kitchen", "version": VERSION, "arguments": arguments}
    metadata = json.loads(json.dumps(metadata))
    if root.exists() and any(root.iterdir()):
        found = root / "metadata.json"
        if found.is_file() and json.loads(found.read_text(encoding="utf-8")) == metadata:
            return root
        raise FileExistsError(f"{root} is there and holds something else; choose a new or an empty folder.")
    videos = list(_videos(counts, look, rules))
    with written_folder(root) as unfinished:
        jobs = [(unfinished / video.path, video) for video in videos]
        write_files(_write_video, jobs, num_workers, f"Writing {root}", progress)
        _write_annotations(unfinished / "annotations", videos, fps)
        (unfinished / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    return root


def _videos(counts: dict[str, int], look: dict[str, Any], rules: dict[str, Any]) -> list[_Video]:
    made = []
    numbers: dict[str, int] = {}
    for split, count in counts.items():
        people = _SEEN if split == "train" else _SEEN + _UNSEEN
        for index in range(count):
            rng = np.random.default_rng([rules["seed"], _SPLITS.index(split), index])
            participant = people[index % len(people)]
            # Some have three digits, as the videos that were added later, whose frames count 50 to the second.
            number = numbers[participant] = numbers.get(participant, 0) + 1
            name = f"{participant}_{number if number % 3 and number < 100 else 100 + number:02d}"
            shape = list(SHAPES)[rng.integers(len(SHAPES))]
            verb = int(rng.integers(len(CLASSES)))
            actions = []
            for _ in range(rules["actions"]):
                actions.append(
                    _dressed(sample_spec(rng, CLASSES[verb], **look), shape, rng.random() < rules["typical"])
                )
                other = rng.integers(len(CLASSES))
                verb = int(other) if rng.random() < rules["surprise"] else (verb + 1) % len(CLASSES)
            made.append(_Video(split, participant, name, actions, rules["pause_seconds"]))
    return made


def _dressed(spec: ClipSpec, shape: str, typical: bool) -> ClipSpec:
    """The scene with this shape, and the shape in its own colour; a background of that colour takes the other one."""
    if not typical:
        return replace(spec, shape=shape)
    colour = list(COLOURS)[list(SHAPES).index(shape)]
    ground = spec.colour if spec.background_colour == colour else spec.background_colour
    return replace(spec, shape=shape, colour=colour, background_colour=ground)


def _write_video(job: tuple[Path, _Video]) -> None:
    path, video = job
    parts = []
    for spec in video.actions:
        frames = render(spec)
        parts += [frames, np.repeat(frames[-1:], round(video.pause_seconds * spec.fps), axis=0)]
    write_video(path, np.concatenate(parts), video.actions[0].fps)


def _write_annotations(folder: Path, videos: Sequence[_Video], fps: float) -> None:
    folder.mkdir()
    times = ("narration_timestamp", "start_timestamp", "stop_timestamp", "start_frame", "stop_frame")
    labels = ("narration", "verb", "verb_class", "noun", "noun_class", "all_nouns", "all_noun_classes")
    for split, name in (("train", "train"), ("validation", "validation"), ("test", "test_timestamps")):
        rows: list[list[object]] = []
        for video in (video for video in videos if video.split == split):
            rate, start = 50 if len(video.name) == 7 else 60, 0.0
            for number, spec in enumerate(video.actions):
                stop = start + (spec.num_frames - 1) / spec.fps
                at = [max(1, int(seconds * rate)) for seconds in (start, stop)]
                row: list[object] = [f"{video.name}_{number}", video.participant, video.name]
                row += [*map(_timestamp, (start, start, stop)), *at]
                if split != "test":
                    verb, nouns = CLASSES.index(spec.motion), [spec.shape, PATTERNS[spec.background]]
                    text = f"{VERBS[verb]} {nouns[0]} over {nouns[1]}"
                    classes = [NOUNS.index(noun) for noun in nouns]
                    row += [text, VERBS[verb], verb, nouns[0], classes[0], nouns, classes]
                rows.append(row)
                start += spec.num_frames / spec.fps + round(video.pause_seconds * spec.fps) / spec.fps
        header = ("narration_id", "participant_id", "video_id", *times, *(labels if split != "test" else ()))
        _write_csv(folder / f"EPIC_100_{name}.csv", header, rows)
        if split != "test":
            write_questions(folder, split, header, rows)
            _write_retrieval(folder / "retrieval_annotations", split, header, rows)
    for kind, names in (("verb", VERBS), ("noun", NOUNS)):
        classes_of = [(number, name, [name], "generated") for number, name in enumerate(names)]
        _write_csv(folder / f"EPIC_100_{kind}_classes.csv", ("id", "key", "instances", "category"), classes_of)
    for kind, last in (("verb", len(VERBS)), ("noun", len(SHAPES))):
        _write_csv(folder / f"EPIC_100_tail_{kind}s.csv", (kind,), [(last - 1 - k,) for k in range(_TAIL)])
    for split in ("validation", "test"):
        path = folder / f"EPIC_100_unseen_participant_ids_{split}.csv"
        _write_csv(path, ("participant_id",), [(name,) for name in _UNSEEN])
    durations = [(v.name, sum(s.duration_seconds + v.pause_seconds for s in v.actions), fps) for v in videos]
    sizes = ["x".join(map(str, video.actions[0].size)) for video in videos]
    about = [(*row, size) for row, size in zip(durations, sizes, strict=True)]
    _write_csv(folder / "EPIC_100_video_info.csv", ("video_id", "duration", "fps", "resolution"), about)


def _write_retrieval(folder: Path, split: str, header: Sequence[str], rows: Sequence[list[object]]) -> None:
    """The segments of a split again, and of these the first with each narration.

    As in the official files, the test split is that of validation.
    """
    folder.mkdir(exist_ok=True)
    name = f"EPIC_100_retrieval_{'train' if split == 'train' else 'test'}"
    _write_csv(folder / f"{name}.csv", header, rows)
    places = {"narration_id": "narration_id", "narration": "narration"}
    if split == "train":
        places |= {"verb_class": "verb_class", "noun_classes": "all_noun_classes"}
    first: dict[object, list[object]] = {}
    for row in rows:
        known = dict(zip(header, row, strict=True))
        first.setdefault(known["narration"], [known[column] for column in places.values()])
    _write_csv(folder / f"{name}_sentence.csv", list(places), list(first.values()))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.synthetic.kitchen",
        description="Writes a small video data set in the layout of EPIC-KITCHENS-100: rows of generated motions of "
        "shapes, each a verb and a noun, with the official annotation files.",
        epilog="example: python -m datamodules.synthetic.kitchen demo/kitchen",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder to make")
    add("--train", type=int, default=160, metavar="N", help="training videos")
    add("--val", type=int, default=30, metavar="N", help="validation videos")
    add("--test", type=int, default=10, metavar="N", help="test videos")
    add("--actions", type=int, default=8, metavar="N", help="actions in a video")
    add("--pause", type=float, default=1.0, metavar="SECONDS", help="between two actions")
    add("--seed", type=int, default=0, help="same seed, same videos")
    add("--workers", type=int, metavar="N", help="processes; 0: no others; without it: one for each core")
    args = parser.parse_args(argv)
    try:
        root = generate_kitchen(args.out, num_train=args.train, num_val=args.val, num_test=args.test,
                                actions=args.actions, pause_seconds=args.pause, seed=args.seed,
                                num_workers=args.workers)  # fmt: skip
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{root}: {args.train} train, {args.val} validation, {args.test} test videos of {args.actions} actions each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
