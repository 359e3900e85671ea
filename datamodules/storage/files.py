"""Files and folders, given by a local path or by any URL that fsspec knows (`s3://`, `hf://`, `memory://`, ...).

Paths are plain strings, as in lists and batches. Local ones are opened directly.
"""

import io
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, Self

from typing_extensions import override

from datamodules.errors import DataError

if TYPE_CHECKING:
    import aiohttp
    from fsspec import AbstractFileSystem

__all__ = ["File", "Folders", "RemoteFile", "download", "expand_braces", "first_file", "is_url", "join", "read_bytes",
           "read_range", "read_text", "resolve", "split", "status"]  # fmt: skip

_LARGEST = 2**32
"""Bytes of a file that is read as a whole over HTTP: the longest lists of pairs have two billion."""


def is_url(path: str) -> bool:
    """Whether fsspec has to read it."""
    return "://" in path


def resolve(path: str | os.PathLike[str]) -> str:
    """The path without `~` and trailing slash."""
    path = os.fspath(path)
    if not is_url(path):
        return str(Path(path).expanduser())
    protocol, _, rest = path.partition("://")
    return f"{protocol}://{rest.rstrip('/')}"


def join(folder: str, *names: str) -> str:
    """Return `folder/name/...`; an absolute name or a URL replaces the folder, an empty one adds nothing."""
    for name in names:
        if is_url(name):
            folder = name
        elif is_url(folder) and not name.startswith("/"):
            folder = f"{folder}{'' if folder.endswith('/') else '/'}{name}" if name else folder
        else:
            folder = os.path.join(folder, name) if name else folder
    return folder


def split(path: str) -> tuple[str, str]:
    """(folder, name), as `os.path.split`."""
    if not is_url(path):
        return os.path.split(path)
    protocol, _, rest = path.partition("://")
    folder, _, name = rest.rpartition("/")
    return f"{protocol}://{folder}", name


def read_bytes(path: str) -> bytes:
    """The whole file.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    try:
        if is_url(path):
            with RemoteFile(path) as file:
                return file.read()
        return Path(path).read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise DataError(f"{path} does not exist; check data.root and the name of the list.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error


def read_text(path: str) -> str:
    """Text in UTF-8, with or without a byte order mark.

    Raises:
        DataError: the file is missing, cannot be read, or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a UTF-8 text file ({error.reason}); save the list as UTF-8.") from error


MOST_NAMES = 100_000
"""Most names that a pattern with braces expands to; the largest published sets of shards have 41,000."""


def expand_braces(pattern: str) -> list[str]:
    """Expand a pattern as shells do: ``{a,b}``, ``{000..123}``, ``{0..9..3}``, nested too.

    Raises:
        DataError: more than `MOST_NAMES`; checked before they are made.
    """
    try:
        names = list(islice(_expanded(pattern), MOST_NAMES + 1))
    except RecursionError:
        raise DataError(f"{pattern[:80]}... has too many braces; name fewer files at a time.") from None
    if len(names) > MOST_NAMES:
        raise DataError(f"{pattern} stands for more than {MOST_NAMES} names; name fewer at a time, or their folder.")
    return names


def _expanded(pattern: str) -> Iterator[str]:
    for opening in (place for place, character in enumerate(pattern) if character == "{"):
        depth, commas = 0, [opening]
        for place in range(opening, len(pattern)):
            depth += {"{": 1, "}": -1}.get(pattern[place], 0)
            if depth == 1 and pattern[place] == ",":
                commas.append(place)
            if depth == 0:
                break
        else:
            continue  # never closed, so a plain character
        start, inner, rest = pattern[:opening], pattern[opening + 1 : place], pattern[place + 1 :]
        options: Iterator[str] | None
        if len(commas) > 1:
            parts = [pattern[a + 1 : b] for a, b in pairwise([*commas, place])]
            options = (option for part in parts for option in _expanded(part))
        elif (options := _counted(inner)) is None:
            continue
        yield from (f"{start}{option}{end}" for option in options for end in _expanded(rest))
        return
    yield pattern


def _counted(text: str) -> Iterator[str] | None:
    """The numbers of "first..last" or "first..last..step", or the letters; None for another text.

    Numbers are as wide as the wider of the two where one begins with 0.
    """
    letters = re.fullmatch(r"([a-z])\.\.([a-z])|([A-Z])\.\.([A-Z])", text)
    if letters is not None:
        first, last = (ord(letter) for letter in letters.groups() if letter)
        way = 1 if first <= last else -1
        return map(chr, range(first, last + way, way))
    found = re.fullmatch(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(-?\d{1,18}))?", text)
    if found is None:
        return None
    first, last, step = int(found[1]), int(found[2]), abs(int(found[3] or 1)) or 1
    padded = any(re.match(r"-?0\d", number) for number in (found[1], found[2]))
    width = max(len(found[1]), len(found[2])) if padded else 0
    way = 1 if first <= last else -1
    return (f"{number:0{width}d}" for number in range(first, last + way, way * step))


class File(Protocol):
    """A binary file that is read at any place: one of the system, one in memory, a `RemoteFile`, or part of a shard."""

    def read(self, size: int = -1, /) -> bytes:
        """Return so many bytes from here on, fewer at the end; -1 is all that are left."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place counted from the start (0), from here (1) or from the end (2); return it from the start."""

    def tell(self) -> int:
        """Return the place, in bytes from the start."""

    def fileno(self) -> int:
        """Return the system's number of the file; `io.UnsupportedOperation` where it has none."""

    def close(self) -> None:
        """Close the file, which cannot be read afterwards."""


class RemoteFile(File):
    """A `File` behind a URL, read in blocks as they are needed. A context manager.

    Raises:
        FileNotFoundError, IsADirectoryError: as for local files.
        OSError: anything else, from here and from `read`; the network libraries have exceptions of their own.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        with _as_os_error():
            filesystem, path = _filesystem(url)
            self._file: BinaryIO = filesystem.open(path, "rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @override
    def read(self, size: int = -1, /) -> bytes:
        with _as_os_error():
            return self._file.read(size)

    @override
    def seek(self, offset: int, whence: int = 0, /) -> int:
        with _as_os_error():
            return self._file.seek(offset, whence)

    @override
    def tell(self) -> int:
        return self._file.tell()

    @override
    def fileno(self) -> int:
        raise io.UnsupportedOperation("A file behind a URL has no number.")

    @override
    def close(self) -> None:
        self._file.close()


def read_range(url: str, start: int, end: int) -> bytes:
    """Bytes `start` to `end` (excluded) of the file behind a URL, in one request; fewer where it ends before.

    Raises:
        FileNotFoundError, IsADirectoryError, OSError: as `RemoteFile`.
    """
    with _as_os_error():
        filesystem, path = _filesystem(url)
        content: bytes = filesystem.cat_file(path, start=start, end=end)
        return content


def status(path: str) -> tuple[int | None, int | None]:
    """Bytes of a file, and when it last changed in nanoseconds since 1970; None for what its store does not say.

    Raises:
        FileNotFoundError, OSError: as `RemoteFile`.
    """
    if not is_url(path):
        found = os.stat(path)
        return found.st_size, found.st_mtime_ns
    with _as_os_error():
        filesystem, remote = _filesystem(path)
        about = filesystem.info(remote)
        # Each store has a name of its own; what is in memory never changes in place, and is made anew.
        names = ("mtime", "LastModified", "last_modified", "updated", "created")
        time = next((about[name] for name in names if about.get(name) is not None), None)
        if isinstance(time, str):
            time = datetime.fromisoformat(time)
        if isinstance(time, datetime):
            time = time.timestamp()
        return about.get("size"), None if time is None else round(time * 1e9)


def download(url: str, path: str, most: float) -> None:
    """The file behind a URL to a local one, in one request; `most` bytes where the server does not say how many.

    Raises:
        FileNotFoundError, IsADirectoryError, OSError: as `RemoteFile`; or it is longer.
    """
    from fsspec.callbacks import Callback

    class Limit(Callback):  # type: ignore[misc]  # fsspec has no types
        @override
        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            if self.value > (most if self.size is None else self.size):
                raise OSError(f"{url} is longer than announced, or than the {most / 1e9:g} GB that are kept")

    with _as_os_error():
        filesystem, remote = _filesystem(url)
        filesystem.get_file(remote, path, callback=Limit())


_kept: "dict[int, AbstractFileSystem]" = {}


def _filesystem(url: str) -> "tuple[AbstractFileSystem, str]":
    """fsspec's file system for a URL, which is never given up, and the path in it.

    A forked loader process inherits the connections of this one together with what listens to them, an epoll instance
    that both then share. Where the copies there are collected as garbage, they are taken off it, and this process waits
    five minutes for an answer that it no longer hears. fsspec forgets file systems after a fork; we do not.
    """
    import fsspec

    options = _http_options() if url.startswith(("http://", "https://")) else {}
    filesystem, path = fsspec.core.url_to_fs(url, **options)
    _kept[id(filesystem)] = filesystem
    return filesystem, path


@cache
def _http_options() -> dict[str, Any]:
    """Options that limit answers of HTTP servers to what was asked for.

    An endless answer, or one that unpacks into terabytes, could fill the memory.
    """
    import aiohttp
    import fsspec

    class Bounded(aiohttp.ClientResponse):
        @override
        async def start(self, connection: "aiohttp.connector.Connection") -> aiohttp.ClientResponse:
            await super().start(connection)
            packed = self.headers.get("Content-Encoding", "identity").strip().lower()
            if packed not in ("", "identity"):
                self.close()
                raise OSError(f"the server packs what it sends ({packed}), and was asked not to")
            bounded = _Bounded(self.content, _most_of(self))
            self.content = bounded  # type: ignore[assignment]  # a stream in all but the reading
            return self

    options = dict(fsspec.config.conf.get("http", {}).get("client_kwargs", {}))
    headers = {**options.get("headers", {}), "Accept-Encoding": "identity"}
    return {"client_kwargs": {**options, "headers": headers, "auto_decompress": False, "response_class": Bounded}}


def _most_of(response: "aiohttp.ClientResponse") -> int | None:
    """Bytes to take of the answer to a request for a range; None where the whole file was asked for."""
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", response.request_info.headers.get("Range", ""))
    # A server that does not know of ranges sends the whole file: a byte too many tells that.
    return asked and int(asked[2]) - int(asked[1]) + 1 + (response.status != 206)


class _Bounded:
    """The body of an HTTP answer, read no further than it was asked for."""

    def __init__(self, stream: "aiohttp.StreamReader", most: int | None) -> None:
        self._stream, self._most = stream, most

    async def read(self, size: int = -1) -> bytes:
        if size >= 0:
            return await self._stream.read(size)
        body, most = bytearray(), _LARGEST if self._most is None else self._most
        while len(body) < most and (part := await self._stream.read(min(most - len(body), 2**20))):
            body += part
        if len(body) == _LARGEST:
            raise OSError(f"the answer has more than {_LARGEST} bytes")
        return bytes(body)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError) as error:
        # fsspec reports any failure to look at a file as a missing file.
        cause = error.__cause__
        if not isinstance(cause, OSError) or isinstance(cause, FileNotFoundError):
            raise
        raise OSError(cause.errno or 5, _one_line(cause)) from error
    except Exception as error:  # the network libraries have exceptions of their own
        raise OSError(getattr(error, "errno", None) or 5, _one_line(error)) from error


class Folders:
    """Lists folders, each only once while `kept`: asking a network disk for 240,000 files one by one takes minutes."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, bool]] | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Cache listings until the outermost of these blocks ends."""
        if self._kept is not None:
            yield
            return
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    def entries(self, folder: str) -> dict[str, bool]:
        """Return name -> whether it is a folder; empty for a missing folder.

        Raises:
            DataError: the folder cannot be listed.
        """
        if self._kept is None:
            return _entries(folder)
        if folder not in self._kept:
            self._kept[folder] = _entries(folder)
        return self._kept[folder]

    def subfolders(self, folder: str) -> list[str]:
        """Names of the folders inside, sorted, without hidden ones."""
        return sorted(name for name, inner in self.entries(folder).items() if inner and not name.startswith("."))

    def files(self, folder: str, suffixes: Collection[str]) -> list[str]:
        """Names of the files inside that end so (lower case), sorted, without hidden ones."""
        names = (name for name, inner in self.entries(folder).items() if not inner and not name.startswith("."))
        return sorted(name for name in names if os.path.splitext(name)[1].lower() in suffixes)

    def has(self, path: str) -> bool:
        """Whether there is such a file or folder."""
        folder, name = split(path)
        return name in self.entries(folder)

    def is_folder(self, path: str) -> bool:
        """Whether it is a folder; behind a URL an empty one does not exist."""
        return bool(self.entries(path)) if is_url(path) else os.path.isdir(path)

    def is_file(self, path: str) -> bool:
        """Whether it is a file."""
        folder, name = split(path)
        return self.entries(folder).get(name) is False if is_url(path) else os.path.isfile(path)


def first_file(folders: Folders, root: str, names: Collection[str]) -> str | None:
    """The first of the names that is a file under root, as a path."""
    return next((path for path in (join(root, name) for name in names) if folders.is_file(path)), None)


def _entries(folder: str) -> dict[str, bool]:
    if is_url(folder):
        return _remote_entries(folder)
    try:
        with os.scandir(folder or ".") as found:
            return {entry.name: entry.is_dir() for entry in found}
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: a name that no file can have
        return {}
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error.strerror}); check its permissions.") from error


def _remote_entries(url: str) -> dict[str, bool]:
    try:
        with _as_os_error():
            filesystem, path = _filesystem(url)
            filesystem.invalidate_cache(path)  # some keep listings as long as the process lives
            found = filesystem.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise DataError(f"{url} cannot be listed ({error.strerror}); check data.root and your access.") from error
    path = path.rstrip("/")
    # Some stores list a folder, or the file asked for, as an entry of itself.
    found = [(entry["name"].rstrip("/"), entry["type"]) for entry in found]
    return {name.rpartition("/")[2]: kind == "directory" for name, kind in found if name != path}


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
