"""Kinetics-400, -600 and -700: ten-second clips of human actions, in every layout in which they are passed around."""

import csv
import io
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

from datamodules.base import Sample, VideoDataModule
from datamodules.errors import DataError
from datamodules.files import first_file, join, read_text, resolve
from datamodules.lists import is_number, read_names, read_rows
from datamodules.video_folder import VIDEO_SUFFIXES

__all__ = ["Kinetics"]

_CLASS_FILES = ("classes.txt", "label_map.txt")
_SOURCE = "https://github.com/cvdfoundation/kinetics-dataset"


class Kinetics(VideoDataModule):
    """A list per split, or folders. What a list is, is seen in its first line:

        train/abseiling/-3B32lodo2M_000059_000069.mp4,0      path and number, without a header: numbers are the
        air drumming/yyy00000000_000003_000013.mp4 1         alphabetical order of the class names

        label,youtube_id,time_start,time_end,split           the official columns, more may follow; the file is looked
        abseiling,-3B32lodo2M,59,69,val                      for in root/<split>/<class>, root/<class>, root/<split>
                                                             and root, the class with spaces or underscores

    Where root has no list, the videos are root/{train,val,test}/<class>/*. Without a test list or folder, testing
    takes that of validation, with a warning. Names of the classes come from the official lists and from folders;
    lists of numbers have none, unless root has a file classes.txt or label_map.txt with a name per line.

    Args:
        root: folder of videos and lists, a path or a URL. Relative paths in lists start here.
        num_classes: 400, 600, 700, or less for a part.
        train: list of training videos.
        val: list of validation videos.
        test: list of test videos.
        delimiter: between path and number; None finds it out. Rows are split at the last one, so paths may contain it.
        common: see `datamodules.base.VideoDataModule`.

    Raises:
        DataError: from `setup`: neither lists nor folders, a list with wrong rows, or another number of classes.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        num_classes: int = 400,
        train: str = "train.csv",
        val: str = "val.csv",
        test: str = "test.csv",
        delimiter: str | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.root = resolve(root)
        self.lists = {"train": train, "val": val, "test": test}
        self.delimiter = delimiter
        self.num_classes = num_classes

    @cached_property
    def class_names(self) -> list[str] | None:
        """Sorted names; None where there are numbers only."""
        with self.folders.kept():
            names = self._names_of(self._class_source)
        if names is not None and len(names) != self.num_classes:
            raise DataError(
                f"{self._class_source} has {len(names)} classes, but num_classes is {self.num_classes}; "
                "set data.num_classes, or complete the data."
            )
        return names

    @property
    def _class_source(self) -> str:
        """The file or folder that tells the names of the classes; a list of numbers tells none."""
        file = first_file(self.folders, self.root, _CLASS_FILES)
        return file or self._existing("train") or self._existing("val") or self._source("train")

    def _names_of(self, source: str) -> list[str] | None:
        if source.endswith(_CLASS_FILES):
            return read_names(source)
        if not self.folders.is_file(source):
            return sorted(_plain(name) for name in self.folders.subfolders(source))
        videos = _official_rows(source)
        return None if videos is None else sorted({_plain(video["label"]) for video in videos})

    def listing(self, split: str) -> list[Sample]:
        with self.folders.kept():
            source = self._source(split)
            if split == "test" and self._existing("test") is None:
                warnings.warn(f"{join(self.root, self.lists['test'])} does not exist: {source} is tested on.")
            if not self.folders.is_file(source):
                return self._from_folders(source)
            videos = _official_rows(source)
            return self._from_paths(source) if videos is None else self._from_official(source, videos, split)

    @property
    def _numbers(self) -> dict[str, int]:
        return {_plain(name): label for label, name in enumerate(self.class_names or [])}

    def _existing(self, split: str) -> str | None:
        """The list of a split or, without one, its folder of class folders."""
        source, folder = join(self.root, self.lists[split]), join(self.root, split)
        if self.folders.is_file(source):
            return source
        return folder if self.folders.subfolders(folder) else None

    def _source(self, split: str) -> str:
        found = self._existing(split) or (self._existing("val") if split == "test" else None)
        if found is None:
            raise DataError(
                f"{self.root} has no Kinetics {split} split: there is neither the list "
                f"{join(self.root, self.lists[split])} nor a folder {join(self.root, split)} with a folder per class; "
                f"check data.root, name the list with data.{split}, or get the data from {_SOURCE}."
            )
        return found

    def _from_paths(self, source: str) -> list[Sample]:
        number_of = self._numbers
        samples = []
        for row in read_rows(source, self.delimiter):
            label = int(row.label) if is_number(row.label) else number_of.get(_plain(row.label))
            if label is None:
                raise DataError(
                    f"{source}, line {row.line}: label {row.label!r} is not a number; mend the row, or set "
                    "data.delimiter."
                )
            samples.append(Sample(join(self.root, row.path), label))
        return samples

    def _from_folders(self, source: str) -> list[Sample]:
        number_of = self._numbers
        samples = []
        for folder in self.folders.subfolders(source):
            label = number_of.get(_plain(folder))
            if label is None:
                raise DataError(f"{join(source, folder)} is not a class of {self._class_source}; rename or remove it.")
            names = self.folders.files(join(source, folder), VIDEO_SUFFIXES)
            samples += [Sample(join(source, folder, name), label) for name in names]
        if not samples:
            raise DataError(f"{source} has class folders but no videos in them; check data.root.")
        return sorted(samples, key=lambda sample: (sample.label, sample.path))

    def _from_official(self, source: str, videos: list[dict[str, str]], split: str) -> list[Sample]:
        number_of = self._numbers
        stems: dict[str, dict[str, str]] = {}  # folder -> stem -> file
        samples = []
        for line, video in enumerate(videos, start=2):
            name = _plain(video["label"])
            if name not in number_of:
                raise DataError(
                    f"{source}, line {line}: label {video['label']!r} is not a class of {self._class_source}; "
                    "mend the row or that list."
                )
            stem = f"{video['youtube_id']}_{int(video['time_start']):06d}_{int(video['time_end']):06d}"
            places = self._places(video.get("split") or split, name)
            for place in places:
                if place not in stems:
                    files = self.folders.files(place, VIDEO_SUFFIXES)
                    stems[place] = {file.rpartition(".")[0]: file for file in files}
            found = next((join(place, stems[place][stem]) for place in places if stem in stems[place]), None)
            samples.append(Sample(found or join(places[0], f"{stem}.mp4"), number_of[name]))
        return samples

    def _places(self, split: str, name: str) -> list[str]:
        """Folders in which a video of a class may lie."""
        places = []
        for folder in (join(self.root, split), self.root):
            inside = self.folders.entries(folder)
            places += [join(folder, form) for form in (name, name.replace(" ", "_")) if form in inside]
        return [*places, join(self.root, split), self.root]


def _plain(name: str) -> str:
    """A class's name with spaces, from a folder or a list."""
    return name.strip().replace("_", " ")


def _official_rows(path: str) -> list[dict[str, str]] | None:
    """Rows of a list with the official columns; None for other lists."""
    text = read_text(path)
    columns = [column.strip() for column in text.partition("\n")[0].split(",")]
    if "youtube_id" not in columns:
        return None
    if "label" not in columns:
        raise DataError(f"{path} has no column label, as the lists for the test server; take one with labels.")
    rows = [row for row in csv.DictReader(io.StringIO(text), fieldnames=columns)][1:]
    for line, row in enumerate(rows, start=2):
        times = (row.get("time_start"), row.get("time_end"))
        if not row["label"] or not row["youtube_id"] or not all(time and time.isdecimal() for time in times):
            raise DataError(
                f"{path}, line {line}: no label, no youtube_id, or times that are not whole seconds; mend the row."
            )
    if not rows:
        raise DataError(f"{path} lists no videos; download it again.")
    return rows
