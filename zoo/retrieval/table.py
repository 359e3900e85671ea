"""Vectors of videos in a table of a LanceDB database, and the nearest ones to a query.

    index = Index.create("my.index", dims=512)
    index.add([Record("a.mp4", 0.0, 12.5), Record("b.mp4", 0.0, 8.0)], vectors)     # unit vectors (2, 512)
    hits = Index.open("my.index").search(queries, topk=10)                           # (Q, 512) -> Q lists of Hit

The table is described in docs/video_search.md. Nothing in here knows models or decodes videos.
"""

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.storage.files import is_url
from zoo.errors import ZooError
from zoo.tables.table import (
    ABOUT,
    KEPT,
    KEY,
    File,
    Record,
    VideoTable,
    Where,
    lancedb_modules,
    path_of,
    retold,
    text_of,
)

if TYPE_CHECKING:
    import lancedb
    import pyarrow

__all__ = ["APPROXIMATE_ROWS", "COLUMNS", "DTYPES", "OLD_FORMAT", "OLD_HEAD", "Hit", "Index"]

FORMAT, VERSION = "video-mamba-zoo index", 2
OLD_FORMAT, OLD_HEAD = "video-mamba-zoo index", "index.json"
TABLE = "videos"
COLUMNS = ("vector", *ABOUT)
DTYPES = {"float32": torch.float32, "float16": torch.float16}
MOST_DIMS = 2**16

APPROXIMATE_ROWS = 100_000
"""Search is exact up to so many rows, which takes milliseconds, and above until an approximate index is built."""
BITS, PROBES, REFINE = 4, 100, 5
"""Bits of a number in the approximate index, partitions that are looked at, and how many times more rows than asked for
are compared exactly."""

ROWS_AT_ONCE = 8192
"""Rows that an exact search multiplies with all queries at once."""
SHOWN = ("vector", "path", "start", "end")
"""Columns of which hits are made."""


class Hit(NamedTuple):
    """A found record; ``score`` is the product of its vector and the query's, for unit vectors the cosine."""

    path: str
    start: float
    end: float
    score: float


class Index(VideoTable):
    """An index; made by `create` or `open`.

    Attributes:
        folder: where it is, a local path or a URL.
        dims: numbers of a vector.
        dtype: "float32" or "float16", of the vectors in the table; scores are float64.
        settings: further plain values kept with the table, such as the model.
    """

    own = ("vector",)

    def __init__(self, where: Where, table: "lancedb.table.Table", head: Mapping[str, Any]) -> None:
        known = ("format", "version", "dims", "dtype")
        super().__init__(where, table, {key: value for key, value in head.items() if key not in known})
        self.folder, self.dims, self.dtype = where.database, head["dims"], head["dtype"]

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        dims: int,
        dtype: str = "float32",
        settings: Mapping[str, Any] | None = None,
    ) -> Self:
        """Make an empty index.

        Raises:
            ZooError: the folder is not empty, or cannot be written.
        """
        folder = os.fspath(folder)
        if dtype not in DTYPES or not 1 <= dims <= MOST_DIMS:
            raise ZooError(f"An index of {dims} {dtype} numbers a vector cannot be made; choose {' or '.join(DTYPES)}.")
        if not is_url(folder):
            _refuse_other(folder)
        head = {"format": FORMAT, "version": VERSION, "dims": dims, "dtype": dtype, **(settings or {})}
        return cls.make(_where(folder), _kinds(dims, dtype), head)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Self:
        """Open an index.

        Raises:
            ZooError: there is none, one of another format, or LanceDB is not installed.
        """
        folder = os.fspath(folder)
        if not cls.exists(folder):
            _refuse_former(folder)
            raise ZooError(f"{folder} is no index of videos; make one: zoo index MODEL VIDEOS -o {folder}.")
        lancedb, _ = lancedb_modules()
        with retold(folder, "read as an index", "make the index again"):
            table = lancedb.connect(folder).open_table(TABLE)
            schema = table.schema
        return cls(_where(folder), table, _checked_head(folder, schema))

    @staticmethod
    def exists(folder: str | os.PathLike[str]) -> bool:
        """Whether there is a table of that name, with at least one complete version."""
        return _where(os.fspath(folder)).exists()

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
            rows: int = self._table.count_rows(condition)
        return rows

    def records(self) -> Iterator[tuple[Record, Tensor]]:
        """Yield all records with their vectors (dims,), in no particular order."""
        for rows in self._rows(["vector", "path", "start", "end"], "vector IS NOT NULL"):
            vectors = torch.from_numpy(self._vectors(rows))
            columns = (rows.column(name).to_pylist() for name in ("path", "start", "end"))
            for path, start, end, vector in zip(*columns, vectors, strict=True):
                yield Record(path_of(path), start, end), vector

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
        numbers = vectors.detach().to("cpu", DTYPES[self.dtype]).numpy()
        self.append([(record, (vector,)) for record, vector in zip(records, numbers, strict=True)], files)

    def describe(self, columns: "pyarrow.Table") -> None:
        """Write further columns into the rows of files; those of files that it does not name stay.

        Args:
            columns: a ``pyarrow.Table`` with ``path``, as in the records and each once, and the columns to write.

        Raises:
            ZooError: a column is there with another type.
        """
        _, pa = lancedb_modules()
        there = self._table.schema
        for field in columns.schema:
            if field.name in there.names and there.field(field.name).type != field.type:
                raise ZooError(f"The column {field.name} is {there.field(field.name).type} in {self.folder} and "
                               f"{field.type} in the new list; write it in the same way.")  # fmt: skip
        new = [field for field in columns.schema if field.name not in there.names]
        texts = pa.array([text_of(path) for path in columns.column("path").to_pylist()], pa.string())
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
            find = self._near if approximate else self._nearest
            return list(self._ranked(*find(queries.numpy(), topk, where), queries.numpy(), topk))

    def optimise(self, *, rebuild: bool = False) -> None:
        """Join the files of many small commits, and remove old versions.

        Where the table has more than `APPROXIMATE_ROWS` rows, also build the approximate index; one that is there
        learns the new rows.

        Args:
            rebuild: make the approximate index anew, which suits the rows better when many have come or gone.
        """
        lancedb_modules()
        from lancedb.index import IvfRq

        with self._changing(), warnings.catch_warnings():
            self._table.optimize(cleanup_older_than=KEPT)
            if len(self) > APPROXIMATE_ROWS and (rebuild or not self._is_indexed()):
                self._table.create_index("vector", config=IvfRq(distance_type="dot", num_bits=BITS), replace=True)

    def _nearest(
        self, queries: NDArray[np.float32], topk: int, where: str | None
    ) -> "tuple[pyarrow.Table, list[NDArray[np.intp]]]":
        """Compare all rows with all queries, a block of rows at a time.

        Returns:
            Rows, and for each query (Q) the numbers of those that may be among its best: products in float32 may have
            rounded any of them down.
        """
        asked = self._table.search().where("vector IS NOT NULL" + ("" if where is None else f" AND ({where})"))
        asked = asked.select(["vector"]).with_row_id(True).limit(max(self._table.count_rows(), 1))
        # Twice the bound of the rounding error of a product with a unit vector, for either of two products.
        margins = 4 * self.dims * np.finfo(np.float32).eps * np.linalg.norm(queries, axis=1)
        floors = np.full(len(queries), -np.inf, np.float32)
        empty = np.empty(0, np.float32), np.empty(0, np.uint64)
        kept = [empty] * len(queries)
        for rows in asked.to_batches(batch_size=ROWS_AT_ONCE):
            vectors, ids = self._vectors(rows).astype(np.float32, copy=False), rows.column("_rowid").to_numpy()
            # NumPy's: torch may be told to multiply in bfloat16, whose rounding the margins do not cover.
            scores = queries @ vectors.T
            if not np.isfinite(scores).all():
                raise ZooError(f"{self.folder} has vectors that are not finite; make the index again.")
            above = scores >= floors[:, None]
            for query in np.flatnonzero(above.any(1)):
                mine = np.append(kept[query][0], scores[query, above[query]])
                named = np.append(kept[query][1], ids[above[query]])
                if len(mine) > topk:
                    floors[query] = np.partition(mine, -topk)[-topk] - margins[query]
                    mine, named = mine[mine >= floors[query]], named[mine >= floors[query]]
                kept[query] = mine, named
        wanted = np.unique(np.concatenate([named for _, named in kept]))
        rows = self._table.take_row_ids(wanted.tolist()).select(list(SHOWN)).with_row_id().to_arrow()
        ids = rows.column("_rowid").to_numpy()
        order = ids.argsort()
        return rows, [order[np.searchsorted(ids, named, sorter=order)] for _, named in kept]

    def _near(
        self, queries: NDArray[np.float32], topk: int, where: str | None
    ) -> "tuple[pyarrow.Table, list[NDArray[np.intp]]]":
        """Look queries up in the approximate index, all of them at once; see `_nearest`."""
        asked = self._table.search(list(queries) if len(queries) > 1 else queries[0], vector_column_name="vector")
        asked = asked.distance_type("dot")  # type: ignore[attr-defined]  # LanceDB declares what every search has
        asked = asked.limit(topk).nprobes(PROBES).refine_factor(REFINE)
        if where is not None:
            asked = asked.where(f"({where})", prefilter=True)  # in brackets, nothing may follow it
            asked = asked.maximum_nprobes(0)  # no limit: the rows that it leaves may lie in any partition
        rows = asked.select([*SHOWN, "_distance"]).to_arrow()
        of = rows.column("query_index").to_numpy() if len(queries) > 1 else np.zeros(len(rows), int)
        return rows, [np.flatnonzero(of == query) for query in range(len(queries))]

    def _ranked(
        self, rows: "pyarrow.Table", chosen: list[NDArray[np.intp]], queries: NDArray[np.float32], topk: int
    ) -> Iterator[list[Hit]]:
        vectors = self._vectors(rows)
        records = list(zip(*(rows.column(name).to_pylist() for name in SHOWN[1:]), strict=True))
        for numbers, query in zip(chosen, queries.astype(np.float64), strict=True):
            # One row at a time, in float64: the sums of a matrix product depend on the shape of its operands.
            scores = (float((vectors[number].astype(np.float64) * query).sum()) for number in numbers)
            found = [(records[number], score) for number, score in zip(numbers, scores, strict=True)]
            hits = [Hit(path_of(path), start, end, score) for (path, start, end), score in found]
            yield sorted(hits, key=lambda hit: (-hit.score, *hit))[:topk]

    def _vectors(self, rows: "pyarrow.Table | pyarrow.RecordBatch") -> NDArray[np.floating[Any]]:
        """Vectors (N, dims) of rows without nulls."""
        column = rows.column("vector")
        parts = column.chunks if hasattr(column, "chunks") else [column]
        arrays = [part.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.dims) for part in parts if len(part)]
        return np.concatenate(arrays) if arrays else np.empty((0, self.dims), self.dtype)

    def _is_indexed(self) -> bool:
        return any("vector" in index.columns for index in self._table.list_indices())

    @contextmanager
    def _asked(self, where: str | None) -> Iterator[None]:
        if where is None:
            told = retold(self.folder, "searched", "make the index again")
        else:
            columns = ", ".join(self._table.schema.names)
            told = retold(f"The condition {where!r}", "applied", f"the columns are {columns}")
        with told:
            yield


def _where(folder: str) -> Where:
    return Where(folder, TABLE, folder, folder)


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
    with retold(folder):
        path.mkdir(parents=True, exist_ok=True)


def _checked_head(folder: str, schema: "pyarrow.Schema") -> dict[str, Any]:
    try:
        head: dict[str, Any] = json.loads((schema.metadata or {})[KEY])
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
    _, pa = lancedb_modules()
    vector = pa.list_(pa.float32() if dtype == "float32" else pa.float16(), dims)
    kinds = (vector, pa.string(), pa.float64(), pa.float64(), pa.int64(), pa.int64(), pa.string())
    return dict(zip(COLUMNS, kinds, strict=True))
