"""Vectors of videos in a table of a LanceDB database, and the nearest ones to a query.

    index = Index.create("my.index", dims=512)
    index.add([Record("a.mp4", 0.0, 12.5), Record("b.mp4", 0.0, 8.0)], vectors)     # unit vectors (2, 512)
    hits = Index.open("my.index").search(queries, topk=10)                           # (Q, 512) -> Q lists of Hit

The table is described in docs/search.md. Nothing in here knows models or decodes videos.

A change is one commit: it is there or not, wherever a process is killed. Those of several processes come one after
the other, under a lock, since file systems over a network lose commits that are made at once.
"""

import importlib.util
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.storage.files import is_url
from zoo.errors import ZooError

__all__ = ["APPROXIMATE_ROWS", "COLUMNS", "DTYPES", "OLD_FORMAT", "OLD_HEAD", "STORES", "File", "Hit", "Index",
           "Record", "check_place"]  # fmt: skip

FORMAT, VERSION = "video-mamba-zoo index", 2
OLD_FORMAT, OLD_HEAD = "video-mamba-zoo index", "index.json"
TABLE, KEY = "videos", b"video-mamba-zoo"
COLUMNS = ("vector", "path", "start", "end", "size", "mtime", "error")
DTYPES = {"float32": torch.float32, "float16": torch.float16}
MOST_DIMS = 2**16
STORES = ("s3", "gs", "az", "hf")
"""Where an index may lie, besides local folders."""

APPROXIMATE_ROWS = 100_000
"""Search is exact up to so many rows, which takes milliseconds, and above until an approximate index is built."""
BITS, PROBES, REFINE = 4, 400, 5
"""Bits of a number in the approximate index, partitions that are looked at, and how many times more rows than asked for
are compared exactly."""

MANY_COMMITS = 256
"""So many become one file again while videos are being indexed."""
KEPT = timedelta(hours=1)
"""Former versions of the table stay so long: a search that has begun reads the version it opened."""
SLACK = 32
"""Rows beyond those asked for that are fetched, so that the order of nearly equal ones is decided in float64."""
NAMES_AT_ONCE = 500


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
        mtime_ns: time of the last change, nanoseconds since 1970; None where the store does not say.
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
    """An index; made by `create` or `open`.

    Attributes:
        folder: where it is, a local path or a URL.
        dims: numbers of a vector.
        dtype: "float32" or "float16", of the vectors in the table; scores are float64.
        settings: further plain values kept with the table, such as the model.
    """

    def __init__(self, folder: str, table: Any, head: Mapping) -> None:
        self.folder, self._table = folder, table
        known = ("format", "version", "dims", "dtype")
        self.dims, self.dtype = head["dims"], head["dtype"]
        self.settings = {key: value for key, value in head.items() if key not in known}

    @classmethod
    def create(
        cls, folder: str | os.PathLike, dims: int, dtype: str = "float32", settings: Mapping | None = None
    ) -> "Index":
        """Make an empty index.

        Raises:
            ZooError: the folder is not empty, or cannot be written.
        """
        folder = os.fspath(folder)
        if dtype not in DTYPES or not 1 <= dims <= MOST_DIMS:
            raise ZooError(f"An index of {dims} {dtype} numbers a vector cannot be made; choose {' or '.join(DTYPES)}.")
        if not is_url(folder):
            _refuse_other(folder)
        lancedb, pa = _lancedb()
        head = {"format": FORMAT, "version": VERSION, "dims": dims, "dtype": dtype, **(settings or {})}
        schema = pa.schema([(name, kind) for name, kind in _kinds(dims, dtype).items()], {KEY: json.dumps(head)})
        with _told(folder):
            table = lancedb.connect(folder).create_table(TABLE, schema=schema)
        return cls(folder, table, head)

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "Index":
        """Open an index.

        Raises:
            ZooError: there is none, one of another format, or LanceDB is not installed.
        """
        folder = os.fspath(folder)
        if not cls.exists(folder):
            _refuse_former(folder)
            raise ZooError(f"{folder} is no index of videos; make one: zoo index MODEL VIDEOS -o {folder}.")
        lancedb, _ = _lancedb()
        with _told(folder, "read as an index", "make the index again"):
            table = lancedb.connect(folder).open_table(TABLE)
            schema = table.schema
        return cls(folder, table, _checked_head(folder, schema))

    @staticmethod
    def exists(folder: str | os.PathLike) -> bool:
        """Whether there is a table of that name, with at least one complete version."""
        folder = os.fspath(folder)
        if not is_url(folder):
            try:
                return any(Path(folder, f"{TABLE}.lance", "_versions").glob("*.manifest"))
            except (OSError, ValueError) as error:
                raise ZooError(f"{folder} cannot be read ({error}); name another place.") from error
        check_place(folder)
        lancedb, _ = _lancedb()
        with _told(folder, "read", "check the address and your access"):
            return TABLE in lancedb.connect(folder).list_tables().tables

    def __len__(self) -> int:
        """Number of vectors."""
        return self.count()

    def count(self, where: str | None = None) -> int:
        """Number of vectors that a condition holds for.

        Raises:
            ZooError: it is no condition on the table's columns.
        """
        condition = "vector IS NOT NULL" + ("" if where is None else f" AND ({where})")
        with self._asked(where):
            return self._table.count_rows(condition)

    @property
    def files(self) -> dict[str, File]:
        """All files by path, those that could not be read included."""
        found = {}
        for rows in self._rows(["path", "size", "mtime", "error"]):
            columns = (rows.column(name).to_pylist() for name in ("path", "size", "mtime", "error"))
            for path, *state in zip(*columns, strict=True):
                path = _path_of(path)
                found[path] = File(path, *state)
        return found

    def records(self) -> Iterator[tuple[Record, Tensor]]:
        """Yield all records with their vectors (dims,), in no particular order."""
        for rows in self._rows(["vector", "path", "start", "end"], "vector IS NOT NULL"):
            vectors = torch.from_numpy(self._vectors(rows))
            columns = (rows.column(name).to_pylist() for name in ("path", "start", "end"))
            for path, start, end, vector in zip(*columns, vectors, strict=True):
                yield Record(_path_of(path), start, end), vector

    def add(self, records: Sequence[Record], vectors: Tensor, files: Sequence[File] | None = None) -> None:
        """Append records in one commit.

        Args:
            records: all of the files.
            vectors: (N, dims), of unit length, on any device.
            files: the files of the records, and any that could not be read; None makes them from the records.

        Raises:
            ZooError: other dims, numbers that are not finite, or the table cannot be written.
        """
        if vectors.shape != (len(records), self.dims):
            raise ZooError(f"{len(records)} records need vectors ({len(records)}, {self.dims}); "
                           f"these are {tuple(vectors.shape)}.")  # fmt: skip
        if not vectors.isfinite().all():
            bad = records[int((~vectors.isfinite().all(1)).nonzero()[0])]
            raise ZooError(f"The model's vector for {bad.path} has numbers that are not finite; check its weights.")
        numbers = vectors.detach().to("cpu", DTYPES[self.dtype]).numpy()
        state = {record.path: File(record.path) for record in records} | {file.path: file for file in files or ()}
        empty = [file for file in state.values() if file.error is not None]
        rows = [(*record, *state[record.path][1:3], None) for record in records]
        rows += [(file.path, None, None, *file[1:]) for file in empty]
        if not rows:
            return
        _, pa = _lancedb()
        kinds = _kinds(self.dims, self.dtype)
        filled = pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), self.dims)
        columns = {"vector": pa.concat_arrays([filled, pa.nulls(len(empty), kinds["vector"])])}
        rows = [(_text_of(path), *rest) for path, *rest in rows]
        for name, values in zip(COLUMNS[1:], zip(*rows, strict=True), strict=True):
            columns[name] = pa.array(values, kinds[name])
        with self._changing():
            self._table.add(pa.table(columns))

    def drop(self, paths: Sequence[str]) -> None:
        """Remove files with their records."""
        paths = [_text_of(path).replace("'", "''") for path in paths]
        for first in range(0, len(paths), NAMES_AT_ONCE):
            names = ", ".join(f"'{path}'" for path in paths[first : first + NAMES_AT_ONCE])
            with self._changing():
                self._table.delete(f"path IN ({names})")

    def describe(self, columns: Any) -> None:
        """Write further columns into the rows of files; those of files that it does not name stay.

        Args:
            columns: a ``pyarrow.Table`` with ``path``, as in the records and each once, and the columns to write.

        Raises:
            ZooError: a column is there with another type.
        """
        _, pa = _lancedb()
        there = self._table.schema
        for field in columns.schema:
            if field.name in there.names and there.field(field.name).type != field.type:
                raise ZooError(f"The column {field.name} is {there.field(field.name).type} in {self.folder} and "
                               f"{field.type} in the new list; write it in the same way.")  # fmt: skip
        new = [field for field in columns.schema if field.name not in there.names]
        texts = pa.array([_text_of(path) for path in columns.column("path").to_pylist()], pa.string())
        columns = columns.set_column(columns.schema.get_field_index("path"), "path", texts)
        with self._changing():
            if new:
                self._table.add_columns(pa.schema(new))
            self._table.merge_insert("path").when_matched_update_all().execute(columns)

    def search(
        self, queries: Tensor, topk: int = 10, *, where: str | None = None, exact: bool = False
    ) -> list[list[Hit]]:
        """Return the records with the largest scores, best first; equal ones by path and time.

        Up to `APPROXIMATE_ROWS` rows, and where no approximate index was built, the answer depends on the records and
        their vectors alone, to the last bit: sums in float64 rank the candidates.

        Args:
            queries: (Q, dims), of unit length, on any device.
            topk: how many; all where there are fewer.
            where: a condition in SQL on the columns of the table; only such records are found.
            exact: compare all records, however many there are.

        Raises:
            ZooError: other dims, numbers that are not finite, a wrong condition, or a damaged table.
        """
        if not topk >= 1:
            raise ZooError(f"topk is {topk}; ask for at least one.")
        if queries.ndim != 2 or queries.shape[1] != self.dims:
            raise ZooError(f"The index has vectors of {self.dims} numbers and the queries are {tuple(queries.shape)}; "
                           "make them with the model of the index.")  # fmt: skip
        queries = queries.detach().to("cpu", torch.float32)
        if not queries.isfinite().all():
            raise ZooError("A query has numbers that are not finite; check the weights of the model.")
        with self._asked(where):
            approximate = not exact and self._table.count_rows() > APPROXIMATE_ROWS and self._is_indexed()
            return [self._nearest(query, topk, where, approximate) for query in queries.numpy()]

    def optimise(self, *, rebuild: bool = False) -> None:
        """Join the files of many small commits, remove old versions, and build the approximate index where the table
        has more than `APPROXIMATE_ROWS` rows; one that is there learns the new rows.

        Args:
            rebuild: make the approximate index anew, which suits the rows better when many have come or gone.
        """
        _lancedb()
        from lancedb.index import IvfRq

        with self._changing(), warnings.catch_warnings():
            self._table.optimize(cleanup_older_than=KEPT)
            if len(self) > APPROXIMATE_ROWS and (rebuild or not self._is_indexed()):
                self._table.create_index("vector", config=IvfRq(distance_type="dot", num_bits=BITS), replace=True)

    def optimise_if_many(self) -> None:
        """Join the files of small commits where there are many."""
        if self._table.stats()["fragment_stats"]["num_fragments"] >= MANY_COMMITS:
            self.optimise()

    @contextmanager
    def locked(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold a lock of the index while the block runs; the system lets go of it when the process dies.

        Args:
            name: other names exclude nothing.
            wait: until its holder lets go; otherwise the block runs at once, and is told whether it has the lock.
        """
        try:
            import fcntl
        except ImportError:  # Windows: one process at a time, then
            fcntl = None
        if fcntl is None or is_url(self.folder):  # object stores refuse the second of two commits by themselves
            yield True
            return
        with open(Path(self.folder, f".{name}.lock"), "a") as file:
            held = True
            try:
                # Unlike flock's, these locks do not pass to the processes that a loader starts.
                fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except (BlockingIOError, PermissionError):
                held = False
            yield held

    def _nearest(self, query: np.ndarray, topk: int, where: str | None, approximate: bool) -> list[Hit]:
        # Bounds of the rounding errors of products with a unit vector; the query is rounded to the table's type too.
        rounding = self.dims * np.finfo(np.float32).eps + (np.finfo(np.float16).eps if self.dtype == "float16" else 0)
        margin, limit = 2 * rounding * float(np.linalg.norm(query)), topk + SLACK
        while True:
            asked = self._table.search(query, vector_column_name="vector").distance_type("dot").limit(limit)
            asked = asked.nprobes(PROBES).refine_factor(REFINE) if approximate else asked.bypass_vector_index()
            if where is not None:
                asked = asked.where(f"({where})", prefilter=True)  # in brackets, nothing may follow it
            rows = asked.select(["vector", "path", "start", "end", "_distance"]).to_arrow()
            distances = rows.column("_distance").to_numpy()
            if not np.isfinite(distances).all():
                raise ZooError(f"{self.folder} has vectors that are not finite; make the index again.")
            if approximate or len(distances) < limit or distances[-1] > distances[topk - 1] + 2 * margin:
                break
            limit *= 4  # many are nearly equal
        # One row at a time, in float64: the sums of a matrix product depend on the shape of its operands.
        products = (row.astype(np.float64) * query.astype(np.float64) for row in self._vectors(rows))
        scores = [float(product.sum()) for product in products]
        columns = (rows.column(name).to_pylist() for name in ("path", "start", "end"))
        hits = [Hit(_path_of(path), *rest) for path, *rest in zip(*columns, scores, strict=True)]
        return sorted(hits, key=lambda hit: (-hit.score, *hit))[:topk]

    def _vectors(self, rows: Any) -> np.ndarray:
        """Vectors (N, dims) of rows without nulls."""
        column = rows.column("vector")
        parts = column.chunks if hasattr(column, "chunks") else [column]
        arrays = [part.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.dims) for part in parts if len(part)]
        kind = np.float32 if self.dtype == "float32" else np.float16
        return np.concatenate(arrays) if arrays else np.empty((0, self.dims), kind)

    def _rows(self, columns: list[str], where: str | None = None) -> Iterator[Any]:
        with _told(self.folder, "read", "make the index again"):
            asked = self._table.search().select(columns).limit(max(self._table.count_rows(), 1))
            yield from (asked if where is None else asked.where(where)).to_batches()

    def _is_indexed(self) -> bool:
        return any("vector" in index.columns for index in self._table.list_indices())

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One commit, on top of what others have committed."""
        with self.locked("commit"), _told(self.folder):
            self._table.checkout_latest()
            yield

    @contextmanager
    def _asked(self, where: str | None) -> Iterator[None]:
        if where is None:
            told = _told(self.folder, "searched", "make the index again")
        else:
            columns = ", ".join(self._table.schema.names)
            told = _told(f"The condition {where!r}", "applied", f"the columns are {columns}")
        with told:
            yield


def _refuse_former(folder: str) -> None:
    if not is_url(folder) and Path(folder, OLD_HEAD).is_file():
        raise ZooError(f"{folder} is an index of the former format; convert it: zoo index --convert {folder} -o NEW.")


def _refuse_other(folder: str) -> None:
    """Refuse folders that hold something else than what a killed process left of an index."""
    _refuse_former(folder)
    path = Path(folder)
    allowed = {f"{TABLE}.lance"}
    if path.exists() and (
        not path.is_dir() or any(n.name not in allowed and not n.name.startswith(".") for n in path.iterdir())
    ):
        raise ZooError(f"{folder} exists and is no index of videos; choose another name.")
    with _told(folder):
        path.mkdir(parents=True, exist_ok=True)


def _checked_head(folder: str, schema: Any) -> dict:
    try:
        head = json.loads((schema.metadata or {})[KEY])
        dims, dtype = head["dims"], head["dtype"]
        if (head["format"], head["version"]) != (FORMAT, VERSION) or type(dims) is not int or dtype not in [*DTYPES]:
            raise ValueError
        kinds = _kinds(dims, dtype) if 1 <= dims <= MOST_DIMS else {}
        if any(schema.field(name).type != kinds.get(name) for name in COLUMNS):
            raise ValueError
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ZooError(f"{folder} is a database of another kind, or an index of another version; make the index "
                       "again in another folder.") from error  # fmt: skip
    return head


def _kinds(dims: int, dtype: str) -> dict[str, Any]:
    """Types of the columns."""
    _, pa = _lancedb()
    vector = pa.list_(pa.float32() if dtype == "float32" else pa.float16(), dims)
    kinds = (vector, pa.string(), pa.float64(), pa.float64(), pa.int64(), pa.int64(), pa.string())
    return dict(zip(COLUMNS, kinds, strict=True))


def check_place(folder: str) -> None:
    """Refuse, before any work, to index into a URL of no store, and without LanceDB, which is not yet imported here.

    Raises:
        ZooError: see above.
    """
    if importlib.util.find_spec("lancedb") is None:
        raise ZooError(_MISSING)
    if is_url(folder) and folder.partition("://")[0] not in STORES:
        raise ZooError(f"{folder} is no place for an index; name a local folder, or a URL of "
                       f"{', '.join(f'{store}://' for store in STORES)}.")  # fmt: skip


_MISSING = "An index needs LanceDB; install it: pip install 'video-mamba-zoo[search]'."


def _lancedb() -> tuple[Any, Any]:
    try:
        import lancedb
        import pyarrow
    except ImportError as error:
        if importlib.util.find_spec("lancedb") is None:
            raise ZooError(_MISSING) from error
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ZooError(f"LanceDB cannot be imported ({reason}); install what it needs, or update it: "
                       "pip install -U lancedb pyarrow numpy.") from error  # fmt: skip
    return lancedb, pyarrow


@contextmanager
def _told(
    place: str, what: str = "written", remedy: str = "make room on that disk, or write to another place"
) -> Iterator[None]:
    """Make one sentence of what LanceDB raises, which has no types of its own."""
    try:
        yield
    except ZooError:
        raise
    except (RuntimeError, OSError, ValueError) as error:
        reason = _reason(error)
        raise ZooError(f"{place} cannot be {what} ({reason}); {remedy}.") from error


_STORES_SAY = {
    r"<Message>([^<]+)</Message>": r"\1",  # what the store answered
    r'\b(?:message|error): "([^"]+)"': r"\1",  # what the network or the system did
    r"\bBadScheme\b": "plain HTTP is allowed only where the environment has AWS_ALLOW_HTTP=true",
    r"(Failed to get \w+ credentials)": r"\1",
}
"""Causes in the middle of the 1000 characters that LanceDB says when it cannot reach a store."""


def _reason(error: Exception) -> str:
    """The cause alone, without the places in LanceDB's sources that it adds."""
    text = " ".join(str(error).split())
    for pattern, cause in _STORES_SAY.items():
        if found := re.search(pattern, text):
            return found.expand(cause)
    for end in (", /", " Caused by", " Backtrace"):
        text = text.partition(end)[0]
    return text[:300].rstrip(". ")


# Names of files are bytes, the table's texts are Unicode: a byte 128 to 255 that is not valid UTF-8 stands as one
# of the private characters U+EF80 to U+EFFF. Where a name has those itself, its bytes are written that way too.
_BYTES = 0xEF00


def _text_of(path: str) -> str:
    if path.isascii():
        return path
    return "".join(_private(char) for char in path)


def _private(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return chr(code - 0xDC00 + _BYTES)
    if _BYTES + 0x80 <= code <= _BYTES + 0xFF:
        return "".join(chr(_BYTES + byte) for byte in char.encode())
    return char


def _path_of(text: str) -> str:
    if text.isascii():
        return text
    code = (ord(char) for char in text)
    raw = "".join(chr(c - _BYTES + 0xDC00) if _BYTES + 0x80 <= c <= _BYTES + 0xFF else chr(c) for c in code)
    return raw.encode(errors="surrogateescape").decode(errors="surrogateescape")
