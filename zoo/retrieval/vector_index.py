"""Vectors of videos in a folder, and the nearest ones to a query: exact, block by block, from memory-mapped files.

    index = Index.create("my.index", dims=512)
    index.add([Record("a.mp4", 0.0, 12.5), Record("b.mp4", 0.0, 8.0)], vectors)     # unit vectors (2, 512)
    hits = Index.open("my.index").search(queries, topk=10)                           # (Q, 512) -> Q lists of Hit

The folder is described in docs/search.md. A part is one file that appears complete or not at all, so several processes
may add while others search. Nothing in here knows models or decodes videos.
"""

import json
import os
import time
import uuid
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.files import UNFINISHED, written

__all__ = ["DTYPES", "File", "Hit", "Index", "Record"]

HEAD = "index.json"
FORMAT, VERSION = "video-mamba-zoo index", 1
DTYPES = {"float32": torch.float32, "float16": torch.float16}

ROWS = 2**16
"""Most rows of a part, and rows that are compared with a query at once: 128 MiB of 512 float32."""
MOST_DIMS = 2**16
FEW_ROWS, MANY_PARTS = 2**10, 64
"""While adding, so many parts with fewer rows become one; `tidy` joins all that are less than half full."""

DAY = 86_400


class Record(NamedTuple):
    """What a vector stands for: a stretch of a video, in seconds from its first frame."""

    path: str
    start: float
    end: float


class File(NamedTuple):
    """A file as it was when it was read.

    Attributes:
        path: as in its records.
        size: bytes; None where nobody looked.
        mtime_ns: time of the last change, nanoseconds since 1970.
        error: why it could not be read; such a file has no records.
    """

    path: str
    size: int | None = None
    mtime_ns: int | None = None
    error: str | None = None


class Hit(NamedTuple):
    """A found record; ``score`` is the product of its vector and the query's, for unit vectors the cosine."""

    path: str
    start: float
    end: float
    score: float


class Index:
    """An index in a folder; made by `create` or `open`.

    Attributes:
        folder: where it is.
        dims: numbers of a vector.
        dtype: "float32" or "float16", of the vectors on disk; scores are float32.
        settings: further plain values kept in index.json, such as the model.
    """

    def __init__(self, folder: Path, dims: int, dtype: str, settings: Mapping) -> None:
        self.folder, self.dims, self.dtype, self.settings = folder, dims, dtype, dict(settings)
        self._known: dict[str, _Part] = {}
        self._current: list[_Part] | None = None

    @classmethod
    def create(
        cls, folder: str | os.PathLike, dims: int, dtype: str = "float32", settings: Mapping | None = None
    ) -> "Index":
        """Makes an empty index.

        Raises:
            ZooError: the folder is not empty, or cannot be written.
        """
        folder = Path(folder)
        if dtype not in DTYPES or dims < 1:
            raise ZooError(f"An index of {dims} {dtype} numbers a vector cannot be made; choose {' or '.join(DTYPES)}.")
        if folder.exists() and (not folder.is_dir() or any(not n.name.startswith(".") for n in folder.iterdir())):
            raise ZooError(f"{folder} exists and is no index of videos; choose another name.")
        index = cls(folder, dims, dtype, settings or {})
        content = {"format": FORMAT, "version": VERSION, "dims": dims, "dtype": dtype, **index.settings}
        folder.mkdir(parents=True, exist_ok=True)
        with written(folder / HEAD) as beside:
            beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return index

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "Index":
        """Opens an index; its parts are mapped into memory when they are needed.

        Raises:
            ZooError: there is none, or one of another version.
        """
        folder = Path(folder)
        try:
            content = json.loads((folder / HEAD).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ZooError(f"{folder} is no index of videos; make one: zoo index MODEL VIDEOS -o {folder}.") from error
        except (ValueError, RecursionError) as error:
            raise ZooError(f"{folder / HEAD} is not valid JSON ({error}); make the index again.") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
            raise ZooError(f"{folder / HEAD} is not of the format {FORMAT!r}, version {VERSION}; make the index again.")
        dims, dtype = content.get("dims"), content.get("dtype")
        if type(dims) is not int or not 1 <= dims <= MOST_DIMS or dtype not in [*DTYPES]:
            raise ZooError(f"{folder / HEAD} says dims {dims!r} and dtype {dtype!r}; make the index again.")
        known = ("format", "version", "dims", "dtype")
        return cls(folder, dims, dtype, {key: value for key, value in content.items() if key not in known})

    def __len__(self) -> int:
        """Number of vectors."""
        return sum(len(part) for part in self._parts)

    @property
    def files(self) -> dict[str, File]:
        """All files by path, those that could not be read included."""
        return {file.path: file for part in self._parts for file in part.files}

    def records(self) -> Iterator[tuple[Record, Tensor]]:
        """Yield all records with their vectors (dims,), in the order of the parts."""
        for part in self._parts:
            yield from zip(map(part.record, range(len(part))), part.vectors, strict=True)

    def add(self, records: Sequence[Record], vectors: Tensor, files: Sequence[File] | None = None) -> None:
        """Appends records; all of them are there afterwards, or where the process dies none of up to `ROWS`.

        Args:
            records: those of a file next to each other.
            vectors: (N, dims), of unit length, on any device.
            files: the files of the records, and any that could not be read; None makes them from the records.

        Raises:
            ZooError: other dims, or numbers that are not finite.
        """
        if vectors.shape != (len(records), self.dims):
            raise ZooError(f"{len(records)} records need vectors ({len(records)}, {self.dims}); "
                           f"these are {tuple(vectors.shape)}.")  # fmt: skip
        if not vectors.isfinite().all():
            bad = records[int((~vectors.isfinite().all(1)).nonzero()[0])]
            raise ZooError(f"The model's vector for {bad.path} has numbers that are not finite; check its weights.")
        vectors = vectors.detach().to("cpu", DTYPES[self.dtype])
        paths = dict.fromkeys(record.path for record in records)
        files = [File(path) for path in paths] if files is None else files
        for first in range(0, max(len(records), 1), ROWS):
            some = records[first : first + ROWS]
            named = {record.path for record in some}
            # A file without records goes with the first part; one cut in two is listed in both.
            listed = [f for f in files if f.path in named or (first == 0 and f.path not in paths)]
            place = {file.path: number for number, file in enumerate(listed)}
            self._write(
                listed,
                torch.tensor([place[record.path] for record in some], dtype=torch.int64),
                torch.tensor([record[1:] for record in some], dtype=torch.float64).view(-1, 2),
                vectors[first : first + ROWS],
            )

    def search(self, queries: Tensor, topk: int = 10) -> list[list[Hit]]:
        """Return the records with the largest scores, best first; equal ones by path and time.

        The answer depends on the records and their vectors alone, to the last bit, not on how they came to be divided
        into parts: float32 products choose the candidates, whose sums a matrix product may order by the shape of its
        operands, and sums in float64 of one row at a time rank them.

        Args:
            queries: (Q, dims), of unit length, on any device.
            topk: how many; all where there are fewer.

        Raises:
            ZooError: other dims, numbers that are not finite, or a damaged part.
        """
        if not topk >= 1:
            raise ZooError(f"topk is {topk}; ask for at least one.")
        if queries.ndim != 2 or queries.shape[1] != self.dims:
            raise ZooError(f"The index has vectors of {self.dims} numbers and the queries are {tuple(queries.shape)}; "
                           "make them with the model of the index.")  # fmt: skip
        queries = queries.detach().to("cpu", torch.float32)
        if not queries.isfinite().all():
            raise ZooError("A query has numbers that are not finite; check the weights of the model.")
        parts = self._parts
        firsts = [0, *accumulate(map(len, parts))]
        # Twice the bound of the rounding error of a product with a unit vector.
        margins = (queries.norm(dim=1) * self.dims * torch.finfo(torch.float32).eps).tolist()
        near = [(np.empty(0, np.float32), np.empty(0, np.int64)) for _ in queries]
        wide = torch.empty(ROWS if self.dtype != "float32" else 0, self.dims)
        for part, first in zip(parts, firsts, strict=False):
            for start in range(0, len(part), ROWS):
                block = part.vectors[start : start + ROWS]
                if block.dtype != torch.float32:
                    block = wide[: len(block)].copy_(block)
                products = F.linear(queries, block).numpy()
                if not np.isfinite(products).all():
                    raise ZooError(f"{self.folder / part.name} has vectors that are not finite; delete it and run "
                                   "zoo index again.")  # fmt: skip
                for number, scores in enumerate(products):
                    near[number] = _merged(*near[number], scores, first + start, topk, margins[number])

        def place(row: int) -> tuple[_Part, int]:
            number = bisect_right(firsts, row) - 1
            return parts[number], row - firsts[number]

        found = []
        for query, (_, rows) in zip(queries.double().numpy(), near, strict=True):
            places = [place(row) for row in rows.tolist()]
            scores = np.array([(part.vectors[row].double().numpy() * query).sum() for part, row in places])
            last = -np.sort(-scores)[:topk][-1:]  # empty where there is no record
            best = [place for place, score in zip(places, scores, strict=True) if score >= last]
            kept = scores[scores >= last].tolist()
            hits = [Hit(*part.record(row), score) for (part, row), score in zip(best, kept, strict=True)]
            found.append(sorted(hits, key=lambda hit: (-hit.score, *hit))[:topk])
        return found

    def tidy(self, drop: Collection[str] = (), *, few_rows: int = ROWS // 2) -> None:
        """Removes files with their records, joins parts with fewer than `few_rows` rows, and clears up after processes
        that were killed. Others may add and search meanwhile.

        Raises:
            ZooError: a part is damaged.
        """
        drop = set(drop)
        with self.locked("tidy"):
            present = self._read_parts()
            current = {part.name for part in present}
            for path in self.folder.glob("*.safetensors"):
                if path.name not in current and any(path.name in part.replaces for part in present):
                    path.unlink(missing_ok=True)
            for path in self.folder.glob(f".*{UNFINISHED}"):
                with suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > DAY:  # younger ones may still be written
                        path.unlink()
            touched = [p for p in present if drop and any(file.path in drop for file in p.files)]
            small = [p for p in present if len(p) < few_rows and p not in touched]
            group: list[_Part] = []
            for part in sorted(touched + small, key=lambda part: part.name):
                # Neither the tensors nor the list of files may become too large; a file may be without records.
                if group and sum(map(_size, group)) + _size(part) > ROWS:
                    self._join(group, drop)
                    group = []
                group.append(part)
            if group:
                self._join(group, drop)

    def tidy_if_many(self) -> None:
        """Joins the smallest parts where there are many, which adding a few records at a time leaves."""
        if sum(len(part) < FEW_ROWS for part in self._parts) >= MANY_PARTS:
            self.tidy(few_rows=FEW_ROWS)

    def _join(self, parts: "list[_Part]", drop: set[str]) -> None:
        """One part in the place of several, without some files."""
        if len(parts) == 1 and not any(file.path in drop for file in parts[0].files):
            return
        listed: dict[str, File] = {}
        numbers, seconds, vectors = [], [], []
        for part in parts:
            kept = [file for file in part.files if file.path not in drop]
            listed |= {file.path: file for file in kept}
            place = {path: number for number, path in enumerate(listed)}
            new = torch.tensor([place.get(file.path, -1) for file in part.files], dtype=torch.int64)[part.file]
            numbers.append(new[new >= 0])
            seconds.append(part.seconds[new >= 0])
            vectors.append(part.vectors[new >= 0])
        if listed:
            replaced = [part.name for part in parts]
            self._write([*listed.values()], torch.cat(numbers), torch.cat(seconds), torch.cat(vectors), replaced)
        for part in parts:
            (self.folder / part.name).unlink(missing_ok=True)
        self._current = None

    def _write(
        self, files: Sequence[File], file: Tensor, seconds: Tensor, vectors: Tensor, replaces: Sequence[str] = ()
    ) -> None:
        listed = [{key: value for key, value in f._asdict().items() if value is not None} for f in files]
        # JSON without non-ASCII characters keeps even names that are not valid UTF-8.
        metadata = {"format": FORMAT, "version": str(VERSION), "files": json.dumps(listed),
                    "replaces": json.dumps(list(replaces))}  # fmt: skip
        tensors = {"vectors": vectors.contiguous(), "file": file, "seconds": seconds}
        number = max((_number(path.name) for path in self.folder.glob("*.safetensors")), default=0) + 1
        # Several processes may come to the same number.
        target = self.folder / f"part-{number:08d}-{uuid.uuid4().hex[:8]}.safetensors"
        with written(target) as beside:
            save_file(tensors, beside, metadata=metadata)
        self._current = None

    @property
    def _parts(self) -> "list[_Part]":
        if self._current is None:
            self._current = self._read_parts()
        return self._current

    def _read_parts(self) -> "list[_Part]":
        """The parts in the order of their names, without those that another one stands for."""
        while True:
            names = sorted(path.name for path in self.folder.glob("*.safetensors"))
            try:
                for name in names:
                    if name not in self._known:
                        self._known[name] = _Part(self.folder / name, self.dims, self.dtype)
            except FileNotFoundError:
                continue  # replaced by another process since it was listed
            parts = [self._known[name] for name in names]
            self._known = dict(zip(names, parts, strict=True))
            replaced = {name for part in parts for name in part.replaces}
            return [part for part in parts if part.name not in replaced]

    @contextmanager
    def locked(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Holds a lock of the index while the block runs; the system lets go of it when the process dies.

        Args:
            name: other names exclude nothing.
            wait: until its holder lets go; otherwise the block runs at once, and is told whether it has the lock.
        """
        try:
            import fcntl
        except ImportError:  # Windows: one process at a time, then
            yield True
            return
        with open(self.folder / f".{name}.lock", "a") as file:
            held = True
            try:
                # Unlike flock's, these locks do not pass to the processes that a loader starts.
                fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except (BlockingIOError, PermissionError):
                held = False
            yield held


class _Part:
    """One file of an index, mapped into memory."""

    def __init__(self, path: Path, dims: int, dtype: str) -> None:
        self.path, self.name = path, path.name
        try:
            with safe_open(path, "pt") as file:
                self._metadata = file.metadata() or {}
                self.vectors, self.file, self.seconds = (file.get_tensor(k) for k in ("vectors", "file", "seconds"))
            self.replaces = set(json.loads(self._metadata["replaces"]))
        except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            if not path.exists():  # torch reports that as a RuntimeError
                raise FileNotFoundError(path) from error
            raise self._damaged(error) from error
        n = self.file.numel()
        there = [(tensor.shape, tensor.dtype) for tensor in (self.vectors, self.file, self.seconds)]
        if there != [((n, dims), DTYPES[dtype]), ((n,), torch.int64), ((n, 2), torch.float64)]:
            raise ZooError(f"{path} belongs to another index; delete it and run zoo index again.")

    def __len__(self) -> int:
        return len(self.vectors)

    @cached_property
    def files(self) -> list[File]:
        try:
            files = [File(**file) for file in json.loads(self._metadata["files"])]
            if not all(isinstance(file.path, str) for file in files):
                raise ValueError("a path is no text")
            if len(self) and not 0 <= int(self.file.min()) <= int(self.file.max()) < len(files):
                raise ValueError("rows of files that it does not list")
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise self._damaged(error) from error
        return files

    def record(self, row: int) -> Record:
        return Record(self.files[int(self.file[row])].path, *self.seconds[row].tolist())

    def _damaged(self, error: Exception) -> ZooError:
        reason = " ".join(str(error).split())[:200]
        return ZooError(f"{self.path} is damaged ({reason}); delete it and run zoo index again.")


def _size(part: _Part) -> int:
    return max(len(part), len(part.files))


def _merged(
    best: np.ndarray, rows: np.ndarray, scores: np.ndarray, first_row: int, k: int, margin: float
) -> tuple[np.ndarray, np.ndarray]:
    """What is at most `margin` below the k-th largest, of the scores so far and of those of the rows that follow.

    In numpy, since torch would hand each of these small steps to all threads and wait for the slowest.
    """
    if len(best) >= k:
        new = np.flatnonzero(scores >= np.partition(best, -k)[-k] - margin)
        scores, first_rows = scores[new], first_row + new
    else:
        first_rows = np.arange(first_row, first_row + len(scores))
    best, rows = np.concatenate([best, scores]), np.concatenate([rows, first_rows])
    if len(best) > k:
        kept = best >= np.partition(best, -k)[-k] - margin
        best, rows = best[kept], rows[kept]
    return best, rows


def _number(name: str) -> int:
    with suppress(IndexError, ValueError):
        return int(name.split("-")[1])
    return 0
