"""A table of a LanceDB database with rows about videos.

A change is one commit: it is there or not, wherever a process is killed. Those of several processes come one after
the other, under a lock, since file systems over a network lose commits that are made at once.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from datamodules.storage.files import is_url
from datamodules.storage.processes import lock
from zoo.errors import ZooError
from zoo.extras import need

if TYPE_CHECKING:
    import lancedb
    import pyarrow

__all__ = ["ABOUT", "KEY", "STORES", "File", "Record", "VideoTable", "Where", "check_place", "lancedb_modules",
           "head_of", "path_of", "retold", "text_of"]  # fmt: skip

KEY = b"video-mamba-zoo"
"""Where the table's metadata has its head, a JSON object."""
ABOUT = ("path", "start", "end", "size", "mtime", "error")
"""Columns that every such table has."""
STORES = ("s3", "gs", "az", "hf")
"""Where a table may lie, besides local folders."""
MANY_COMMITS = 256
"""So many become one file again while videos are being read."""
KEPT = timedelta(hours=1)
"""Former versions of the table stay so long: a search that has begun reads the version it opened."""
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


class Where(NamedTuple):
    """Where a table is.

    Attributes:
        database: folder or URL of the LanceDB database.
        name: of the table in it.
        shown: what messages call it.
        locks: folder of its locks.
    """

    database: str
    name: str
    shown: str
    locks: str

    def exists(self) -> bool:
        """Whether there is a table of that name, with at least one complete version."""
        if not is_url(self.database):
            try:
                return any(Path(self.database, f"{self.name}.lance", "_versions").glob("*.manifest"))
            except (OSError, ValueError) as error:
                raise ZooError(f"{self.shown} cannot be read ({error}); name another place.") from error
        check_place(self.shown)
        lancedb, _ = lancedb_modules()
        with retold(self.shown, "read", "check the address and your access"):
            return self.name in lancedb.connect(self.database).list_tables().tables


class VideoTable:
    """Rows about videos, with plain values as settings, such as the model; made by `make` or `read`."""

    def __init__(self, where: Where, table: "lancedb.table.Table", settings: Mapping[str, Any]) -> None:
        self.where, self._table, self.settings = where, table, dict(settings)

    @classmethod
    def make(cls, where: Where, columns: Mapping[str, Any], settings: Mapping[str, Any]) -> Self:
        """Make an empty table in one commit, of columns with types of PyArrow, and with settings as its head.

        Raises:
            ZooError: it cannot be written.
        """
        lancedb, pa = lancedb_modules()
        schema = pa.schema(list(columns.items()), {KEY: json.dumps(settings)})
        with retold(where.shown):
            table = lancedb.connect(where.database).create_table(where.name, schema=schema)
        return cls(where, table, settings)

    @classmethod
    def read(cls, where: Where) -> Self:
        """Open a table that is there.

        Raises:
            ZooError: it is not one of ours, or LanceDB is not installed.
        """
        lancedb, _ = lancedb_modules()
        with retold(where.shown, "read as a table", "make it again"):
            table = lancedb.connect(where.database).open_table(where.name)
            schema = table.schema
        return cls(where, table, head_of(schema, where.shown))

    @property
    def own(self) -> Sequence[str]:
        """Names of the columns beside those of `ABOUT`."""
        names: list[str] = self.settings["columns"]
        return names

    def count_rows(self) -> int:
        """Number of rows, those about files that could not be read included."""
        with retold(self.where.shown, "read", "make it again"):
            rows: int = self._table.count_rows()
        return rows

    @property
    def files(self) -> dict[str, File]:
        """All files by path, those that could not be read included."""
        found = {}
        for rows in self._rows(["path", "size", "mtime", "error"]):
            columns = (rows.column(name).to_pylist() for name in ("path", "size", "mtime", "error"))
            for path, *state in zip(*columns, strict=True):
                path = path_of(path)
                found[path] = File(path, *state)
        return found

    def append(self, rows: Sequence[tuple[Record, tuple[Any, ...]]], files: Sequence[File] | None = None) -> None:
        """Append rows in one commit.

        Args:
            rows: all of the files, each with the values of the table's own columns in their order.
            files: those of the rows, and any that could not be read, which become a row with the error alone; None
                makes them from the rows.

        Raises:
            ZooError: numbers of a vector are not finite, or the table cannot be written.
        """
        state = {record.path: File(record.path) for record, _ in rows} | {file.path: file for file in files or ()}
        empty = [file for file in state.values() if file.error is not None]
        if not rows and not empty:
            return
        _, pa = lancedb_modules()
        schema = self._table.schema
        about: list[tuple[Any, ...]] = [
            (text_of(record.path), *record[1:], *state[record.path][1:3], None) for record, _ in rows
        ]
        about += [(text_of(file.path), None, None, *file[1:]) for file in empty]
        values = dict(zip(ABOUT, zip(*about, strict=True), strict=True))
        columns = {name: pa.array(values[name], schema.field(name).type) for name in ABOUT}
        for place, name in enumerate(self.own):  # those that a user added stay empty
            kind = schema.field(name).type
            filled = _array([value[place] for _, value in rows], kind, [record.path for record, _ in rows])
            columns[name] = pa.concat_arrays([filled, pa.nulls(len(empty), kind)])
        self.append_rows(pa.table(columns))

    def append_rows(self, rows: "pyarrow.Table") -> None:
        """Append a ``pyarrow.Table`` of the table's columns in one commit."""
        with self._changing():
            self._table.add(rows)

    def drop(self, paths: Sequence[str]) -> None:
        """Remove files with their rows."""
        paths = [text_of(path).replace("'", "''") for path in paths]
        for first in range(0, len(paths), NAMES_AT_ONCE):
            names = ", ".join(f"'{path}'" for path in paths[first : first + NAMES_AT_ONCE])
            with self._changing():
                self._table.delete(f"path IN ({names})")

    def to_arrow(self) -> "pyarrow.Table":
        """All rows as a ``pyarrow.Table``, with the head in its metadata, sorted by path and time."""
        with retold(self.where.shown, "read", "make it again"):
            rows = self._table.to_arrow()
        return rows.sort_by([(name, "ascending") for name in ("path", "start", "end")])

    def optimise(self) -> None:
        """Join the files of many small commits, and remove old versions."""
        with self._changing():
            self._table.optimize(cleanup_older_than=KEPT)

    def optimise_if_many(self) -> None:
        """Join the files of small commits where there are many."""
        stats: Any = self._table.stats()  # a dict, whatever LanceDB declares
        if stats["fragment_stats"]["num_fragments"] >= MANY_COMMITS:
            self.optimise()

    @contextmanager
    def locked(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold a lock of the table while the block runs; the system lets go of it when the process dies.

        Args:
            name: other names exclude nothing.
            wait: until its holder lets go; otherwise the block runs at once, and is told whether it has the lock.
        """
        if is_url(self.where.locks):  # object stores refuse the second of two commits by themselves
            yield True
            return
        with open(Path(self.where.locks, f".{name}.lock"), "ab") as file:
            yield lock(file, wait=wait, inherited=False)  # not by the processes that a loader starts

    def _rows(self, columns: list[str], where: str | None = None) -> "Iterator[pyarrow.RecordBatch]":
        with retold(self.where.shown, "read", "make it again"):
            asked = self._table.search().select(columns).limit(max(self._table.count_rows(), 1))
            yield from (asked if where is None else asked.where(where)).to_batches()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One commit, on top of what others have committed."""
        with self.locked("commit"), retold(self.where.shown):
            self._table.checkout_latest()  # type: ignore[no-untyped-call]  # LanceDB has no annotation there
            yield


def head_of(schema: "pyarrow.Schema", shown: str) -> dict[str, Any]:
    """The head of a table or of a Parquet file of ours; raise `ZooError` where it has none."""
    try:
        head: dict[str, Any] = json.loads((schema.metadata or {})[KEY])
        if not isinstance(head, dict) or any(name not in schema.names for name in ABOUT):
            raise ValueError
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ZooError(f"{shown} is a table of another kind; choose another name.") from error
    return head


def _array(values: list[Any], kind: "pyarrow.DataType", paths: list[str]) -> "pyarrow.Array":
    """Values of a column; those of a column of vectors are arrays of NumPy."""
    _, pa = lancedb_modules()
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(values, kind)
    numbers = np.stack(values) if values else np.empty((0, kind.list_size))
    finite = np.isfinite(numbers).all(1)
    if not finite.all():
        path = paths[int(np.flatnonzero(~finite)[0])]
        raise ZooError(f"The model's vector for {path} has numbers that are not finite; check its weights.")
    numbers = numbers.astype(kind.value_type.to_pandas_dtype())
    return pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), kind.list_size)


def check_place(folder: str) -> None:
    """Raise `ZooError`, before any work, at a URL of no store, or without LanceDB, which is not yet imported here."""
    need(*_LANCEDB)
    if is_url(folder) and folder.partition("://")[0] not in STORES:
        raise ZooError(f"{folder} is no place for a table; name a local folder, or a URL of "
                       f"{', '.join(f'{store}://' for store in STORES)}.")  # fmt: skip


_LANCEDB = ("lancedb", "search", "A table of videos needs LanceDB")


def lancedb_modules() -> tuple[Any, Any]:
    """``lancedb`` and ``pyarrow``; raise `ZooError` where they cannot be imported."""
    need(*_LANCEDB)
    try:
        import lancedb
        import pyarrow
    except ImportError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ZooError(f"LanceDB cannot be imported ({reason}); install what it needs, or update it: "
                       "pip install -U lancedb pyarrow numpy.") from error  # fmt: skip
    return lancedb, pyarrow


@contextmanager
def retold(
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
_AS_BYTES = {0xEF00 + byte: 0xDC00 + byte for byte in range(0x80, 0x100)}
_AS_TEXT = {byte: chr(private) for private, byte in _AS_BYTES.items()}
_AS_TEXT |= {private: "".join(chr(0xEF00 + byte) for byte in chr(private).encode()) for private in _AS_BYTES}


def text_of(path: str) -> str:
    """The text that stands for a path in a table."""
    return path.translate(_AS_TEXT)


def path_of(text: str) -> str:
    """The path that a text in a table stands for."""
    if text.isascii():
        return text
    return text.translate(_AS_BYTES).encode(errors="surrogateescape").decode(errors="surrogateescape")
