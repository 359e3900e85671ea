"""Videos and labels listed in text files."""

from functools import cached_property
from pathlib import Path
from typing import Any

from datamodules.base import Sample, VideoDataModule
from datamodules.errors import DataError
from datamodules.files import join, resolve
from datamodules.files import split as folder_and_name
from datamodules.lists import Row, is_number, read_names, read_rows

__all__ = ["MAX_CLASSES", "VideoCSV"]

MAX_CLASSES = 100_000
"""Larger numbers cannot be labels: they are typing errors, or another column."""


class VideoCSV(VideoDataModule):
    """One file per split with rows `path,label`, with or without a header.

    A row is split at its last delimiter, so paths may contain it. Labels are numbers from 0, or names. Without
    `classes`, numbers make the classes "0", "1", ... up to the largest of the training file, and names those that
    the training file has, sorted. Relative paths start at `root`, or at the list's own folder where its first row
    exists only there.

    Args:
        root: the folder of the videos, and of the lists where these are not absolute; a path or a URL.
        train: list of training videos.
        val: list of validation videos.
        test: list of test videos; None tests on `val`.
        classes: text file with one class name per line, in the order of the labels.
        delimiter: what separates path and label.
        common: see `datamodules.base.VideoDataModule`.

    Raises:
        DataError: from `setup`: a file is missing or empty, or a row is wrong (with file, line and value).
    """

    def __init__(
        self,
        root: str | Path,
        *,
        train: str = "train.csv",
        val: str = "val.csv",
        test: str | None = None,
        classes: str | None = None,
        delimiter: str = ",",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if not delimiter:
            raise DataError("delimiter is empty; give the character between path and label, such as ',' or ' '.")
        self.root = resolve(root)
        self.lists = {"train": train, "val": val, "test": test or val}
        self.classes = classes
        self.delimiter = delimiter

    @cached_property
    def class_names(self) -> list[str]:
        """From `classes`, or else from the training list."""
        if self.classes is not None:
            return read_names(join(self.root, self.classes))
        path = join(self.root, self.lists["train"])
        rows = read_rows(path, self.delimiter)
        first = rows[0]
        for row in rows:
            if is_number(row.label) != is_number(first.label):
                raise DataError(
                    f"{path}, line {row.line}: label {row.label!r} and {first.label!r} of line {first.line} are not "
                    "both numbers or both names; mend the label, or list the class names in a file given as classes."
                )
        if not is_number(first.label):
            return sorted({row.label for row in rows})
        labels = [self._number(row, path) for row in rows]
        return [str(label) for label in range(max(labels) + 1)]

    def listing(self, split: str) -> list[Sample]:
        path, names = join(self.root, self.lists[split]), self.class_names
        rows = read_rows(path, self.delimiter)
        number_of = {name: label for label, name in enumerate(names)}
        base = self.root
        beside, _ = folder_and_name(path)
        if not self.folders.has(join(base, rows[0].path)) and self.folders.has(join(beside, rows[0].path)):
            base = beside
        samples = []
        for row in rows:
            label = number_of.get(row.label)
            if label is None and is_number(row.label):
                label = self._number(row, path)
                if label >= len(names):
                    raise DataError(
                        f"{path}, line {row.line}: label {label} is outside 0 .. {len(names) - 1}, the {len(names)} "
                        f"classes of {self._class_source}; mend the row or that file."
                    )
            if label is None:
                raise DataError(
                    f"{path}, line {row.line}: label {row.label!r} is not a class of {self._class_source}; "
                    "mend the row or that file."
                )
            samples.append(Sample(join(base, row.path), label))
        return samples

    @property
    def _class_source(self) -> str:
        return join(self.root, self.lists["train"] if self.classes is None else self.classes)

    def _number(self, row: Row, path: str) -> int:
        if not 0 <= int(row.label) < MAX_CLASSES:
            raise DataError(
                f"{path}, line {row.line}: label {row.label} is outside 0 .. {MAX_CLASSES - 1}; mend the row."
            )
        return int(row.label)
