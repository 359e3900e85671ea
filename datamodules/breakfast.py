"""Breakfast: ten activities in kitchens, each filmed by several cameras; long videos with one label."""

import os
import re
from pathlib import Path
from typing import Any

from typing_extensions import override

from datamodules.annotations.lists import find_list, is_number, read_csv, read_numbered
from datamodules.base import Sample, VideoDataModule
from datamodules.errors import DataError, some
from datamodules.storage.files import join, read_text, resolve
from datamodules.storage.files import split as folder_and_name
from datamodules.video.suffixes import VIDEO_SUFFIXES

__all__ = ["ACTIVITIES", "Breakfast"]

ACTIVITIES = ("cereals", "coffee", "tea", "pancake", "friedegg", "scrambledegg", "sandwich", "juice", "milk", "salat")
"""In the order of ViS4mer's class_id, which the released weights have (docs/protocol.md, section 10)."""

_SOURCE = "https://serre-lab.clps.brown.edu/resource/breakfast-actions-dataset"
_VIDEOS = "BreakfastII_15fps_qvga_sync"
_COLUMNS = ("file_name", "class_id")
_PERSON = re.compile(r"P(\d+)")
_STEM = re.compile(r"P\d+_([a-z]+)(?:_ch(\d))?")
_FIRST_TESTED = 47


class Breakfast(VideoDataModule):
    """Breakfast: the original folders, or lists.

    | root has | what is read |
    |---|---|
    | <person>/<camera>/<person>_<activity>.avi | the folders, such as P03/cam01/P03_cereals.avi |
    | <person>/stereo/<person>_<activity>_ch0.avi, ..._ch1.avi | of the two channels the first |
    | BreakfastII_15fps_qvga_sync/<person>/... | the same, one folder down |
    | {train,val,test}.csv beside these | the videos of the lists |

    What a list is, is seen in its first row:

        file_name,duration,action,class_id             ViS4mer's
        P03-cam01-P03_cereals,56,cereals,0             is P03/cam01/P03_cereals.avi
        P03/cam01/P03_cereals.avi,0                    path and number, VideoMamba's

    Without lists persons up to 46 are trained on, and 47 to 54 validated and tested, which is the split of both lists
    and none of the four of the data set's authors (docs/protocol.md, section 10). With lists, validation and testing
    replace each other.

    Args:
        root: folder of videos and lists, a path or a URL.
        train: list of training videos.
        val: list of validation videos.
        test: list of test videos.
        delimiter: between path and number; None finds it out.
        published_test: test on one video per file name, that of the first camera, with both channels of stereo cameras.
            The published accuracies are multiples of 1/192, since the authors' code merges what has the same file name
            (docs/protocol.md, section 10): 80 recordings of the test persons, and two channels of the 56 that are in
            stereo too, make 192 names. Otherwise all 355 videos count.
        common: see `datamodules.base.VideoDataModule`.

    Raises:
        DataError: from `setup`: there are neither lists nor folders of persons, an unknown activity, or a list with
            wrong rows.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        train: str = "train.csv",
        val: str = "val.csv",
        test: str = "test.csv",
        delimiter: str | None = None,
        published_test: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.root = resolve(root)
        self.lists = {"train": train, "val": val, "test": test}
        self.delimiter = delimiter
        self.published_test = published_test

    def list_classes(self) -> list[str]:
        """The ten activities."""
        return list(ACTIVITIES)

    @override
    def list_videos(self, split: str) -> list[Sample]:
        as_published = split == "test" and self.published_test
        source = find_list(self.folders, self.root, self.lists, split)
        self.origins[split] = source or f"persons {_persons(split)}"
        if source is None:
            samples = self._from_folders(split, channels=("0", "1") if as_published else ("0",))
        elif read_text(source).startswith(_COLUMNS[0]):
            samples = self._from_table(source)
        else:
            samples = [Sample(*row) for row in read_numbered(source, self.delimiter, self.root)]
        if not as_published:
            return samples
        first: dict[str, Sample] = {}
        for sample in samples:
            first.setdefault(_stem(sample.path), sample)
        return list(first.values())

    @property
    def _videos(self) -> str:
        """The folder of the persons' folders."""
        inner = join(self.root, _VIDEOS)
        return inner if self.folders.is_folder(inner) else self.root

    def _from_folders(self, split: str, channels: tuple[str, ...]) -> list[Sample]:
        samples, strange = [], []
        persons = {name: int(found[1]) for name in self.folders.subfolders(self._videos)
                   if (found := _PERSON.fullmatch(name))}  # fmt: skip
        for person, number in persons.items():
            if (number < _FIRST_TESTED) != (split == "train"):
                continue
            folder = join(self._videos, person)
            for camera in self.folders.subfolders(folder):
                for name in self.folders.files(join(folder, camera), VIDEO_SUFFIXES):
                    path = join(folder, camera, name)
                    stem = _STEM.fullmatch(_stem(name))
                    if stem is None or stem[1] not in ACTIVITIES:
                        strange.append(path)
                    elif stem[2] is None or stem[2] in channels:
                        samples.append(Sample(path, ACTIVITIES.index(stem[1])))
        if strange:
            raise DataError(
                f"{len(strange)} videos are not called <person>_<activity> with one of {', '.join(ACTIVITIES)}: "
                f"{some(strange)}; rename or remove them."
            )
        if not samples:
            raise DataError(
                f"{self.root} has no Breakfast {split} split: there is neither the list "
                f"{join(self.root, self.lists[split])} nor a video <person>/<camera>/<person>_<activity>.avi of "
                f"{_persons(split)}; check data.root, or get the data from {_SOURCE}."
            )
        return samples

    def _from_table(self, source: str) -> list[Sample]:
        _, rows = read_csv(source)
        samples = []
        for line, row in rows:
            name, number = (row.get(column, "") for column in _COLUMNS)
            place = name.split("-")
            if len(place) != 3 or not is_number(number):
                raise DataError(
                    f"{source}, line {line}: file_name {name!r} is not <person>-<camera>-<file>, or "
                    f"class_id {number!r} no number; correct the row."
                )
            samples.append(Sample(join(self._videos, *place) + ".avi", int(number)))
        if not samples:
            raise DataError(f"{source} has a header but no rows; download it again.")
        return samples


def _persons(split: str) -> str:
    """Name the persons of a split without lists."""
    return f"P03 to P{_FIRST_TESTED - 1}" if split == "train" else f"P{_FIRST_TESTED} to P54"


def _stem(path: str) -> str:
    return os.path.splitext(folder_and_name(path)[1])[0]
