"""Videos and labels listed in text files."""

from pathlib import Path
from typing import Any

from typing_extensions import override

from datamodules.annotations.lists import Row, is_number, read_csv, read_names, read_rows
from datamodules.base import Sample, VideoDataModule
from datamodules.checks import MAX_CLASSES
from datamodules.errors import DataError
from datamodules.splitting import check_groups, check_split, origin_of, set_aside
from datamodules.storage.files import join, resolve
from datamodules.storage.files import split as folder_and_name

__all__ = ["VideoCSV"]


class VideoCSV(VideoDataModule):
    """Lists with a row `path,label` for each video, with or without a header.

    | given | train | val | test |
    |---|---|---|---|
    | train, val, test | the list | the list | the list |
    | train, val | the list | the list | as val |
    | train, and val null | the rest | a seeded `val_fraction` of each class | as val, or the list test |

    A row is split at its last delimiter, so paths may contain it. Labels are numbers from 0, or names. Without
    `classes`, numbers make the classes "0", "1", ... up to the largest of the training file, and names those that
    the training file has, sorted. Relative paths start at `root`, or at the list's own folder where its first row
    exists only there.

    `group` names a column whose value videos of one film or person share, such as `film` in

        path,film,label
        a/0001.mp4,Casablanca,talking

    A list with such a column has a header, and the columns path and label. All videos of a group are set aside, or
    none; with lists for both, a group on both sides is an error.

    Args:
        root: the folder of the videos, and of the lists where these are not absolute; a path or a URL.
        train: list of training videos.
        val: list of validation videos; None sets aside a part of `train`.
        test: list of test videos; None tests on those of validation.
        classes: text file with one class name per line, in the order of the labels.
        delimiter: what separates path and label.
        val_fraction: share of each class set aside where `val` is None, in (0, 1).
        split_seed: seed of that choice.
        group: column of the groups; None: every video is its own group.
        common: see `datamodules.base.VideoDataModule`.

    Raises:
        DataError: from `setup`: a file is missing or empty, or a row is wrong (with file, line and value).
    """

    def __init__(
        self,
        root: str | Path,
        *,
        train: str = "train.csv",
        val: str | None = "val.csv",
        test: str | None = None,
        classes: str | None = None,
        delimiter: str = ",",
        val_fraction: float = 0.2,
        split_seed: int = 0,
        group: str | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if not delimiter:
            raise DataError("delimiter is empty; give the character between path and label, such as ',' or ' '.")
        if group is not None and len(delimiter) != 1:
            raise DataError(f"delimiter is {delimiter!r}; lists with a column for group need a single character.")
        check_split(val_fraction, split_seed)
        self.root = resolve(root)
        self._train = train
        self.lists = {"train": train, "val": val, "test": test or val}
        self.classes = classes
        self.delimiter = delimiter
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.group = group

    def list_classes(self) -> list[str]:
        """Class names from `classes`, or else from the training list."""
        if self.classes is not None:
            return read_names(join(self.root, self.classes))
        path = join(self.root, self._train)
        rows, _ = self._rows(path)
        first = rows[0]
        for row in rows:
            if is_number(row.label) != is_number(first.label):
                raise DataError(
                    f"{path}, line {row.line}: label {row.label!r} and {first.label!r} of line {first.line} are not "
                    "both numbers or both names; correct the label, or list the class names in a file given as classes."
                )
        if not is_number(first.label):
            return sorted({row.label for row in rows})
        labels = [self._number(row, path) for row in rows]
        return [str(label) for label in range(max(labels) + 1)]

    @override
    def list_videos(self, split: str) -> list[Sample]:
        name = self.lists[split]
        if name is not None and (self.lists["val"] is not None or split == "test"):
            samples, groups = self._read(name)
            self.origins[split] = join(self.root, name)
            if self.group is not None and split != "train":
                check_groups(self._read(self._train)[1], groups, f"{self._train} and {name}")
            return samples
        path = join(self.root, self._train)
        samples, groups = self._read(self._train)
        held = set_aside([sample.label for sample in samples], self.val_fraction, self.split_seed,
                         None if self.group is None else groups)  # fmt: skip
        if not any(held):
            raise DataError(f"No class of {path} has a second video to set aside for validation; add rows, or name a "
                            "list with data.val.")  # fmt: skip
        self.origins[split] = origin_of(split, path, self.val_fraction, self.split_seed, self.group is not None)
        return [sample for sample, kept in zip(samples, held, strict=True) if kept == (split != "train")]

    def _rows(self, path: str) -> tuple[list[Row], list[str]]:
        """The rows of a list, and the group of each; empty without groups."""
        if self.group is None:
            return read_rows(path, self.delimiter), []
        columns = ("path", "label", self.group)
        header, rows = read_csv(path, self.delimiter)
        lacking = [column for column in columns if column not in header]
        if lacking:
            raise DataError(
                f"{path} has no column {' and no column '.join(lacking)} (its first row is "
                f"{self.delimiter.join(header)[:80]!r}); name path, label and {self.group} in the first row."
            )
        for line, row in rows:
            if not all(row[column] for column in columns):
                raise DataError(f"{path}, line {line}: {', '.join(columns)} are not all there; correct the row.")
        if not rows:
            raise DataError(f"{path} lists no videos; write one row per video.")
        return [Row(line, row["path"], row["label"]) for line, row in rows], [row[self.group] for _, row in rows]

    def _read(self, name: str) -> tuple[list[Sample], list[str]]:
        """The videos of a list, and their groups."""
        path, names = join(self.root, name), self.class_names
        assert names is not None  # of files, `list_classes`
        rows, groups = self._rows(path)
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
                        f"classes of {self._class_source}; correct the row or that file."
                    )
            if label is None:
                raise DataError(
                    f"{path}, line {row.line}: label {row.label!r} is not a class of {self._class_source}; "
                    "correct the row or that file."
                )
            samples.append(Sample(join(base, row.path), label))
        return samples, groups

    @property
    def _class_source(self) -> str:
        return join(self.root, self._train if self.classes is None else self.classes)

    def _number(self, row: Row, path: str) -> int:
        if not 0 <= int(row.label) < MAX_CLASSES:
            raise DataError(
                f"{path}, line {row.line}: label {row.label} is outside 0 .. {MAX_CLASSES - 1}; correct the row."
            )
        return int(row.label)
