"""Kinetics-400, -600 and -700: ten-second clips of human actions, in every layout in which they are passed around."""

import os
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

from typing_extensions import override

from datamodules.annotations.lists import is_number, read_csv, read_names, read_rows
from datamodules.base import Sample, VideoDataModule
from datamodules.checks import MAX_CLASSES, Count, check
from datamodules.errors import DataError
from datamodules.storage.files import first_file, is_url, join, read_text, resolve
from datamodules.video.suffixes import VIDEO_SUFFIXES

__all__ = ["Kinetics"]

_CLASS_FILES = ("classes.txt", "label_map.txt")
_LIST_FOLDERS = ("", "annotations")
_FOLDERS_OF_SPLITS = ("{}", "videos/{}", "videos_{}")
_REPLACEMENT = "replacement/replacement_for_corrupted_k400"
"""Whole copies of files that are damaged in the archives of Kinetics-400."""
_SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "validate", "validation"), "test": ("test", "testing")}
_ROWS_TRIED = 50
"""Rows of a list of paths that are looked for to find out where its paths start."""
_SOURCE = "https://github.com/cvdfoundation/kinetics-dataset"


class Kinetics(VideoDataModule):
    """Kinetics: lists and videos as the usual downloads leave them.

    Point root at the folder in the first column:

    | root has | from | what is read |
    |---|---|---|
    | annotations/{train,val,test}.csv, train/, val/, test/ | CVDF's downloader | official lists, flat folders |
    | annotations/, videos/{train,val,test}/<class>/ | CVDF's arrange_by_classes | official lists, class folders |
    | {train,val,test}/<class>/ | most others | folders alone, no list needed |
    | {train,val,test}.csv with paths and numbers | VideoMamba | the paths of the lists |
    | videos_{train,val}/, lists by `train` and `val` | mmaction | the paths, from videos_{train,val} |

    What a list is, is seen in its first line:

        train/abseiling/-3B32lodo2M_000059_000069.mp4,0      path and number, without a header: numbers are the
        air drumming/yyy00000000_000003_000013.mp4 1         alphabetical order of the class names

        label,youtube_id,time_start,time_end,split           the official columns, more may follow
        abseiling,-3B32lodo2M,59,69,val

    Lists are searched in root and root/annotations. A video of an official list is searched in
    root/replacement/replacement_for_corrupted_k400, then in the folder of its split (root/<split> or
    root/videos/<split>) and in root, below the folder of its class, with spaces or underscores, or without one. The
    split "validate" or "validation" of a list is val. Relative paths of a list start at root or, where none of the
    first is there, at the folder of its split.

    Without a test list or folder, testing takes that of validation, with a warning. Names of the classes come from the
    official lists and from folders; lists of numbers have none, unless root has a file classes.txt or label_map.txt
    with a name per line.

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
        check(num_classes=(num_classes, Count(1, MAX_CLASSES)))
        self.num_classes = num_classes

    def list_classes(self) -> list[str] | None:
        """Sorted names; None where there are numbers only."""
        source = self._class_source
        names = self._names_of(source)
        if names is not None:
            self.expect_classes(len(names), source)
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
        return None if videos is None else sorted({_plain(video["label"]) for _, video in videos})

    @override
    def list_videos(self, split: str) -> list[Sample]:
        source = self.origins[split] = self._source(split)
        if split == "test" and self._existing("test") is None:
            warnings.warn(f"{join(self.root, self.lists['test'])} does not exist: {source} is tested on.")
            split = "val"
        if not self.folders.is_file(source):
            return self._from_folders(source)
        videos = _official_rows(source)
        return self._from_paths(source, split) if videos is None else self._from_official(source, videos, split)

    @property
    def _numbers(self) -> dict[str, int]:
        return {_plain(name): label for label, name in enumerate(self.class_names or [])}

    def _existing(self, split: str) -> str | None:
        """The list of a split or, without one, its folder of class folders."""
        found = first_file(self.folders, self.root, [join(folder, self.lists[split]) for folder in _LIST_FOLDERS])
        return found or next((folder for folder in self._folders(split) if self.folders.subfolders(folder)), None)

    def _folders(self, split: str) -> list[str]:
        """Return folders that may hold the videos of a split, given by any of its names, most likely first."""
        names = next((names for names in _SPLIT_NAMES.values() if split in names), (split,))
        return [join(self.root, form.format(name)) for form in _FOLDERS_OF_SPLITS for name in names]

    def _source(self, split: str) -> str:
        found = self._existing(split) or (self._existing("val") if split == "test" else None)
        if found is None:
            raise DataError(
                f"{self.root} has no Kinetics {split} split: there is neither the list "
                f"{join(self.root, self.lists[split])} nor a folder {join(self.root, split)} with a folder per class, "
                f"and none in its folders annotations and videos; check data.root, name the list with data.{split}, or "
                f"get the data from {_SOURCE}."
            )
        return found

    def _from_paths(self, source: str, split: str) -> list[Sample]:
        number_of = self._numbers
        samples = []
        rows = read_rows(source, self.delimiter)
        base = self._base([row.path for row in rows[:_ROWS_TRIED]], split)
        for row in rows:
            label = int(row.label) if is_number(row.label) else number_of.get(_plain(row.label))
            if label is None:
                raise DataError(
                    f"{source}, line {row.line}: label {row.label!r} is not a number; correct the row, or set "
                    "data.delimiter."
                )
            samples.append(Sample(join(base, row.path), label))
        return samples

    def _base(self, paths: list[str], split: str) -> str:
        """Return the folder that the paths of a list start from: root, or a folder of the split."""
        if not self.check_files:
            return self.root
        paths = [path for path in paths if not is_url(path) and not os.path.isabs(path)]
        bases = [self.root, *self._folders(split)]
        return next((base for base in bases if any(self.folders.has(join(base, path)) for path in paths)), self.root)

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

    def _from_official(self, source: str, videos: list[tuple[int, dict[str, str]]], split: str) -> list[Sample]:
        number_of = self._numbers
        files_in = lru_cache(None)(self._files_by_stem)
        places_of = lru_cache(None)(self._places)
        replacements = join(self.root, _REPLACEMENT)
        samples = []
        for line, video in videos:
            name = _plain(video["label"])
            if name not in number_of:
                raise DataError(
                    f"{source}, line {line}: label {video['label']!r} is not a class of {self._class_source}; "
                    "correct the row or that list."
                )
            stem = f"{video['youtube_id']}_{int(video['time_start']):06d}_{int(video['time_end']):06d}"
            places = places_of(video.get("split") or split, split, name)
            found = (join(place, files_in(place)[stem]) for place in (replacements, *places) if stem in files_in(place))
            samples.append(Sample(next(found, join(places[0], f"{stem}.mp4")), number_of[name]))
        return samples

    def _places(self, said: str, split: str, name: str) -> list[str]:
        """Return folders that may hold a video of a class, most likely first.

        Args:
            said: split of the video by its row.
            split: split of the list.
            name: of the class.
        """
        of_split = dict.fromkeys([*self._folders(said), *self._folders(split)])
        there = [folder for folder in of_split if self.folders.entries(folder)]
        with_class = [
            join(folder, form)
            for folder in (*there, self.root)
            for form in (name, name.replace(" ", "_"))
            if form in self.folders.entries(folder)
        ]
        return [*with_class, *(there or self._folders(said)[:1]), self.root]

    def _files_by_stem(self, folder: str) -> dict[str, str]:
        return {file.rpartition(".")[0]: file for file in self.folders.files(folder, VIDEO_SUFFIXES)}


def _plain(name: str) -> str:
    """A class's name with spaces, from a folder or a list."""
    return name.strip().replace("_", " ")


def _official_rows(path: str) -> list[tuple[int, dict[str, str]]] | None:
    """Rows of a list with the official columns, with the numbers of their lines; None for other lists."""
    if "youtube_id" not in [column.strip() for column in read_text(path).partition("\n")[0].split(",")]:
        return None
    columns, rows = read_csv(path)
    lacking = [name for name in ("label", "time_start", "time_end") if name not in columns]
    if lacking:
        raise DataError(
            f"{path} has no column {lacking[0]}, as the lists for the test server; take an official list with "
            "the columns label, youtube_id, time_start and time_end."
        )
    for line, row in rows:
        if not row["label"] or not row["youtube_id"] or not all(map(is_number, (row["time_start"], row["time_end"]))):
            raise DataError(
                f"{path}, line {line}: no label, no youtube_id, or times that are not whole seconds; correct the row."
            )
    if not rows:
        raise DataError(f"{path} lists no videos; download it again.")
    return rows
