"""The table that `zoo extract` and `zoo predict -o` write: OUT.lance, or OUT.parquet.

A Parquet file cannot grow, and one that a killed process has begun cannot be read. Rows are therefore always committed
to a Lance table. For OUT.parquet that is a hidden folder beside it, `.OUT.parquet.unfinished`; when all is done, the
file is written from it under another name, takes its place in one step, and the folder goes. OUT.parquet is always
whole: that of the last run that was completed.

    OUT.parquet (run before)  ->  .OUT.parquet.unfinished/  += rows, commit by commit  ->  OUT.parquet
"""

import glob
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from datamodules.storage.files import is_url, split
from zoo.errors import ZooError
from zoo.files import UNFINISHED, check_folder, check_target, written
from zoo.tables.fill import check_config, check_settings, check_weights, describe, source_of
from zoo.tables.job import Job
from zoo.tables.parquet import read_parquet, write_parquet
from zoo.tables.place import Place, absolute
from zoo.tables.table import VideoTable, Where, check_place, head_of, lancedb_modules, retold

if TYPE_CHECKING:
    import pyarrow

__all__ = ["ENDINGS", "Output", "check_output"]

ENDINGS = (".parquet", ".lance")
VERSION = 1
_NAME = "videos"
_BEGUN = {"data", "_transactions", "_versions"}
_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")


def check_output(out: str | os.PathLike[str], shard: tuple[int, int] = (1, 1)) -> str:
    """Return the path or URL of a table that can be written by this process's share of all, before any work.

    Raises:
        ZooError: another ending, a place that cannot be written, or LanceDB is not installed.
    """
    if not os.fspath(out).lower().endswith(ENDINGS):
        raise ZooError(f"{out} has none of the endings {', '.join(ENDINGS)}; name a table with one of them.")
    out = absolute(out)
    if out.endswith(".parquet"):
        if is_url(out):
            raise ZooError(f"{out} is a URL, where a Parquet file cannot grow; write a table there: .lance.")
        check_target(out, (".parquet",))
    elif not set(split(out)[1]) <= _SAFE:
        raise ZooError(f"{out} has characters that no Lance table may have in its name; use letters, digits, _ and -.")
    elif not is_url(out):
        check_folder(out)
    if shard != (1, 1) and (out.endswith(".parquet") or is_url(out)):
        raise ZooError(f"{out} is written by one process; use --ray, or write a local .lance table.")
    check_place(out)
    return out


class Output:
    """A table of a job's rows that `zoo.tables.fill.fill` writes to.

    Args:
        out: from `check_output`.
        job: whose rows these are.
        model: the job's model as it was named; the model itself or None records no name.
    """

    def __init__(self, out: str, job: Job, model: nn.Module | str | os.PathLike[str] | None) -> None:
        self.shown, self.job, self.place = out, job, Place(out)
        self.source = source_of(model, self.place)
        self.is_file = out.endswith(".parquet")
        if self.is_file:
            folder, name = os.path.split(out)
            hidden = os.path.join(folder, f".{name[:200]}{UNFINISHED}")
            self.where = Where(hidden, _NAME, out, hidden)
        else:
            folder, name = split(out)
            self.where = Where(folder, name.removesuffix(".lance"), out, out)

    def open(self) -> VideoTable:
        """See `zoo.tables.fill.Target`.

        Raises:
            ZooError: what is there was made with another model or other settings, or is no such table.
        """
        self._tidy()
        if self.where.exists():
            table = VideoTable.read(self.where)
        elif self.is_file and os.path.exists(self.shown):
            table = self._again()
        else:
            table = self._new()
        self._check(table)
        return table

    def finish(self, table: VideoTable) -> int:
        """See `zoo.tables.fill.Target`."""
        table.optimise()
        rows = table.count_rows()
        if self.is_file:
            with written(self.shown) as beside:
                write_parquet(table.to_arrow(), beside)
            # In one step, so that a killed process never leaves half a table to resume from.
            os.rename(self.where.database, f"{self.where.database}.{uuid.uuid4().hex[:8]}")
            self._tidy()
        return rows

    def _new(self) -> VideoTable:
        folder = Path(self.where.database, f"{self.where.name}.lance")
        # A process that was killed before its first commit leaves a folder without versions.
        if not is_url(self.shown) and folder.exists() and not {path.name for path in folder.iterdir()} <= _BEGUN:
            raise ZooError(f"{self.shown} exists and is no table of videos; choose another name.")
        _, pa = lancedb_modules()
        about = {"path": pa.string(), "start": pa.float64(), "end": pa.float64()}
        state = {"size": pa.int64(), "mtime": pa.int64(), "error": pa.string()}
        head = {"format": f"video-mamba-zoo {self.job.kind}", "version": VERSION, **self._head()}
        columns = {**about, **self.job.types(), **state}
        if self.is_file:
            return self._begin(columns, head)
        try:
            return VideoTable.make(self.where, columns, head)
        except ZooError:
            if not self.where.exists():
                raise
            return VideoTable.read(self.where)  # another process, with another share, was faster

    def _again(self) -> VideoTable:
        """A table with the rows of a file that an earlier run has completed."""
        from pyarrow import ArrowException

        try:
            rows = read_parquet(self.shown, self.job.types())
        except (ArrowException, OSError, ValueError) as error:
            raise ZooError(f"{self.shown} is there and cannot be read as Parquet; choose another name.") from error
        head = head_of(rows.schema, self.shown)
        return self._begin({field.name: field.type for field in rows.schema}, head, rows)

    def _begin(self, columns: dict[str, Any], head: dict[str, Any], rows: "pyarrow.Table | None" = None) -> VideoTable:
        """The hidden table, with its rows or not at all."""
        beside = f"{self.where.database}.{uuid.uuid4().hex[:8]}"
        try:
            begun = VideoTable.make(self.where._replace(database=beside, locks=beside), columns, head)
            if rows is not None:
                begun.append_rows(rows)
            with retold(self.shown):
                os.rename(beside, self.where.database)
        except BaseException:  # Ctrl-C too
            shutil.rmtree(beside, ignore_errors=True)
            raise
        return VideoTable.read(self.where)

    def _head(self) -> dict[str, Any]:
        model = {"source": self.source, **describe(self.job.model)}
        return {"columns": list(self.job.columns), "settings": dict(self.job.settings), "model": model}

    def _check(self, table: VideoTable) -> None:
        head, mine = table.settings, self._head()
        model = head.get("model")
        if (
            (head.get("format"), head.get("version")) != (f"video-mamba-zoo {self.job.kind}", VERSION)
            or not isinstance(model, dict)
            or not isinstance(head.get("settings"), dict)
            or head.get("columns") != mine["columns"]
            or not isinstance(model.get("sha256"), str)
            or not isinstance(model.get("config"), dict | None)
        ):
            raise ZooError(f"{self.shown} is a table of another kind; choose another name.")
        name = self.source or f"this {type(self.job.model).__name__}"
        check_weights(self.shown, model["sha256"], mine["model"]["sha256"], name)
        check_config(self.shown, model["config"], mine["model"]["config"])
        check_settings(self.shown, head["settings"], mine["settings"])

    def _tidy(self) -> None:
        """Remove tables that were completed, by this process or by one that was killed then."""
        folder = Path(self.where.database)
        if self.is_file:
            for old in folder.parent.glob(f"{glob.escape(folder.name)}.????????"):
                shutil.rmtree(old, ignore_errors=True)
