"""Limits on what a Hub, or a mirror of it, may answer to huggingface_hub.

huggingface_hub names files of its cache after headers of an answer (``ETag``, ``X-Linked-Etag``, ``X-Repo-Commit``),
writes as many bytes as a body brings, and waits as long as ``Retry-After`` says. All its requests go through one HTTP
client, which a factory makes (`huggingface_hub.set_client_factory`). `limited` puts a factory in its place that adds
event hooks to the clients of the one before: they see every answer, redirects and those to other libraries included,
before anybody uses it. To check what `get_hf_file_metadata` returns would not do: the download asks again by itself.

Two checks hold for the whole process from the first use on, since no honest answer fails them: names that are paths are
refused, and characters that steer a terminal are escaped in headers, which huggingface_hub prints. The limits on size
and time hold inside of `limited` alone, so that other users of huggingface_hub keep its own behaviour.
"""

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from hub.errors import HubError

__all__ = ["SHORT", "escaped", "limited", "shortened"]

SHORT = 64 * 2**20  # bytes; of a file for people or with settings: config.json, tokenizer.json, README.md, vocab.txt
API_BYTES = 16 * 2**20  # of other answers, such as a list of files
ERROR_BYTES = 2**16  # of the body of an error; the rest is not read
QUOTED_CHARACTERS = 300  # of a message of the server
REQUESTS = 100  # for one file or one question, retries and redirects included, and one more per MiB that arrived
HEADER_SECONDS = 60.0  # until the headers of an answer are complete
WINDOW_SECONDS = 60.0  # in each such time, a body has to bring ...
WINDOW_BYTES = 2**16
WAIT_SECONDS = 60  # of all waits that a server may ask for by Retry-After
TIMEOUTS = {"connect": 30.0, "read": 60.0, "write": 60.0, "pool": 60.0}  # where huggingface_hub sets none

# A plain file name on every system: no separator, no drive, no dots at the start.
_PLAIN = re.compile(r"[0-9A-Za-z][\w.+=~-]{0,199}", flags=re.ASCII)
_SPOKEN = ("x-error-message", "x-hf-warning", "content-disposition")
# Classes of the HTTP library. Which one that is, httpx or its successor, depends on the release of huggingface_hub.
_Client: TypeAlias = Any
_Request: TypeAlias = Any
_Response: TypeAlias = Any
_Stream: TypeAlias = Any


@dataclass
class _Task:
    what: str
    most: int
    folder: Path
    announced: dict[str, int] = field(default_factory=dict)  # URL -> bytes of its body
    requests: int = 0
    received: int = 0
    wait: int = WAIT_SECONDS
    deadline: float | None = None  # of the headers that are awaited


_task: ContextVar[_Task | None] = ContextVar("hub_task", default=None)
_lock = threading.Lock()


@contextmanager
def limited(what: str, folder: str | Path, most: int | None = None) -> Iterator[None]:
    """Inside of it, requests of this thread through huggingface_hub raise `HubError` where an answer breaks a limit.

    Args:
        what: is asked for, for the messages.
        folder: that files are written to.
        most: bytes of a body; None: what the server announced before.
    """
    _watch()
    token = _task.set(_Task(what, 2**62 if most is None else most, Path(folder)))
    try:
        yield
    finally:
        _task.reset(token)


def escaped(text: str) -> str:
    """The text with everything that is not printable as an escape sequence of Python."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shortened(text: object, most: int = QUOTED_CHARACTERS) -> str:
    """A text of somebody else on one line, cut where it is long."""
    line = " ".join(str(text)[: 10 * most].split())
    return line if len(line) <= most else f"{line[:most]}..."


def _watch() -> None:
    """Watch every client of huggingface_hub, also those that other libraries make."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    with _lock:
        # The factory in use has no public name; without it, a client of the user's own (a proxy) would be lost.
        factory = _http._GLOBAL_CLIENT_FACTORY
        if not isinstance(factory, _WatchedClients):
            set_client_factory(_WatchedClients(factory))


class _WatchedClients:
    def __init__(self, factory: Callable[[], _Client]) -> None:
        self._factory = factory

    def __call__(self) -> _Client:
        client = self._factory()
        hooks = client.event_hooks
        # Last of the requests', so that nothing is set after it; first of the answers', so that nothing is read before.
        client.event_hooks = {"request": [*hooks["request"], _prepare], "response": [_check, *hooks["response"]]}
        return client


def _prepare(request: _Request) -> None:
    task = _task.get()
    if task is None:
        return
    task.requests += 1
    if task.requests > REQUESTS + task.received // 2**20:
        raise HubError(f"{task.what} was asked for {task.requests - 1} times and is not whole yet; try again later, or "
                       "use another Hub (HF_ENDPOINT).")  # fmt: skip
    # Unpacking could make any number of bytes of a few, and the announced size is that of the file itself.
    request.headers["Accept-Encoding"] = "identity"
    given = request.extensions.get("timeout", {})
    timeouts = {key: seconds if given.get(key) is None else given[key] for key, seconds in TIMEOUTS.items()}
    request.extensions = {**request.extensions, "timeout": timeouts, "trace": _trace}


def _trace(event: str, info: dict[str, Any]) -> None:
    """Called by the HTTP library: gives the headers of an answer a deadline, however slowly their bytes arrive."""
    task = _task.get()
    if event.endswith(("connect_tcp.complete", "start_tls.complete")):
        _end_reading_in_time(info["return_value"])
    elif task is not None and "receive_response_headers" in event:
        task.deadline = time.monotonic() + HEADER_SECONDS if event.endswith("started") else None


def _end_reading_in_time(stream: _Stream) -> None:
    read: Callable[..., bytes] = stream.read

    def read_in_time(*args: object, **kwargs: object) -> bytes:
        task = _task.get()
        if task is not None and task.deadline is not None and time.monotonic() > task.deadline:
            raise HubError(f"The headers of the answer for {task.what} were not complete after {HEADER_SECONDS:g} s; "
                           "try again later, or use another Hub (HF_ENDPOINT).")  # fmt: skip
        return read(*args, **kwargs)

    stream.read = read_in_time


def _check(response: _Response) -> None:
    _escape_headers(response)
    _refuse_paths(response)
    task = _task.get()
    if task is None:
        return
    _limit_wait(response, task)
    # Without it, huggingface_hub fetches by HTTP, through these hooks, and not by its client of Xet in Rust.
    response.headers.pop("X-Xet-Hash", None)
    if response.request.method == "HEAD":
        _note_size(response, task)
    elif response.status_code >= 400:
        _bound(response, task, ERROR_BYTES, cut=True)
    else:
        _bound_answer(response, task)


def _escape_headers(response: _Response) -> None:
    headers = response.headers.multi_items()
    told = [(name, shortened(value) if name.lower() in _SPOKEN else value) for name, value in headers]
    told = [(name, escaped(value)) for name, value in told]
    if told != headers:
        response.headers = type(response.headers)(told)


def _refuse_paths(response: _Response) -> None:
    """The etag names a file of the cache, and the commit a folder."""
    named = {"X-Repo-Commit": response.headers.get("X-Repo-Commit")}
    if response.request.method == "HEAD" and response.status_code < 400:
        for header in ("ETag", "X-Linked-Etag"):
            etag = response.headers.get(header)
            named[header] = etag and etag.removeprefix("W/").strip('"')
    for header, name in named.items():
        if name is not None and not _PLAIN.fullmatch(name):
            raise HubError(f"{response.request.url.host} answers with {header} {shortened(name, 80)!r}, which is not a "
                           "plain name, so nothing was written; use another Hub (HF_ENDPOINT).")  # fmt: skip


def _limit_wait(response: _Response, task: _Task) -> None:
    """Shortens what huggingface_hub waits for before it asks again."""
    for header, pattern in (("Retry-After", r"()([0-9]+)"), ("RateLimit", r"(.*\bt=)([0-9]+).*")):
        value = response.headers.get(header)
        if value is None:
            continue
        found = re.fullmatch(pattern, value.strip())
        if found is None:
            del response.headers[header]
            continue
        seconds = min(int(found[2][:9]), WAIT_SECONDS // 5, task.wait)
        if response.status_code in (408, 429) or response.status_code >= 500:
            task.wait -= seconds
        response.headers[header] = f"{found[1]}{seconds}"


def _note_size(response: _Response, task: _Task) -> None:
    """Remembers the size of a file under the addresses at which it may be asked for."""
    if response.status_code >= 400:
        return
    target = response.headers.get("Location")
    size = _number(response.headers.get("X-Linked-Size"))
    if size is None and target is None:
        size = _number(response.headers.get("Content-Length"))
    if size is None:
        return
    if size > task.most:
        raise HubError(f"{task.what} has {size:,} bytes, and a file of its kind has {task.most:,} at most; it was not "
                       "fetched: do not use this repository.")  # fmt: skip
    task.announced[str(response.request.url)] = size
    if target is not None:
        task.announced[str(response.request.url.join(target))] = size


def _bound_answer(response: _Response, task: _Task) -> None:
    request, url = response.request, str(response.request.url)
    if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise HubError(f"{request.url.host} sends {task.what} packed though it was asked not to, so it is not "
                       "unpacked; use another Hub (HF_ENDPOINT).")  # fmt: skip
    announced = task.announced.get(url)
    if announced is not None and response.headers.get("Location") is not None:
        task.announced[str(request.url.join(response.headers["Location"]))] = announced
    # At an address that no answer named, it may be the file all the same, or a question beside it.
    left = max(API_BYTES, *task.announced.values(), 0) if announced is None else announced
    if announced is not None:
        if response.status_code == 206:
            start = re.match(r"bytes=([0-9]{1,18})-", request.headers.get("Range", ""))
            left -= int(start[1]) if start else 0
        folder = task.folder.absolute()
        free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
        if left > free:
            raise HubError(f"{task.what} has {left:,} bytes and {task.folder} has room for {free:,}; make room, or set "
                           "HF_HOME to a folder on another disk.")  # fmt: skip
    length = _number(response.headers.get("Content-Length"))
    if length is not None and length > left:
        raise _too_much(task, left)
    _bound(response, task, min(left, task.most))


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,18}", text.strip()) else None


def _too_much(task: _Task, most: int) -> HubError:
    return HubError(f"More than the {most:,} bytes announced or usual arrive for {task.what}; nothing of it was kept: "
                    "try again later, or use another Hub (HF_ENDPOINT).")  # fmt: skip


def _bound(response: _Response, task: _Task, most: int, cut: bool = False) -> None:
    # The HTTP library's class of streams, of which those of an answer have to be.
    kind = next(kind for kind in type(response.stream).__mro__ if kind.__name__ == "SyncByteStream")
    response.stream = _bounded(kind)(response.stream, task, most, cut)


@cache
def _bounded(kind: type[_Stream]) -> type[_Stream]:
    class Bounded(kind):  # type: ignore[misc]  # the class is not known before
        """A body that ends: by its number of bytes, and in time."""

        def __init__(self, stream: _Stream, task: _Task, most: int, cut: bool) -> None:
            self._stream, self._task, self._most, self._cut = stream, task, most, cut

        def __iter__(self) -> Iterator[bytes]:
            received = counted = 0
            since = time.monotonic()
            for chunk in self._stream:
                received += len(chunk)
                self._task.received += len(chunk)
                if received > self._most:
                    if not self._cut:
                        raise _too_much(self._task, self._most)
                    yield chunk[: len(chunk) + self._most - received]
                    return
                if (now := time.monotonic()) > since + WINDOW_SECONDS:
                    if received - counted < WINDOW_BYTES:
                        raise HubError(f"{self._task.what} arrives with less than {WINDOW_BYTES:,} bytes in "
                                       f"{WINDOW_SECONDS:g} s; try again later, or use another Hub "
                                       "(HF_ENDPOINT).")  # fmt: skip
                    since, counted = now, received
                yield chunk

        def __getattr__(self, name: str) -> object:
            return getattr(self._stream, name)

        def close(self) -> None:
            self._stream.close()

    return Bounded
