"""Listings of videos in tar shards (the WebDataset format), and the order in which to read them.

A folder of shards has an index for each split, `train.index.jsonl`, a JSON object on each line:

    {"format": "zoo-shards", "version": 1, "fields": ["label"], "class_names": [...], "samples": 240436, ...}
    {"shard": "train-000000.tar", "bytes": 1000130560, "sha256": "...", "offset": [...], "size": [...],
     "name": [...], "label": [...]}                                  a line for each shard, lists with a value for each
    ...                                                              sample, in the order of the shard

The index says where each video lies, so that any of them is read by itself (`datamodules.storage.members`), and the
order of an epoch is settled before anything is read, as for files (docs/shards.md).
"""

import fnmatch
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from tarfile import BLOCKSIZE
from typing import Any, NamedTuple, get_type_hints
from urllib.parse import unquote

import numpy as np
import torch
from torch import Tensor

from datamodules.annotations.lists import parse_json
from datamodules.checks import fits
from datamodules.errors import DataError
from datamodules.storage.files import RemoteFile, expand_braces, is_url, join, read_text, resolve, split
from datamodules.storage.members import Member

__all__ = ["FORMAT", "INDEX_SUFFIX", "ShardFolder", "ShardListing", "ShardListings", "has_index", "open_shards",
           "read_index", "shard_order"]  # fmt: skip

INDEX_SUFFIX = ".index.jsonl"
FORMAT = {"format": "zoo-shards", "version": 1}
_SPLITS = ("train", "val", "test")
_HEADER = {"fields": tuple[str, ...], "class_names": tuple[str, ...] | None, "media": str | None, "samples": int,
           "bytes": int, "left_out": int}  # fmt: skip
_SHARD = {"shard": str, "bytes": int, "sha256": str, "offset": tuple[int, ...], "size": tuple[int, ...],
          "name": tuple[str, ...]}  # fmt: skip


class ShardFolder(NamedTuple):
    """A split's samples in the shards of one folder.

    Attributes:
        index: path of the index.
        header: its first line.
        names: of the shards.
        digests: SHA-256 of each.
        sizes: samples of each shard.
        samples: (path, {field: value}) of each sample, in order; iterate once.
        missing: of each shard, whether it is not there or has another length than the index says; False of remote ones.
    """

    index: str  # type: ignore[assignment]  # a field, and no longer the method of tuples
    header: dict[str, Any]
    names: list[str]
    digests: list[str]
    sizes: list[int]
    samples: Iterator[tuple[str, dict[str, Any]]]
    missing: list[bool]


class ShardListing(NamedTuple):
    """A split's samples in all of its shards.

    Attributes:
        entries: as the DataModule's `listing` has them.
        sizes: samples of each shard, in the order of the entries.
        missing: numbers of the entries whose shards are missing.
        digest: of the shards' own digests; other contents have another.
    """

    entries: list[Any]
    sizes: list[int]
    missing: list[int]
    digest: str


def has_index(folder: str, name: str) -> bool:
    """Whether a folder has the index of a split."""
    path = join(folder, f"{name}{INDEX_SUFFIX}")
    if not is_url(path):
        return os.path.isfile(path)
    try:
        RemoteFile(path).close()
    except OSError:
        return False
    return True


def open_shards(sources: Sequence[str], name: str) -> list[ShardFolder]:
    """Open the shards of a split ("train", "val", "test").

    Args:
        sources: folders of shards, or shards by name, where ``{000..123}`` and, of the last part, ``*`` stand for
            several. Local paths or URLs.
        name: the split.

    Raises:
        DataError: an index is damaged, or does not know a shard that was named; or the indices differ in their classes.
    """
    found = []
    for source in sources:
        folder, patterns = _patterns(source)
        if has_index(folder, name):
            opened = read_index(join(folder, f"{name}{INDEX_SUFFIX}"), patterns)
            found += [opened] if opened.sizes else []
        elif not any(has_index(folder, other) for other in _SPLITS):
            raise DataError(f"{folder} has no index of shards ({name}{INDEX_SUFFIX}); write shards with zoo shard, or "
                            f"an index of those that are there: zoo shard '{join(folder, '*.tar')}'.")  # fmt: skip
    for other in found[1:]:
        for key in ("class_names", "fields", "media"):
            if other.header.get(key) != found[0].header.get(key):
                raise DataError(f"{other.index} has other {key} than {found[0].index}; take shards of one data set.")
    return found


def _patterns(source: str) -> tuple[str, list[str] | None]:
    """Folder, and patterns of the shards' names in it; None for all of them."""
    if not source.endswith(".tar"):
        return resolve(source), None
    expanded = [split(path) for path in expand_braces(resolve(source))]
    folders = {folder for folder, _ in expanded}
    if len(folders) > 1:
        raise DataError(f"{source} names shards in several folders; give each folder by itself.")
    return folders.pop(), [name for _, name in expanded]


def read_index(path: str, patterns: Sequence[str] | None = None) -> ShardFolder:
    """The samples of an index's shards; of those that fit a pattern, where there are patterns.

    Raises:
        DataError: the index is missing or damaged, or was written by another version.
    """
    lines = [line for line in read_text(path).split("\n") if line.strip()]
    values = [parse_json(line, path, number, remedy="copy the index again") for number, line in enumerate(lines, 1)]
    header, *shards = values or [{}]
    is_header = isinstance(header, dict) and {key: header.get(key) for key in FORMAT} == FORMAT
    if not is_header or header.get("shards") != len(shards):
        raise DataError(f"{path} is no complete index of shards of version {FORMAT['version']}; write it again.")
    _check_header(path, header)
    for number, shard in enumerate(shards, 2):
        fault = _fault_of(shard, header["fields"])
        if fault is not None:
            raise DataError(f"{path}, line {number}: {fault}; write the index again.")
    if patterns is not None:
        plain, wild = set(patterns), [pattern for pattern in patterns if set("*?[") & set(pattern)]
        shards = [s for s in shards if s["shard"] in plain or any(fnmatch.fnmatchcase(s["shard"], p) for p in wild)]
    folder, _ = split(path)
    places = [join(folder, shard["shard"]) for shard in shards]
    missing = [not is_url(place) and (not os.path.isfile(place) or os.path.getsize(place) != shard["bytes"])
               for place, shard in zip(places, shards, strict=True)]  # fmt: skip
    names, digests = ([shard[key] for shard in shards] for key in ("shard", "sha256"))
    sizes = [len(shard["offset"]) for shard in shards]
    return ShardFolder(path, header, names, digests, sizes, _samples(folder, header["fields"], shards), missing)


def _check_header(path: str, header: dict[str, Any]) -> None:
    for key, kind in _HEADER.items():
        if not fits(header.get(key), kind):
            raise DataError(f"{path}, line 1: {key} is missing or of another kind; write the index again.")
    if len(set(header["fields"])) < len(header["fields"]) or set(header["fields"]) & _SHARD.keys():
        raise DataError(f"{path}, line 1: fields has a name twice, or one that means something else; write the index "
                        "again.")  # fmt: skip


def _fault_of(shard: object, fields: list[str]) -> str | None:
    """Return what is wrong with the line of a shard, or None."""
    if not isinstance(shard, dict):
        return "it is not an object"
    for key, kind in _SHARD.items():
        if not fits(shard.get(key), kind):
            return f"{key} is missing or of another kind"
    name, count = shard["shard"], len(shard["offset"])
    if not _lies_below(name):
        return f"the shard {name[:80]!r} is not a tar in the index's folder"
    if any(not isinstance(shard.get(key), list) or len(shard[key]) != count for key in ("size", "name", *fields)):
        return f"{', '.join(('offset', 'size', 'name', *fields))} are not lists of equal lengths"
    offsets, sizes = np.array(shard["offset"], dtype=np.int64), np.array(shard["size"], dtype=np.int64)
    if count and (offsets.min() < BLOCKSIZE or sizes.min() < 0 or (sizes > shard["bytes"] - offsets).any()):
        return "a sample does not lie within its shard"
    return None if all(shard["name"]) else "a sample has no name"


def _lies_below(name: str) -> bool:
    """Whether a name from an index leads into its own folder or one inside."""
    plain = unquote(name).replace("\\", "/")  # as servers may read it
    return name.endswith(".tar") and not set("!?#:\0") & set(plain) and not {"", ".", ".."} & set(plain.split("/"))


def _samples(folder: str, fields: list[str], shards: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for shard in shards:
        path = join(folder, shard["shard"])
        columns = zip(*(shard[name] for name in fields), strict=True) if fields else ((),) * len(shard["offset"])
        places = zip(shard["offset"], shard["size"], shard["name"], columns, strict=True)
        for offset, size, name, values in places:
            # A name that looks like an address must not be taken for one.
            yield (
                str(Member(path, offset, size, name.replace(".tar!", ".tar/"))),
                dict(zip(fields, values, strict=True)),
            )


class ShardListings:
    """The splits of a DataModule whose files are in shards.

    Args:
        sources: see `open_shards`.
        entry: what makes an entry of the listing: called with `path` and the index's fields.
    """

    def __init__(self, sources: Sequence[str], entry: type[NamedTuple]) -> None:
        self.sources, self.entry = sources, entry
        self._opened: dict[str, list[ShardFolder]] = {}
        self._read: dict[str, ShardListing] = {}

    @cached_property
    def _header(self) -> dict[str, Any]:
        for name in _SPLITS:
            found = self._opened[name] = open_shards(self.sources, name)
            if found:
                return found[0].header
        raise DataError(f"{' and '.join(self.sources)}: none of these shards is in the index beside them.")

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, where the shards have such."""
        return self._header.get("class_names")

    def split(self, name: str) -> ShardListing:
        """The listing of a split, read once; testing takes validation where there are no shards for it.

        Raises:
            DataError: there are none, or they hold something else.
        """
        if name not in self._read:
            found = self._opened.pop(name, None) or open_shards(self.sources, name)
            if not found and name == "test":
                return self.split("val")
            if not found:
                raise DataError(f"{' and '.join(self.sources)}: no shards of the {name} split ({name}{INDEX_SUFFIX}); "
                                "write them with zoo shard.")  # fmt: skip
            self._read[name] = self._listing(found)
        return self._read[name]

    def _listing(self, found: list[ShardFolder]) -> ShardListing:
        known, given = set(self.entry._fields) - {"path"}, set(found[0].header["fields"])
        needed = known - self.entry._field_defaults.keys()
        if not needed <= given <= known:
            raise DataError(f"{found[0].index} holds {_listed(given)} of each sample, and this data set needs "
                            f"{_listed(needed)}; take shards of such a data set.")  # fmt: skip
        kinds = {field: kind for field, kind in get_type_hints(self.entry).items() if field in given}
        entry: Callable[..., NamedTuple] = self.entry
        entries = []
        for folder in found:
            for path, values in folder.samples:
                strange = next((field for field, value in values.items() if not fits(value, kinds[field])), None)
                if strange is not None:
                    raise DataError(f"{folder.index}: {path.rpartition('!')[2]} has {str(values[strange])[:80]!r} as "
                                    f"{strange}, which is of another kind; write the index again.")  # fmt: skip
                # Lists were tuples before they became JSON.
                fields = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
                entries.append(entry(path=path, **fields))
        digests = [digest for folder in found for digest in folder.digests]
        sizes = [size for folder in found for size in folder.sizes]
        missing = np.repeat([is_missing for folder in found for is_missing in folder.missing], sizes)
        digest = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
        return ShardListing(entries, sizes, missing.nonzero()[0].tolist(), digest)


def _listed(names: set[str]) -> str:
    return " and ".join(sorted(names)) or "nothing"


def shard_order(sizes: Sequence[int], buffer: int, generator: torch.Generator) -> Tensor:
    """A random order of samples that keeps those of a shard near each other.

    The shards follow each other in random order, and each sample then moves by at most `buffer` places:

        shards         [6 7 8][0 1 2][3 4 5]
        buffer of 3     7 6 1 0 8 2 4 5 3

    Args:
        sizes: samples of each shard.
        buffer: 0 leaves the samples of a shard in its order.
        generator: source of the random numbers.

    Returns:
        int64 (sum of sizes,), a permutation.
    """
    ends = torch.tensor(sizes, dtype=torch.int64).cumsum(0)
    starts = ends - torch.tensor(sizes, dtype=torch.int64)
    shards = torch.randperm(len(sizes), generator=generator).tolist()
    stream = torch.cat([torch.arange(int(starts[shard]), int(ends[shard])) for shard in shards])
    moved = torch.arange(len(stream)) + buffer * torch.rand(len(stream), generator=generator, dtype=torch.float64)
    return stream[moved.argsort(stable=True)]
