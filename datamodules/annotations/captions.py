"""Files with the captions of videos: tables, JSON, lists of names."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from datamodules.annotations.lists import parse_json, read_csv
from datamodules.errors import DataError, some
from datamodules.storage.files import read_text

__all__ = ["Captions", "are_texts", "captions_in", "captions_of", "read_captions", "read_json", "read_lines",
           "read_table", "values_of"]  # fmt: skip


class Captions(NamedTuple):
    """The annotations of one video.

    Attributes:
        name: its id, file name or path.
        captions: one or more.
        span: first and last second that count, where they say so.
    """

    name: str
    captions: tuple[str, ...]
    span: tuple[float, float] | None = None


def read_captions(path: str) -> list[Captions]:
    """Read videos with their captions, in the order of their first mention.

    The file has one of these forms:

        video,caption                                     .csv: a row per caption, other columns are ignored
        [{"video": "a.mp4", "caption": "..."}, ...]       .json: a caption or a list of them; a video may come again
        {"a.mp4": ["...", "..."], ...}                    .json

    Raises:
        DataError: the file is missing or has another form.
    """
    found: dict[str, list[str]] = {}
    if not path.lower().endswith(".json"):
        for row in read_table(path, ("video", "caption")):
            found.setdefault(row["video"], []).append(row["caption"])
        return [Captions(name, tuple(captions)) for name, captions in found.items()]
    content = read_json(path, (list, dict))
    if isinstance(content, dict):
        content = [{"video": name, "caption": captions} for name, captions in content.items()]
    for entry in content:
        video, captions = captions_in(entry, "video", path)
        found.setdefault(video, []).extend(captions)
    return [Captions(name, tuple(captions)) for name, captions in found.items()]


def captions_in(entry: object, key: str, source: str) -> tuple[str, list[str]]:
    """Return what an object from JSON has under `key`, the name of a file, and its caption or captions.

    Raises:
        DataError: it lacks one of them, or has another type there.
    """
    name, captions = values_of(entry, {key: str, "caption": (str, list)}, source)
    captions = [captions] if isinstance(captions, str) else captions
    if not are_texts(captions):
        raise DataError(f"{source}: the captions of {name} are not a list of texts with one at least; correct it.")
    return name, captions


def are_texts(value: object) -> TypeGuard[list[str]]:
    """Whether it is a list of strings with one at least."""
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def values_of(entry: object, kinds: Mapping[str, type | tuple[type, ...]], source: str) -> list[Any]:
    """Return the values that an object from JSON has under the keys of `kinds`.

    Raises:
        DataError: it is not an object, lacks a key, or has another type there.
    """
    for key, kind in kinds.items():
        if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
            raise DataError(
                f"{source} has an entry without {key}, or with something else there: {json.dumps(entry)[:80]}; take "
                f"the original file, or write {', '.join(kinds)} into each entry."
            )
    assert isinstance(entry, dict)
    return [entry[key] for key in kinds]


def captions_of(names: Sequence[str], captions: Mapping[str, Sequence[str]], source: str, where: str) -> list[Captions]:
    """Entries of the videos that `source` names, with their captions from `where`.

    Raises:
        DataError: a video has no caption.
    """
    silent = [name for name in names if not captions.get(name)]
    if silent:
        raise DataError(
            f"{len(silent)} of the {len(names)} videos of {source} have no caption in {where}: {some(silent)}; take "
            "both files from the same release."
        )
    return [Captions(name, tuple(captions[name])) for name in names]


def read_table(path: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a comma-separated file with a header, which has to name `columns`.

    Raises:
        DataError: the file is missing or empty, lacks a column, or a row is too short.
    """
    header, rows = read_csv(path)
    lacking = [name for name in columns if name not in header]
    if lacking:
        raise DataError(
            f"{path} has no column {' and no column '.join(lacking)} (its first row is {','.join(header)[:80]!r}); "
            "name the columns in the first row, separated by commas."
        )
    for line, row in rows:
        if not all(row[name] for name in columns):
            raise DataError(f"{path}, line {line}: {' or '.join(columns)} is missing; correct the row.")
    if not rows:
        raise DataError(f"{path} has a header but no rows; write one per video or caption.")
    return [row for _, row in rows]


def read_lines(path: str) -> list[str]:
    """Lines that are not empty, without the blanks around them.

    Raises:
        DataError: the file is missing, or has none.
    """
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty; it has to name one video on each line.")
    return lines


def read_json(path: str, kind: type | tuple[type, ...], keys: Iterable[str] = ()) -> Any:  # noqa: ANN401 - as json
    """The list or object of a JSON file.

    Raises:
        DataError: the file is missing, is not JSON, is of another kind or empty, or lacks one of `keys`.
    """
    content = parse_json(read_text(path), path)
    is_wanted = isinstance(content, kind)
    if not is_wanted or not content:
        wanted: dict[type, str] = {list: "list", dict: "object"}
        kinds = " or ".join(wanted[one] for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise DataError(f"{path} is not a JSON {kinds} with entries; download it again.")
    lacking = [key for key in keys if key not in content]
    if lacking:
        raise DataError(
            f"{path} has no key {' and no key '.join(lacking)} (it has {', '.join(map(str, list(content)[:5]))}); take "
            "the file of the official release."
        )
    return content
