"""The videos that sources name: files, folders, lists, tar shards; local or behind URLs."""

import csv
import os
from collections.abc import Callable, Sequence

from datamodules.errors import DataError
from datamodules.shards.reading import has_index, open_shards
from datamodules.storage.files import is_url, join, read_text, split
from zoo.errors import ZooError
from zoo.sources import find_videos, refuse_empty
from zoo.tables.place import absolute

__all__ = ["list_videos"]

_SPLITS = ("train", "val", "test")
_LISTS = (".txt", ".csv")


def list_videos(
    sources: Sequence[str | os.PathLike[str]], find: Callable[[list[str]], list[str]] | None = None
) -> tuple[list[str], list[str]]:
    """Return the videos, absolute and sorted, each once; and the places of which they are all there is.

    A source is a file, a folder (its videos at any depth, or those of the index of shards that it has), a tar shard
    beside its index (``{000..123}`` stands for several), a .txt list with a path on each line, or a .csv list with a
    column ``path``; paths in lists are relative to the list's folder, absolute, or URLs.

    Args:
        sources: paths or URLs.
        find: what finds the videos of files and folders; None is `zoo.sources.find_videos`.

    Raises:
        ZooError: there are none, or a source cannot be read.
    """
    refuse_empty(sources)
    find = find or (lambda paths: find_videos(paths, urls=True))
    found: dict[str, None] = {}
    roots, plain = [], []
    for source in (absolute(one) for one in sources):
        name = source.partition("?")[0].lower() if is_url(source) else source.lower()
        if name.endswith(_LISTS) and (is_url(source) or os.path.isfile(source)):
            found |= dict.fromkeys(_listed(source))
            continue
        roots.append(source)
        if _has_shards(source):
            opened = [shards for name in _SPLITS for shards in open_shards([source], name)]
            found |= dict.fromkeys(path for shards in opened for path, _ in shards.samples)
        else:
            plain.append(source)
    if plain:
        found |= dict.fromkeys(find(plain))
    if not found:
        raise ZooError(f"{', '.join(os.fspath(source) for source in sources)} names no videos; name some.")
    return sorted(found), roots


def _listed(path: str) -> list[str]:
    folder = split(path)[0]
    try:
        lines = read_text(path).splitlines()
    except DataError as error:
        raise ZooError(f"{path} cannot be read as a list of videos; save it as UTF-8, a path on each line.") from error
    if path.partition("?")[0].lower().endswith(".csv"):
        rows = csv.DictReader(lines)
        if "path" not in (rows.fieldnames or ()):
            raise ZooError(f"{path} has no column path; write one in the list's first line.")
        lines = [row["path"] or "" for row in rows]
    names = [line for line in lines if line.strip()]
    return [join(folder, name) if is_url(folder) else absolute(join(folder, name)) for name in names]


def _has_shards(source: str) -> bool:
    folder = split(source)[0] if source.endswith(".tar") else source
    if is_url(folder) and os.path.splitext(folder)[1]:  # a file
        return False
    return any(has_index(folder, name) for name in _SPLITS)
