"""Text files that list videos with their labels, classes by name, or rows under a header."""

import csv
import io
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from datamodules.errors import DataError
from datamodules.storage.files import Folders, join, read_text

__all__ = ["Row", "find_list", "is_number", "parse_json", "read_csv", "read_names", "read_numbered", "read_rows"]

_HEADERS = {"label", "labels", "class", "class_id", "class_name", "category", "target"}
_DELIMITERS = (",", "\t", " ", ";")


class Row(NamedTuple):
    """One line of a list: its number from 1, and the text before and after the last delimiter."""

    line: int
    path: str
    label: str


def read_rows(path: str, delimiter: str | None) -> list[Row]:
    """Rows `path<delimiter>label`, split at the last delimiter; a header and empty lines are skipped.

    Args:
        path: the list.
        delimiter: None takes the first of comma, tab, space and semicolon that leaves a number at the end of the first
            row.

    Raises:
        DataError: the file is missing, has no rows, or a row is not of this form.
    """
    rows: list[Row] = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        line = line.strip()
        if not line:
            continue
        if delimiter is None:
            delimiter = next((d for d in _DELIMITERS if is_number(line.rpartition(d)[2].strip())), None)
            if delimiter is None and not rows and line.lower().endswith(tuple(_HEADERS)) and "." not in line:
                continue
        video, _, label = (part.strip().strip('"') for part in line.rpartition(delimiter or ","))
        if not rows and label.lower() in _HEADERS and "." not in video:
            continue
        if not video or not label or delimiter is None:
            raise DataError(
                f"{path}, line {number}: {line[:200]!r} is not of the form path{delimiter or ','}label; "
                "correct the row or set data.delimiter."
            )
        rows.append(Row(number, video, label))
    if not rows:
        raise DataError(f"{path} lists no videos; write one row path{delimiter or ','}label per video.")
    return rows


def read_numbered(path: str, delimiter: str | None, root: str) -> list[tuple[str, int]]:
    """Videos and numbers of a list as `read_rows` takes it; paths start at `root`.

    Raises:
        DataError: the file is missing, has no rows, or a label is not a number.
    """
    rows = read_rows(path, delimiter)
    strange = next((row for row in rows if not is_number(row.label)), None)
    if strange is not None:
        remedy = "correct the row, or set data.delimiter" if delimiter is None else "correct the row"
        raise DataError(f"{path}, line {strange.line}: label {strange.label[:80]!r} is not a number; {remedy}.")
    return [(join(root, row.path), int(row.label)) for row in rows]


def find_list(folders: Folders, root: str, lists: Mapping[str, str], split: str) -> str | None:
    """Return the list of a split; validation and testing replace each other. None if no split has a list.

    Args:
        folders: the file system.
        root: where relative names start.
        lists: name of the list of "train", "val" and "test".
        split: one of them.

    Raises:
        DataError: other splits have a list and this one has none.
    """
    there = {name: path for name, file in lists.items() if folders.is_file(path := join(root, file))}
    wanted = (split,) if split == "train" else (split, "val" if split == "test" else "test")
    found = next((there[name] for name in wanted if name in there), None)
    if there and found is None:
        missing = " nor ".join(join(root, lists[name]) for name in wanted)
        raise DataError(
            f"{next(iter(there.values()))} lists videos, but for the {split} split there is no {missing}; write that "
            f"list, or name it with data.{split}."
        )
    return found


def read_csv(path: str, delimiter: str = ",") -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The columns of a table with a header, and its rows with the numbers of their lines.

    A value that a row lacks is empty; values beyond the header are ignored.

    Raises:
        DataError: the file is missing, is not UTF-8, or is not a table.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), restval="", delimiter=delimiter)
    try:
        columns = [(name or "").strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        rows = [(reader.line_num, {name: row[name].strip() for name in columns}) for row in reader]
    except csv.Error as error:
        line = reader.reader.line_num
        raise DataError(f"{path}, line {line}: {error}; download the file again, or correct it.") from error
    return columns, rows


def read_names(path: str) -> list[str]:
    """Class names, one per line, in the order of the labels.

    Raises:
        DataError: the file is missing or empty, or has a name twice.
    """
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not names:
        raise DataError(f"{path} names no class; write each class name on a line of its own.")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{path} names {name!r} twice; write each class name on a line of its own.")
        seen.add(name)
    return names


def parse_json(text: str, path: str, line: int | None = None, *, remedy: str = "download it again") -> Any:  # noqa: ANN401 - as json.loads
    """Parse a text in JSON.

    Args:
        text: the text.
        path: its file, for errors.
        line: where the text is one of the file's lines, its number; for errors.
        remedy: what to do where it is not JSON, for errors.

    Raises:
        DataError: it is not JSON, is nested too deeply, or has a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line, reason = (error.lineno, error.msg) if line is None else (line, f"{error.msg} at character {error.colno}")
    except RecursionError:
        line, reason = line or 1, "nested too deeply"
    except ValueError:
        digits = re.search(r"\d{1000}", text)  # Python turns no more than 4300 into a number
        line, reason = line or text.count("\n", 0, digits and digits.start()) + 1, "a number of too many digits"
    raise DataError(f"{path} is not JSON (line {line}: {reason}); {remedy}.")


def is_number(label: str) -> bool:
    """Whether it is an integer, of at most 18 digits."""
    return label.removeprefix("-").isdecimal() and len(label) <= 18
