"""Videos and labels listed in text files."""

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.base import DataError, Sample, VideoDataModule

__all__ = ["MAX_CLASSES", "VideoCSV"]

MAX_CLASSES = 100_000
"""Larger numbers cannot be labels: they are typing errors, or another column."""

_HEADERS = {"label", "labels", "class", "class_id", "class_name", "category", "target"}


class _Row(NamedTuple):
    line: int
    path: str
    label: str


class VideoCSV(VideoDataModule):
    """One file per split with rows `path,label`, with or without a header.

    A row is split at its last delimiter, so paths may contain it. Labels are numbers from 0, or names. Without
    `classes`, numbers make the classes "0", "1", ... up to the largest of the training file, and names those that
    the training file has, sorted. Relative paths start at `root`, or at the list's own folder where its first row
    exists only there.

    Args:
        root: the folder of the videos, and of the lists where these are not absolute.
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
        self.root = Path(root).expanduser()
        self.lists = {"train": train, "val": val, "test": test or val}
        self.classes = classes
        self.delimiter = delimiter

    @cached_property
    def class_names(self) -> list[str]:
        """From `classes`, or else from the training list."""
        if self.classes is not None:
            names = [line.strip() for line in _lines(self.root / self.classes) if line.strip()]
            twice = next((name for name in names if names.count(name) > 1), None)
            if not names or twice:
                fault = f"names {twice!r} twice" if twice else "names no class"
                raise DataError(f"{self.root / self.classes} {fault}; write each class name on a line of its own.")
            return names
        path, rows = self.root / self.lists["train"], self._rows("train")
        first = rows[0]
        for row in rows:
            if _is_number(row.label) != _is_number(first.label):
                raise DataError(
                    f"{path}, line {row.line}: label {row.label!r} and {first.label!r} of line {first.line} are not "
                    "both numbers or both names; mend the label, or list the class names in a file given as classes."
                )
        if not _is_number(first.label):
            return sorted({row.label for row in rows})
        labels = [self._number(row, path) for row in rows]
        return [str(label) for label in range(max(labels) + 1)]

    def listing(self, split: str) -> list[Sample]:
        path, rows, names = self.root / self.lists[split], self._rows(split), self.class_names
        number_of = {name: label for label, name in enumerate(names)}
        base = self.root
        if not (base / rows[0].path).exists() and (path.parent / rows[0].path).exists():
            base = path.parent
        samples = []
        for row in rows:
            label = number_of.get(row.label)
            if label is None and _is_number(row.label):
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
            samples.append(Sample(str(base / row.path), label))
        return samples

    @property
    def _class_source(self) -> Path:
        return self.root / (self.lists["train"] if self.classes is None else self.classes)

    def _number(self, row: _Row, path: Path) -> int:
        if not 0 <= int(row.label) < MAX_CLASSES:
            raise DataError(
                f"{path}, line {row.line}: label {row.label} is outside 0 .. {MAX_CLASSES - 1}; mend the row."
            )
        return int(row.label)

    def _rows(self, split: str) -> list[_Row]:
        path = self.root / self.lists[split]
        rows = []
        for number, line in enumerate(_lines(path), start=1):
            if not line.strip():
                continue
            video, _, label = (part.strip().strip('"') for part in line.strip().rpartition(self.delimiter))
            if not rows and label.lower() in _HEADERS and "." not in video:
                continue
            if not video or not label:
                raise DataError(
                    f"{path}, line {number}: {line.strip()!r} is not of the form path{self.delimiter}label; "
                    "mend the row or set data.delimiter."
                )
            rows.append(_Row(number, video, label))
        if not rows:
            raise DataError(f"{path} lists no videos; write one row path{self.delimiter}label per video.")
        return rows


def _is_number(label: str) -> bool:
    return label.removeprefix("-").isdecimal()


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path} does not exist; check data.root and the name of the list.")
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a UTF-8 text file ({error.reason}); save the list as UTF-8.") from error
