"""The annotation files of EPIC-KITCHENS-100, and what they say of an action."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from datamodules.annotations.lists import is_number, read_csv
from datamodules.annotations.question_files import GENERIC
from datamodules.errors import DataError

__all__ = ["SOURCE", "Segment", "labels_of", "number_of", "observed_span", "read_table", "seconds_of",
           "sorted_as_text"]  # fmt: skip

SOURCE = "https://github.com/epic-kitchens/epic-kitchens-100-annotations"


class Segment(NamedTuple):
    """One annotated action.

    Attributes:
        path: of the video: a file, a folder or tar of its frames, or the file of its features.
        narration_id: the annotation's name.
        span: first and last second that may be seen.
        verb: class, -1 where it is not known.
        nouns: classes of all nouns of the narration, the object first; empty where not known.
        action: position in the list of actions; -1 where it is not in it.
        unseen: whether the person has no videos in the training set.
        tail: whether verb and noun are rare.
        verb_question: what is read beside it for the verb, `<mask>` for masked words.
        noun_question: what is read for the noun.
    """

    path: str
    narration_id: str
    span: tuple[float, float]
    verb: int
    nouns: tuple[int, ...]
    action: int
    unseen: bool
    tail: tuple[bool, bool]
    verb_question: str = GENERIC.verb
    noun_question: str = GENERIC.noun


def observed_span(start: float, stop: float, task: str, observed: float, gap: float) -> tuple[float, float]:
    """What may be seen of an action from `start` to `stop`, in seconds.

    Recognition: all of it. Anticipation: `observed` seconds that end `gap` seconds before it begins. They may begin
    before the video does, or, of actions within its first `gap` seconds, even end before it.
    """
    return (start, stop) if task == "recognition" else (start - gap - observed, start - gap)


def read_table(path: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file; raises `DataError` where it has none, or one of them lacks a value of `columns`."""
    header, rows = read_csv(path)
    faults = [f"has no column {name}" for name in columns if name not in header]
    faults += [] if rows else ["has no rows"]
    faults += [f"has no {name} in line {line}" for line, row in rows for name in columns if not row.get(name)]
    if faults:
        raise DataError(f"{path} {faults[0]}; take the file of the official release ({SOURCE}).")
    return [row for _, row in rows]


def number_of(path: str, row: dict[str, str], column: str) -> int:
    """The whole number in a column; raises `DataError` where that is something else."""
    value = row.get(column, "")
    if not is_number(value):
        raise DataError(f"{path} has {value[:40]!r} as {column}, which is not a whole number; take the file of the "
                        "official release.")  # fmt: skip
    return int(value)


def seconds_of(path: str, row: dict[str, str], column: str) -> float:
    """The time in a column, HH:MM:SS.ff; raises `DataError` where that is something else."""
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9}):(\d{1,9}(?:\.\d+)?)", row[column])
    if match is None:
        raise DataError(f"{path}, segment {row['narration_id']}: {column} is {row[column]!r} and not of the form "
                        "HH:MM:SS.ff; take the file of the official release.")  # fmt: skip
    return 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3])


def labels_of(path: str, row: dict[str, str]) -> tuple[int, tuple[int, ...]]:
    """Verb, and nouns with the object first; -1 and none for lists without labels."""
    if "verb_class" not in row:
        return -1, ()
    noun = number_of(path, row, "noun_class")
    others = map(int, re.findall(r"\d{1,9}", row.get("all_noun_classes", "")))
    return number_of(path, row, "verb_class"), tuple(dict.fromkeys((noun, *others)))


def sorted_as_text(actions: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pairs of verb and noun in the order of the texts "verb:noun": 0:1, 0:10, 0:2, 10:0, 1:0.

    This is the order of `actions.csv` and of the classes of released classifiers.
    """
    return sorted(actions, key=lambda pair: f"{pair[0]}:{pair[1]}")
