"""Files inside tar shards, each with a path of its own that works wherever a path of a file does.

    /data/k400/train-000003.tar!10752+812345!abseiling/xyz.mp4
    ------------------------- the shard, a local path or a URL
                              ----- its first byte in the shard
                                    ------ how many bytes
                                           ----------------- what the file was called; only people read this

Nothing is unpacked and nothing written: a local member is read in place, of a remote one its bytes alone are fetched,
in one request. Where requests are dear, as on the Hugging Face Hub, whole shards can be kept for a while instead: in
the folder that the environment names as ZOO_SHARD_CACHE, up to ZOO_SHARD_CACHE_GB gigabytes (50), those used least
lately giving way. All processes of a machine share it, so that each of them may read any shard.
"""

import errno
import hashlib
import io
import os
import re
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple, TypeVar, cast

from typing_extensions import override

from datamodules.errors import DataError
from datamodules.storage.files import File, download, is_url, read_range
from datamodules.storage.processes import after_fork, lock
from datamodules.storage.writing import written

__all__ = ["AHEAD", "RANGE_ATTEMPTS", "Member", "as_member", "fetched_ahead", "open_member", "open_tar"]

T = TypeVar("T")

AHEAD = 4
"""Remote members that a process fetches at a time."""

RANGE_ATTEMPTS = 3
"""Requests for a remote range before the member counts as unreadable: a day of training meets dropped
connections."""

_ADDRESS = re.compile(r"(.+\.tar)!(\d{1,18})\+(\d{1,18})!(.+)", re.DOTALL)
_BLOCK = tarfile.BLOCKSIZE


class Member(NamedTuple):
    """A file in a tar shard, with the parts of its path, which ``str`` makes of it."""

    shard: str
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.shard}!{self.offset}+{self.size}!{self.name}"


def as_member(path: str) -> Member | None:
    """The member that a path means; None where it is the path of a file of its own."""
    found = _ADDRESS.fullmatch(path) if "!" in path else None
    return found and Member(found[1], int(found[2]), int(found[3]), found[4])


def open_member(member: Member) -> File:
    """A readable, seekable file of the member's bytes.

    Raises:
        FileNotFoundError: there is no such shard.
        OSError: it cannot be read, or is not the one whose index gave the address.
    """
    if not is_url(member.shard):
        return _Slice(member)
    coming = _coming.pop(member, None)
    return _open_remote(member) if coming is None else coming.result()


def fetched_ahead(items: Sequence[T], paths: Sequence[str]) -> Iterator[T]:
    """The items in turn; while one is worked on, remote members among the `paths` of the next ones are fetched."""
    try:
        for number, item in enumerate(items):
            for path in paths[number : number + AHEAD]:
                member = as_member(path)
                if member is not None and is_url(member.shard) and member not in _coming:
                    _coming[member] = _pool().submit(_open_remote, member)
            yield item
    finally:
        _coming.clear()


_coming: dict[Member, Future[File]] = {}


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AHEAD, "fetch")


# Threads do not live on in a forked loader worker.
after_fork(_coming.clear)
after_fork(_pool.cache_clear)


def _open_remote(member: Member) -> File:
    folder = os.environ.get("ZOO_SHARD_CACHE")
    while folder:
        local = _fetched(member.shard, folder)
        try:
            os.utime(local)  # it is in use
            return _Slice(member._replace(shard=local))
        except FileNotFoundError:
            continue  # it has just given way to another
    start, end = member.offset - _BLOCK, member.offset + member.size
    data = _tried(lambda: read_range(member.shard, start, end))
    if len(data) > end - start:
        raise OSError(errno.EIO, "the server sends whole files where a part is asked for; set ZOO_SHARD_CACHE to a "
                                 "folder for whole shards")  # fmt: skip
    _check_header(member, data[:_BLOCK])
    if len(data) < end - start:
        raise OSError(errno.EIO, "the shard is cut off")
    return io.BytesIO(memoryview(data)[_BLOCK:])


def _check_header(member: Member, block: bytes) -> None:
    """Compare with the tar's own header of the member: a shard that was replaced must not give another video."""
    try:
        found = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size
    except tarfile.HeaderError:
        found = None
    if found != member.size:
        raise OSError(errno.EIO, "the shard is cut off, or not the one that its index was made of")


class _Slice(File):
    """A part of a local file as a file; its position is its own, so others can read the same shard."""

    def __init__(self, member: Member) -> None:
        self._start, self._size, self._position = member.offset, member.size, 0
        self._file = open(member.shard, "rb", buffering=0)  # noqa: SIM115  (closed by the reader)
        try:
            _check_header(member, self._read_at(member.offset - _BLOCK, _BLOCK))
            if os.fstat(self._file.fileno()).st_size < member.offset + member.size:
                raise OSError(errno.EIO, "the shard is cut off")
        except OSError:
            self._file.close()
            raise

    @override
    def read(self, size: int = -1, /) -> bytes:
        left = max(self._size - self._position, 0)
        data = self._read_at(self._start + self._position, left if size < 0 else min(size, left))
        self._position += len(data)
        return data

    def _read_at(self, place: int, size: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), size, place)
        self._file.seek(place)  # Windows, where no forked process shares the file's position
        return self._file.read(size)

    @override
    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._position = max(offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence], 0)
        return self._position

    @override
    def tell(self) -> int:
        return self._position

    def fileno(self) -> int:
        """Descriptor of the shard, whose size and time of change distinguish it from a replaced one."""
        return self._file.fileno()

    @override
    def close(self) -> None:
        self._file.close()


def _fetched(url: str, folder: str) -> str:
    """The local copy of a shard; one process fetches it while the others that want it wait."""
    from webdataset.cache import LRUCleanup

    path = os.path.join(folder, f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.tar")
    if not os.path.exists(path):
        os.makedirs(folder, exist_ok=True)
        with open(f"{path}.lock", "wb") as file:
            lock(file)
            if not os.path.exists(path):
                limit = _cache_bytes()
                LRUCleanup(folder, limit, interval=None).cleanup()  # type: ignore[arg-type]  # a size may be infinite
                _tried(lambda: _download(url, path))
    return path


def _cache_bytes() -> float:
    text = os.environ.get("ZOO_SHARD_CACHE_GB", "50")
    try:
        return float(text) * 1e9
    except ValueError:
        raise DataError(f"ZOO_SHARD_CACHE_GB is {text!r}; give a number of gigabytes.") from None


def _download(url: str, path: str) -> None:
    with written(Path(path), locked=True) as beside:
        download(url, str(beside), _cache_bytes())


def _tried(fetch: Callable[[], T]) -> T:
    """Return what `fetch` returns; try again where the connection breaks."""
    for attempt in range(RANGE_ATTEMPTS - 1):
        try:
            return fetch()
        except OSError as error:
            if isinstance(error, FileNotFoundError) or error.errno == errno.ENOSPC:  # waiting makes no room
                raise
            time.sleep(2**attempt)
    return fetch()


@contextmanager
def open_tar(file: File) -> Iterator[tarfile.TarFile]:
    """An uncompressed tar from elsewhere, to be looked through once, in time and memory that its length bounds.

    Raises:
        tarfile.TarError: the tar is damaged; also raised in the block.
    """
    try:
        with tarfile.open(fileobj=cast(IO[bytes], _Bounded(file)), mode="r:") as tar:
            yield tar
    except DataError:
        raise
    except (ValueError, OverflowError, EOFError) as error:
        raise tarfile.ReadError(str(error)) from error


class _Bounded:
    """A tar, read with care for its headers.

    They can claim lengths above the file's, for which `tarfile` makes room at once; or negative ones, which lead it in
    circles.
    """

    def __init__(self, file: File) -> None:
        self._file = file
        self._length = file.seek(0, os.SEEK_END)
        self._reads = 16 + 8 * (self._length // _BLOCK)  # more than headers there can be need
        file.seek(0)

    def read(self, size: int) -> bytes:
        self._reads -= 1
        if size < 0 or self._reads < 0:
            raise tarfile.ReadError("its headers have negative lengths")
        return self._file.read(min(size, max(self._length - self._file.tell(), 0)))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
