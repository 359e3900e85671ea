"""What is done with videos: a reader that cuts them into clips, and a model's answers about those, as rows.

Videos are read in chunks of a listing. Batches end where what they belong to is saved, so what an answer is made of,
and with it every bit of it, does not depend on where an earlier run was killed:

    files      a b c d | e f g h | ...         chunks of as many files as a batch has clips
    windows    aabbccc   ddd               batches of up to 4; saved at the end of a file that completes 4 or more
               [  ][ ]   [ ]               windows since the last saving, and at the end of the chunk
                     ^     ^
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datamodules.storage.files import status
from datamodules.storage.members import as_member
from datamodules.video.opening import DecodeError
from lightning_modules.base import BaseModule
from zoo.limits import TooManyWindows
from zoo.tables.table import ABOUT, File, Record

__all__ = ["Batch", "Job", "Reader", "Span", "state_of"]

Span = tuple[float, float] | None
"""The only stretch of a video that is wanted, in seconds; None for all of it."""


class Batch(NamedTuple):
    """Clips of videos.

    Attributes:
        video: uint8 (n, ...), or None.
        records: what they are; one or more for each clip.
        files: those that were finished.
        is_last: what came since the last such batch can be saved.
    """

    video: Tensor | None
    records: list[Record]
    files: list[File]
    is_last: bool


class Reader(ABC):
    """Reads videos as `Batch`; see the head of this module. It can be sent to other processes.

    Args:
        batch_size: clips of a batch, at most.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    @abstractmethod
    def clips(self, path: str, span: Span) -> Iterator[tuple[Tensor, list[Record]]]:
        """Yield the clips of a video, uint8, with what is to be said about each.

        Raises:
            DecodeError, OSError, TooManyWindows: it cannot be read.
        """

    def read(self, paths: Sequence[str], spans: Sequence[Span] | None = None) -> Iterator[Batch]:
        """Yield the clips of a chunk of videos; a file that cannot be read is a `File` with its error.

        Args:
            paths: local files, URLs or members of tar shards.
            spans: for each of them the only stretch to read, or None.
        """
        clips: list[Tensor] = []
        records: list[Record] = []
        files: list[File] = []
        unsaved = 0

        def batch(is_last: bool) -> Batch:
            made = Batch(torch.stack(clips) if clips else None, records[:], files[:], is_last)
            for taken in (clips, records, files):
                taken.clear()
            return made

        for number, path in enumerate(paths):
            state = File(path)
            try:
                with suppress(OSError):  # opening it says more
                    state = File(path, *state_of(path))
                for clip, about in self.clips(path, None if spans is None else spans[number]):
                    clips.append(clip)
                    records += about
                    unsaved += 1
                    if len(clips) == self.batch_size:
                        yield batch(is_last=False)
            except (DecodeError, OSError, TooManyWindows) as error:
                state = state._replace(error=" ".join(str(error).split()))
            files.append(state)
            if unsaved >= self.batch_size or number == len(paths) - 1:
                yield batch(is_last=True)
                unsaved = 0


class Job(ABC):
    """A callable from a batch of videos to rows about them, which `fill` runs in processes or on Ray.

    It keeps nothing from one call to the next, so any engine may call copies of it in any order and again.

    Attributes:
        kind: of the table, a word.
        model: in eval mode, with ``preprocessing``.
        reader: what makes its input.
        settings: plain values which, beside the model, decide the answers.
        columns: names of the values of a row.
        left_out: what a warning says happens to a broken file.
    """

    kind: str
    model: BaseModule
    reader: Reader
    settings: Mapping[str, Any]
    columns: tuple[str, ...]
    left_out: str

    @abstractmethod
    def types(self) -> dict[str, Any]:
        """Types of PyArrow of its columns."""

    @abstractmethod
    def answer(self, video: Tensor) -> list[tuple[Any, ...]]:
        """Return, for each record of a batch, the values of its row, in the order of `columns`; video is uint8."""

    @property
    def order(self) -> tuple[str, ...]:
        """The columns of a row."""
        return (*ABOUT[:3], *self.columns, *ABOUT[3:])

    def __call__(self, batch: Mapping[str, Sequence[Any]] | Sequence[str]) -> dict[str, list[Any]]:
        """Return columns of equal length, one row for each record and one for each file that cannot be read.

        They are those of the job, path, start, end (seconds), size (bytes), mtime (nanoseconds since 1970), and error,
        with which all but path, size and mtime are None.

        Args:
            batch: columns ``path``, files or URLs, and, if only stretches of them are wanted, ``start`` and ``end``
                in seconds; or just the paths.
        """
        batch = batch if isinstance(batch, Mapping) else {"path": batch}
        paths = [str(path) for path in batch["path"]]
        spans: list[Span] | None = None
        if "start" in batch:
            pairs = zip(batch["start"], batch["end"], strict=True)
            spans = [(float(start), float(end)) for start, end in pairs]
        rows: list[dict[str, Any]] = []
        waiting: list[tuple[Record, tuple[Any, ...]]] = []
        for part in self.reader.read(paths, spans):
            if part.video is not None:
                waiting += zip(part.records, self.answer(part.video), strict=True)
            for file in part.files:
                state = {"size": file.size, "mtime": file.mtime_ns}
                for record, values in waiting if file.error is None else ():
                    if record.path == file.path:
                        rows.append(record._asdict() | dict(zip(self.columns, values, strict=True)) | state)
                if file.error is not None:
                    rows.append({"path": file.path, "error": file.error, **state})
                waiting = [pair for pair in waiting if pair[0].path != file.path]
        return {name: [row.get(name) for row in rows] for name in self.order}


def state_of(path: str) -> tuple[int | None, int | None]:
    """Bytes of a file and when it last changed, see `storage.files.status`; a member has its shard's time."""
    member = as_member(path)
    return status(path) if member is None else (member.size, status(member.shard)[1])
