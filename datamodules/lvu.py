"""LVU: nine questions about scenes of films of some minutes each; seven have classes for an answer, two a number."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from torch import Tensor
from typing_extensions import override

from datamodules.annotations.captions import read_lines, read_table
from datamodules.annotations.lists import is_number, read_rows
from datamodules.annotations.locate import locate_videos
from datamodules.base import ClipDataset, Sample, VideoDataModule
from datamodules.checks import Number, OrNone, check
from datamodules.clips import ClipFormat
from datamodules.errors import DataError, some
from datamodules.loading import Item
from datamodules.storage.files import first_file, join, resolve

__all__ = ["CLASSES", "LVU", "VALUES", "Film", "FilmDataset", "windows_of"]

CLASSES = {"relationship": 4, "way_speaking": 5, "scene": 6, "director": 10, "genre": 4, "writer": 10, "year": 9}
"""Number of classes of each task (docs/protocol.md, section 10)."""
VALUES = {"like_ratio": ("like_ratio", 9.138220535629456), "view_count": ("log_view_count", 11.76425435683139)}
"""Names and means of 10 * likes / (likes + dislikes), and of the natural logarithm of the views (same place)."""

_SOURCE = "https://github.com/chaoyuaw/lvu"
_FOLDERS = ("", "lvu_1.0")
_DURATIONS = ("lvu_durations.csv", "durations.csv")
_HEADERS = {
    "like_ratio": "like_count dislike_count youtube_id imdb_id",
    "view_count": "view_count youtube_id imdb_id",
    **dict.fromkeys(CLASSES, "class_id class_name youtube_id imdb_id"),
}

Span = tuple[float, float] | None

_MOST_WINDOWS = 100_000
"""Windows of a film; of one of a day, with one a second, there are 86,400."""


class Film(NamedTuple):
    """One scene of a film.

    Attributes:
        path: the video.
        answer: a class, int, or a number, float.
        seconds: how long it is, where that is needed.
    """

    path: str
    answer: int | float
    seconds: float | None = None


def windows_of(duration: float, length: float = 60.0, stride: float = 16.0) -> list[tuple[float, float]]:
    """First and last second of the windows of a film: one every `stride`, the last cut at the end of the film.

        duration 100     |0 ------------ 60|
                              |16 ------------ 76|
                                   |32 ------------ 92|
                                        |48 ---------- 100|
                                             |64 ----- 100|        (80 .. 100 is less than half a window)

    Windows of less than half the length are left out, and a film shorter than one window is one (docs/protocol.md,
    section 2, for 60 s and 16 s).
    """
    if duration < length:
        return [(0.0, duration)]
    if duration / stride > _MOST_WINDOWS:
        raise DataError(f"A film of {duration:g} seconds has more than {_MOST_WINDOWS} windows; raise "
                        "data.window_stride, or correct its duration.")  # fmt: skip
    starts = (number * stride for number in range(math.ceil(duration / stride)))
    return [(start, min(start + length, duration)) for start in starts if min(length, duration - start) >= length / 2]


@dataclass(eq=False, repr=False)
class FilmDataset(ClipDataset[Film]):
    """`ClipDataset` of windows of films.

    Training: an item is a window. Evaluation: an item is a film, and its views are those of all its windows, one after
    the other.

    Args:
        windows: of each film; None is the whole.
        key: of the answers in a batch, "label" or "value".
    """

    _: KW_ONLY
    windows: Sequence[Sequence[Span]]
    key: str

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        self.first_items = np.cumsum([0, *map(len, self.windows)])

    @override
    def spans_of(self, number: int) -> Sequence[Span]:
        return self.windows[number]

    @override
    def _item(self, video: Tensor, sample: Film, index: int) -> Item:
        answer = sample.answer if self.key == "label" else np.float32(sample.answer)
        return {"video": video.contiguous(), self.key: answer, "index": index, "path": sample.path}


class LVU(VideoDataModule[Film]):
    """LVU: the official lists, or VideoMamba's, and videos named after their YouTube id.

    | file | where |
    |---|---|
    | <task>/{train,val,test}.csv, columns separated by spaces | root or root/lvu_1.0 |
    | lvu_durations.csv or durations.csv, needed for windows | root or root/lvu_1.0 |
    | <YouTube id>.mp4, or another suffix | root/videos, or without it root; up to three folders deep |

        scene/train.csv         class_id class_name youtube_id imdb_id
                                0 office 7OARf8dNLBc tt0144084
        like_ratio/train.csv    like_count dislike_count youtube_id imdb_id
        view_count/train.csv    view_count youtube_id imdb_id
        lvu_durations.csv       videoid,duration                               in seconds; needed for windows
        scene/train.csv         videos/7OARf8dNLBc.mp4,0                       or VideoMamba's: path, answer
                                videos/7OARf8dNLBc.mp4,0,124                   and duration, where windows are wanted

    Tasks with classes: relationship (4), way_speaking (5), scene (6), director (10 ids of IMDb, two never appear),
    genre (4), writer (10 ids of IMDb), year (9 decades). With a number: like_ratio, 10 * likes / (likes + dislikes),
    and view_count, the natural logarithm of the views.

    Their batches have the number as `value` instead of `label`. The published code, and so VideoMamba's lists,
    subtract `value_mean` from it; here a `VideoRegressor` does, which leaves the squared error as it is.

    `window_seconds` is the trimmed variant (60 in the published scripts): a training item is a window of a film, see
    `windows_of`, and validation and testing average over all windows of a film, one film a batch. (The published code
    counts the first window only.)

    Args:
        root: folder of lists and videos, a path or a URL.
        task: one of those above.
        videos: folder of the videos; None looks where the class says.
        train: list of training videos in the task's folder.
        val: list of validation videos.
        test: list of test videos.
        window_seconds: length of a window; None takes films whole.
        window_stride: seconds from the start of one window to that of the next.
        durations: file of durations; None looks for those above.
        common: see `datamodules.base.VideoDataModule`.

    Raises:
        DataError: an unknown task, or mixing of numbers; from `setup`: lists, durations or all videos are missing, or a
            row cannot be understood.
    """

    entry = Film

    def __init__(
        self,
        root: str | Path,
        *,
        task: str,
        videos: str | None = None,
        train: str = "train.csv",
        val: str = "val.csv",
        test: str = "test.csv",
        window_seconds: float | None = None,
        window_stride: float = 16.0,
        durations: str | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if task not in _HEADERS:
            raise DataError(f"task is {task!r}; LVU's are {', '.join((*CLASSES, *VALUES))}.")
        if task in VALUES and (self.mixer.mixup or self.mixer.cutmix):
            raise DataError(f"mixup and cutmix mix classes, but {task} is a number; set data.mixup and cutmix to 0.")
        seconds = Number(0.01, 1e6)
        check(window_seconds=(window_seconds, OrNone(seconds)), window_stride=(window_stride, seconds))
        if window_seconds is not None and self.eval_batch_size not in (None, 1):
            raise DataError(
                f"eval_batch_size is {self.eval_batch_size}, but films have different numbers of windows; leave it out."
            )
        if window_seconds is not None:
            self.eval_batch_size = 1
        self.root = resolve(root)
        self.task = task
        self.videos = videos
        self.lists = {"train": train, "val": val, "test": test}
        self.window_seconds, self.window_stride = window_seconds, window_stride
        self.durations = durations
        self.num_classes = CLASSES.get(task)  # type: ignore[assignment]  # numbers have no classes
        self.value_name: str | None
        self.value_mean: float | None
        self.value_name, self.value_mean = VALUES.get(task, (None, None))

    @override
    def list_classes(self) -> list[str] | None:
        """Class names from all lists of the task; "class 2" for a class without examples.

        None for numbers, and for lists of numbers.
        """
        if self.task in VALUES:
            return None
        names: dict[int, str] = {}
        for split in self.lists:
            source = self._source(split) if split == "train" else self._list(split)
            for line, fields in [] if source is None else _official_rows(source, _HEADERS[self.task]) or ():
                number, name = int(fields[0]), " ".join(fields[1:-2])
                if names.setdefault(number, name) != name:
                    raise DataError(
                        f"{source}, line {line}: class_id {number} is called {name!r}, and elsewhere "
                        f"{names[number]!r}; take all lists from {_SOURCE}."
                    )
        return [names.get(number, f"class {number}") for number in range(self.num_classes)] if names else None

    @override
    def list_videos(self, split: str) -> list[Film]:
        source = self.origins[split] = self._source(split)
        rows = _official_rows(source, _HEADERS[self.task])
        return self._from_paths(source) if rows is None else self._from_official(source, rows, split)

    def _list(self, split: str) -> str | None:
        return first_file(self.folders, self.root, self._places(split))

    def _places(self, split: str) -> list[str]:
        return [join(folder, self.task, self.lists[split]) for folder in _FOLDERS]

    def _source(self, split: str) -> str:
        found = self._list(split)
        if found is None:
            raise DataError(
                f"{self.root} has no {split} list of LVU's task {self.task}: there is no "
                f"{' and no '.join(join(self.root, place) for place in self._places(split))}; check data.root, or get "
                f"the lists from {_SOURCE}."
            )
        return found

    def _from_official(self, source: str, rows: list[tuple[int, list[str]]], split: str) -> list[Film]:
        names = [fields[-2] for _, fields in rows]
        answers = [self._answer(source, line, fields) for line, fields in rows]
        seconds: Sequence[float | None] = [None] * len(names)
        if self.window_seconds is not None:
            seconds = self._seconds(source, names)
        paths = locate_videos(
            self.folders, self.root, names, videos=self.videos, search=self.check_files,
            what=f"{split} videos of LVU's task {self.task}", source=_SOURCE,
        )  # fmt: skip
        return [Film(*film) for film in zip(paths, answers, seconds, strict=True)]

    def _answer(self, source: str, line: int, fields: list[str]) -> int | float:
        counts = [float(field) for field in fields[:-2] if is_number(field)]
        if self.task in CLASSES:
            return int(fields[0])
        if self.task == "like_ratio" and len(counts) == 2 and min(counts) >= 0 and sum(counts) > 0:
            return 10 * counts[0] / sum(counts)
        if self.task == "view_count" and len(counts) == 1 and counts[0] > 0:
            return math.log(counts[0])
        raise DataError(f"{source}, line {line}: {' '.join(fields[:-2])!r} are no counts; correct the row.")

    def _seconds(self, source: str, names: list[str]) -> list[float]:
        places = [join(folder, name) for folder in _FOLDERS for name in _DURATIONS]
        path = first_file(self.folders, self.root, places if self.durations is None else (self.durations,))
        if path is None:
            looked_for = _DURATIONS if self.durations is None else (self.durations,)
            raise DataError(
                f"{self.root} has no {' or '.join(looked_for)}, and windows need to know how long the videos are; "
                "write a file with the columns videoid,duration (seconds), and name it with data.durations, or set "
                "data.window_seconds to null."
            )
        rows = read_table(path, ("videoid", "duration"))
        found = {row["videoid"]: _number(row["duration"]) or 0.0 for row in rows}
        lacking = [name for name in names if not found.get(name, 0.0) > 0]
        if lacking:
            raise DataError(
                f"{len(lacking)} of the {len(names)} videos of {source} have no duration above 0 in {path}: "
                f"{some(lacking)}; add them."
            )
        return [found[name] for name in names]

    def _from_paths(self, source: str) -> list[Film]:
        films = []
        for line, path, rest in read_rows(source, ","):
            values = [rest]
            if self.window_seconds is not None:
                path, _, answer = path.rpartition(",")
                values = [answer, rest]
            numbers = [number for value in values if (number := _number(value)) is not None]
            if not path or len(numbers) < len(values) or (self.task in CLASSES and not is_number(values[0])):
                columns = "path,answer" + (",duration" if self.window_seconds is not None else "")
                raise DataError(
                    f"{source}, line {line}: {','.join((path, *values))!r} is not {columns}, and the file does not "
                    f"begin with {_HEADERS[self.task]!r} either; correct the row."
                )
            is_class = self.task in CLASSES
            found = int(values[0]) if is_class else numbers[0] + VALUES[self.task][1]
            films.append(Film(join(self.root, path), found, *numbers[1:]))
        return films

    @override
    def check_listings(self, listings: Mapping[str, Sequence[Film]]) -> None:
        if self.task in CLASSES:
            labelled = {k: [Sample(film.path, int(film.answer)) for film in v] for k, v in listings.items()}
            super().check_listings(cast(Mapping[str, Sequence[Film]], labelled))

    @override
    def classes_in(self, dataset: ClipDataset[Film]) -> int | None:
        return len({film.answer for film in dataset.samples}) if self.task in CLASSES else None

    @override
    def clips_in(self, dataset: ClipDataset[Film]) -> int:
        assert isinstance(dataset, FilmDataset)
        return sum(map(len, dataset.windows)) * dataset.views

    def windows(self, film: Film) -> list[Span]:
        """Return the windows of a film; [None] for whole films."""
        if self.window_seconds is None:
            return [None]
        if film.seconds is None:
            raise DataError(
                f"{film.path} comes without its length in seconds; write its shard with data.window_seconds."
            )
        return [*windows_of(film.seconds, self.window_seconds, self.window_stride)]

    @override
    def dataset_of(self, samples: Sequence[Film], clip: ClipFormat, **options: Any) -> FilmDataset:
        key = "label" if self.task in CLASSES else "value"
        windows = [self.windows(film) for film in samples]
        return FilmDataset(samples, clip, windows=windows, key=key, max_unreadable=self.max_unreadable, **options)


def _official_rows(path: str, header: str) -> list[tuple[int, list[str]]] | None:
    """Rows of an official list, each with its number from 1; None for lists without a header.

    Raises:
        DataError: the file is missing or empty, is that of another task, or a row is too short.
    """
    first, *lines = read_lines(path)
    if "youtube_id" not in first:
        return None
    if first.split() != header.split():
        raise DataError(f"{path} begins with {first!r} in place of {header!r}; take the list of the right task.")
    rows = []
    for number, line in enumerate(lines, start=2):
        fields = line.split()
        if len(fields) < len(header.split()) or not is_number(fields[0]):
            raise DataError(f"{path}, line {number}: {line!r} is not of the form {header!r}; correct the row.")
        rows.append((number, fields))
    if not rows:
        raise DataError(f"{path} has a header but no rows; download it again.")
    return rows


def _number(text: str) -> float | None:
    """Parse a finite number; None for anything else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
