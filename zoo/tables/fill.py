"""Fill a table with a job's rows about videos: what is missing is listed, answered and committed.

`zoo index`, `zoo extract` and `zoo predict -o` are this function with another job. What a killed run has committed
stays; running again does only what is missing.
"""

import json
import math
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datamodules.storage.files import is_url
from hub.checkpoint import fingerprint
from zoo.errors import UnknownModelError, UnreadableVideo, ZooError
from zoo.limits import WORKERS, check_range, in_share
from zoo.printable import printable
from zoo.registry import info
from zoo.tables.job import Batch, Job, Reader, state_of
from zoo.tables.place import Place, below
from zoo.tables.ray_data import Answered, answered_on_ray, check_ray
from zoo.tables.table import File, Record, VideoTable

__all__ = ["Done", "Target", "check_config", "check_settings", "check_weights", "describe", "fill", "source_of"]

SAVE_SECONDS = 1.0
"""Time between two commits: what a killed process loses."""
WAIT_SECONDS = 1.0
"""How often a loader process that waits for its share looks whether its parent lives."""


T = TypeVar("T", bound=VideoTable)


class Target(Protocol[T]):
    """What `fill` writes to."""

    shown: str  # its name in messages
    place: Place

    def open(self) -> T:
        """The table that is there, if it was made in the same way, or a new one."""

    def finish(self, table: T) -> int:
        """Complete the table, and return how many rows it has."""


class Done(NamedTuple):
    """What `fill` did.

    Attributes:
        videos: of the listing, or of this process's share; the sum of the next three.
        read: read now.
        unreadable: could not be read, now or by an earlier run; those of earlier runs are not tried again.
        kept: were in the table already.
        dropped: removed from the table, since they are gone or have changed.
        rows: in the whole table now.
    """

    videos: int
    read: int
    unreadable: int
    kept: int
    dropped: int
    rows: int


def fill(
    job: Job,
    target: Target[T],
    listing: Sequence[str],
    roots: Sequence[str],
    *,
    num_workers: int | None = None,
    ray: str | None = None,
    shard: tuple[int, int] = (1, 1),
    on_files: Callable[[int, int], None] | None = None,
) -> Done:
    """Do what is missing in a table: `zoo.index` says which files are skipped, read again and dropped.

    Args:
        job: what is done with each video.
        target: where the rows go.
        listing: the videos, sorted.
        roots: what of the table is dropped where it is not in the listing: all below these.
        num_workers: as for `zoo.index`, and so are the rest.

    Raises:
        ZooError: another process fills the table, or it cannot be written; or Ray is missing.
    """
    check_range("num_workers", num_workers or 0, WORKERS)
    if ray is not None:
        check_ray()
    place, num, count = target.place, *shard
    mine = [path for path in listing if in_share(place.stored(path), shard)]
    # Cut before leaving out what is done: a chunk has the same files however far an earlier run came.
    size = job.reader.batch_size
    chunks = [mine[i : i + size] for i in range(0, len(mine), size)]
    workers = min(os.cpu_count() or 1, 4) if num_workers is None else num_workers
    with ExitStack() as stack:
        # Loader processes start first: LanceDB's threads would not be there after a fork.
        readers = stack.enter_context(_Readers(0 if ray is not None else min(workers, len(chunks))))
        table = target.open()
        alone = stack.enter_context(table.locked(f"shard-{num}-of-{count}", wait=False))
        if not alone or _others(table, count):
            raise ZooError(f"Another process is writing {target.shown}; let it finish, or start all of them with "
                           "--shard auto.")  # fmt: skip
        known = table.files
        done = {path for path in mine if _is_same(known.get(place.stored(path)), path)}
        gone = {path for path in known if in_share(path, shard) and below(place.found(path), roots)}
        gone |= {place.stored(path) for path in mine} & known.keys()
        gone -= {place.stored(path) for path in done}
        table.drop(sorted(gone))
        chunks = [left for chunk in chunks if (left := [path for path in chunk if path not in done])]
        broken_before = sum(known[place.stored(path)].error is not None for path in done)
        if ray is not None:
            answers = answered_on_ray(job, chunks, ray)
        else:
            answers = _answered(job, readers.read(job.reader, chunks))
        broken = _save_all(table, place, answers, job.left_out, (len(done), len(mine)), on_files)
        rows = target.finish(table)
    read, kept = len(mine) - len(done) - broken, len(done) - broken_before
    return Done(len(mine), read, broken_before + broken, kept, len(gone), rows)


def source_of(model: nn.Module | str | os.PathLike[str] | None, place: Place) -> str | None:
    """A path or name that finds a model again, as a table at some place has it; None for one that was passed."""
    if not isinstance(model, str | os.PathLike):
        return None
    name = os.fspath(model)
    local = Path(name).expanduser()
    # As for zoo.load, a registered name wins over a folder of that name.
    is_name = isinstance(model, str) and _is_registered(name)
    return name if is_name or not local.exists() else place.source(os.path.abspath(local))


def describe(model: nn.Module) -> dict[str, Any]:
    """Identify a model by its config and the SHA-256 of its weights."""
    config = json.loads(json.dumps(getattr(model, "config", None)))
    return {"config": config, "sha256": fingerprint(model.state_dict())}


def check_weights(shown: str, there: str, here: str, name: str) -> None:
    """Refuse a model with other weights, by their SHA-256, than those the table `shown` was made with."""
    if there != here:
        raise ZooError(f"{shown} was made with other weights (SHA-256 {there[:12]}...) than {name} has "
                       f"({here[:12]}...); use those, or write to another place.")  # fmt: skip


def check_config(shown: str, there: dict[str, Any] | None, here: dict[str, Any] | None) -> None:
    """Refuse a model of another class, or with other arguments, than the one a table was made with."""
    there, here = there or {}, here or {}
    if there != here:
        sides = there.get("init_args", {}), here.get("init_args", {})
        keys = [key for key in sides[0] | sides[1] if sides[0].get(key) != sides[1].get(key)]
        raise ZooError(f"{shown} was made with another {' and '.join(keys) or 'class'} of the model; write to another "
                       "place.")  # fmt: skip


def check_settings(shown: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse settings other than those that a table was made with."""
    there = {"precision": "fp32", **there}  # tables from before there was a choice
    other = [key for key, value in here.items() if there.get(key) != value]
    if other:
        old = ", ".join(f"{key} {there.get(key)}" for key in other)
        raise ZooError(f"{shown} was made with other settings ({old}); choose another name.")


class _Given(NamedTuple):
    """A batch, and which reader it is of."""

    reader: int
    batch: Batch


class _Readers:
    """Loader processes that start before they know what to read. A context manager."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._pipes = [multiprocessing.Pipe(duplex=False) for _ in range(number)]
        self._batches: Iterator[_Given] = iter(())

    def __enter__(self) -> "_Readers":
        if self.number:
            files = _Files([receiver for receiver, _ in self._pipes])
            # A fork server would stand between the two, and neither would see that the main process was killed.
            method = "fork" if sys.platform == "linux" else None
            loader = DataLoader(
                files,
                None,
                num_workers=self.number,
                collate_fn=_as_it_is,  # type: ignore[arg-type]  # without batches it gets single items
                worker_init_fn=_warn_plainly,
                multiprocessing_context=method,
            )
            with warnings.catch_warnings():
                # Where an earlier call has imported LanceDB: these processes do not use it.
                warnings.filterwarnings("ignore", "lancedb fork support")
                self._batches = iter(loader)
        return self

    def __exit__(self, *_: object) -> None:
        for number in range(self.number):  # those that still wait have nothing to do, and end
            self._send(number, (None, []))
        for connection in (end for pipe in self._pipes for end in pipe):
            connection.close()
        self._batches = iter(())  # the loader ends its processes when nothing refers to it

    def read(self, reader: Reader, chunks: list[list[str]]) -> Iterator[_Given]:
        """Yield the batches of the chunks, each read by one process."""
        if not self.number:
            for chunk in chunks:
                yield from (_Given(0, batch) for batch in reader.read(chunk))
            return
        for number in range(self.number):
            self._send(number, (reader, chunks[number :: self.number]))
        yield from self._batches

    def _send(self, number: int, share: tuple[Reader | None, list[list[str]]]) -> None:
        with suppress(OSError):  # the process is dead, which the loader tells
            self._pipes[number][1].send(share)


class _Files(IterableDataset[_Given]):
    """Batches of what comes through a pipe, one for each loader process."""

    def __init__(self, pipes: list[Connection]) -> None:
        self.pipes, self.parent = pipes, os.getpid()

    def __iter__(self) -> Iterator[_Given]:
        worker = get_worker_info()
        assert worker is not None  # it is made for loader processes
        number = worker.id
        # Other loader processes hold the writing ends too, so the end of the parent is not the end of the pipe.
        while not self.pipes[number].poll(WAIT_SECONDS):
            if os.getppid() != self.parent:
                return
        reader, chunks = self.pipes[number].recv()
        for chunk in chunks:
            yield from (_Given(number, batch) for batch in reader.read(chunk))


def _answered(job: Job, batches: Iterable[_Given]) -> Iterator[Answered]:
    for reader, batch in batches:
        values = [] if batch.video is None else job.answer(batch.video)
        yield Answered(reader, list(zip(batch.records, values, strict=True)), batch.files, batch.is_last)


def _save_all(
    table: VideoTable,
    place: Place,
    answers: Iterable[Answered],
    left_out: str,
    progress: tuple[int, int],
    on_files: Callable[[int, int], None] | None,
) -> int:
    """Write what comes into the table; return the number of unreadable files."""
    done, total = progress
    report = on_files or (lambda done, total: None)
    report(done, total)
    unreadable, saved_at = 0, -math.inf
    # The answers of several readers come in turns.
    begun: dict[int, _Unsaved] = {}
    whole = _Unsaved([], [])
    for reader, rows, files, is_last in answers:
        mine = begun.setdefault(reader, _Unsaved([], []))
        mine.rows.extend(rows)
        mine.files.extend(files)
        if is_last:  # of a file that turned out to be damaged on the way, nothing but that is saved
            del begun[reader]
            broken = {file.path for file in mine.files if file.error is not None}
            whole.rows.extend(row for row in mine.rows if row[0].path not in broken)
            whole.files.extend(mine.files)
        if whole.files and time.monotonic() - saved_at >= SAVE_SECONDS:
            whole = _save(table, place, whole)
            saved_at = time.monotonic()
        for file in files:
            if file.error is not None:
                unreadable += 1
                warnings.warn(f"{file.error.rstrip('.')} ({left_out}).", UnreadableVideo)
        done += len(files)
        report(done, total)
    _save(table, place, whole)
    if done != total:
        raise ZooError(f"{total - done} of {total} videos were not read, since a process ended early; run the same "
                       "command again.")  # fmt: skip
    return unreadable


class _Unsaved(NamedTuple):
    """What waits for the next commit."""

    rows: list[tuple[Record, tuple[Any, ...]]]
    files: list[File]


def _save(table: VideoTable, place: Place, whole: _Unsaved) -> _Unsaved:
    """Make a commit; return an empty start for the next one."""
    table.append(
        [(record._replace(path=place.stored(record.path)), values) for record, values in whole.rows],
        [file._replace(path=place.stored(file.path)) for file in whole.files],
    )
    table.optimise_if_many()
    return _Unsaved([], [])


def _as_it_is(given: _Given) -> _Given:
    return given


def _warn_plainly(worker: int) -> None:
    """Bypass the progress bar of the main process, which may have been forked while it held its lock."""
    warnings.showwarning = lambda message, *_: print(f"zoo: {printable(str(message))}", file=sys.__stderr__)


def _is_registered(name: str) -> bool:
    try:
        info(name)
    except UnknownModelError:
        return False
    return True


def _others(table: VideoTable, count: int) -> bool:
    """Whether processes run that share the files out in another way."""
    if is_url(table.where.locks):
        return False
    for lock in Path(table.where.locks).glob(".shard-*-of-*.lock"):
        name = lock.name[1 : -len(".lock")]
        if not name.endswith(f"-of-{count}"):
            with table.locked(name, wait=False) as free:
                if not free:
                    return True
    return False


def _is_same(known: File | None, path: str) -> bool:
    """Whether a file is as it was when it was read."""
    if known is None:
        return False
    try:
        return (known.size, known.mtime_ns) == state_of(path)
    except OSError:
        return False
