"""What the page's server hands out beside the page: the videos of search results, and nothing else of the machine."""

import json
import mimetypes
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import closing

from gradio.utils import get_upload_folder
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from datamodules.storage.files import File
from datamodules.video.opening import DecodeError, length_of, open_file

__all__ = ["Guard", "ShownVideos"]

KEPT = 10_000
"""Addresses that are valid at a time; the oldest become invalid."""
PIECE_BYTES = 2**18
BODY_BYTES = 2**20
"""Of a request, without the file that it uploads."""

# The browser itself refuses what would leave this server. Gradio's page is made of inline scripts and styles.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; form-action 'self'; base-uri 'self'"
)

# What Gradio's server offers and this page does not use: it fetches from elsewhere, starts ffmpeg, or shows files.
CLOSED = ("api", "call", "custom_component", "deep_link", "process_recording", "proxy=", "run", "stream")


class ShownVideos:
    """The videos that search results showed, at addresses that cannot be guessed.

    A result may be of any folder, or of a store behind a URL. Its folder is not opened for that: only what a search has
    found has an address.
    """

    def __init__(self) -> None:
        self._paths: OrderedDict[str, str] = OrderedDict()
        self._keys: dict[str, str] = {}
        self._lock = threading.Lock()

    def address(self, path: str) -> str:
        """Return the address of a video, relative to the page."""
        with self._lock:
            key = self._keys.setdefault(path, secrets.token_urlsafe(16))
            self._paths[key] = path
            self._paths.move_to_end(key)
            if len(self._paths) > KEPT:
                _, oldest = self._paths.popitem(last=False)
                del self._keys[oldest]
        return f"shown/{key}"

    @property
    def route(self) -> Route:
        """Where the server answers such addresses: with the whole file, or the bytes of a Range header."""
        return Route("/shown/{key}", self._serve)

    def _serve(self, request: Request) -> Response:
        path = self._paths.get(request.path_params["key"])
        if path is None:
            return PlainTextResponse("There is no such video; search again.", 404)
        try:
            file = open_file(path)
        except DecodeError:
            return PlainTextResponse("This file cannot be read any more.", 404)
        size = length_of(file)
        start, stop = _range(request.headers.get("range"), size)
        kind = mimetypes.guess_type(path.partition("?")[0])[0] or ""
        headers = {"accept-ranges": "bytes", "content-length": str(stop - start), "x-content-type-options": "nosniff"}
        if start or stop < size:
            headers["content-range"] = f"bytes {start}-{stop - 1}/{size}"
        return StreamingResponse(
            _pieces(file, start, stop),
            206 if "content-range" in headers else 200,
            headers,
            kind if kind.startswith("video/") else "application/octet-stream",
        )


class Guard:
    """ASGI middleware before Gradio's server.

    It takes and gives only files that visitors uploaded and examples, refuses what the page does not use and bodies
    that are too large, and tells browsers to load nothing from elsewhere.

    Args:
        app: Gradio's.
        most_bytes: of an uploaded file.
    """

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self.app, self.most_bytes = app, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request: refused with a sentence, or passed on and given the policy for browsers."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = POLICY
                headers["referrer-policy"] = "no-referrer"
            await send(message)

        answer: ASGIApp = self.app
        try:
            self._check_path(scope["path"])
            if scope["method"] == "POST":
                receive = await self._checked_body(Headers(scope=scope), receive)
        except _Refused as refused:
            answer = PlainTextResponse(refused.sentence, refused.status)
        await answer(scope, receive, with_policy)

    def _check_path(self, path: str) -> None:
        _, of_gradio, route = path.partition("/gradio_api/")
        if path.startswith("/monitoring") or (of_gradio and route.startswith(CLOSED)):
            raise _Refused(404, "This page has no such address.")
        if of_gradio and route.startswith("file") and not _is_uploaded(route.removeprefix("file=")):
            raise _Refused(403, "This page does not show that file.")

    async def _checked_body(self, headers: Headers, receive: Receive) -> Receive:
        """The body again, if it is not too large and names no other files or addresses."""
        length, kind = headers.get("content-length", ""), headers.get("content-type", "")
        is_form = kind.partition(";")[0].strip().lower() == "multipart/form-data"
        if not length.isdecimal():
            raise _Refused(411, "The length of the request is missing.")
        if int(length) > BODY_BYTES + is_form * self.most_bytes:
            raise _Refused(413, f"The file is larger than {self.most_bytes / 2**20:g} MB; cut it.")
        if is_form:
            return receive
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        try:
            named = list(_paths(json.loads(body or b"null")))
        except (ValueError, RecursionError) as error:
            raise _Refused(400, "The request is not valid JSON.") from error
        if not all(map(_is_uploaded, named)):
            raise _Refused(403, "Upload a file; this page reads no other files.")
        given = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def again() -> Message:
            return next(given, None) or await receive()

        return again


class _Refused(Exception):
    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


def _paths(value: object) -> Iterator[str]:
    """Every file that a request names, as Gradio writes them: ``{"path": ...}``."""
    if isinstance(value, dict):
        if value.get("path") is not None:
            yield str(value["path"])
        for part in value.values():
            yield from _paths(part)
    elif isinstance(value, list):
        for part in value:
            yield from _paths(part)


def _is_uploaded(path: str) -> bool:
    """Whether a file lies in the folder of uploads, with links followed."""
    folder = os.path.realpath(get_upload_folder())
    try:
        found = os.path.realpath(path)
        return os.path.isabs(path) and found.startswith(folder + os.sep) and os.path.isfile(found)
    except (OSError, ValueError):  # a null character
        return False


def _range(header: str | None, size: int) -> tuple[int, int]:
    """Return the first byte that a Range header asks for, and the one behind the last.

    That is the whole file where the header is none of one stretch that lies in the file.
    """
    unit, _, wanted = (header or "").partition("=")
    first, dash, last = wanted.strip().partition("-")
    if unit.strip() != "bytes" or not dash or not all(part.isdecimal() or not part for part in (first, last)):
        return 0, size
    if not first:
        return max(size - int(last), 0) if last else 0, size
    start, stop = int(first), min(int(last) + 1 if last else size, size)
    return (start, stop) if start < stop else (0, size)


def _pieces(file: File, start: int, stop: int) -> Iterator[bytes]:
    with closing(file):
        file.seek(start)
        while start < stop and (piece := file.read(min(PIECE_BYTES, stop - start))):
            start += len(piece)
            yield piece
