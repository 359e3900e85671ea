"""Opening live streams: cameras, and the addresses that a user names.

The user trusts an address, not what answers there. libav therefore gets bytes that Python reads from the one place that
was named, and may open nothing itself. Only RTSP needs a dialogue that libav leads: over the connection to the named
host, for there is no other protocol that it may use, and it follows no redirection to a protocol that it may not use.

    udp://   http://   https://     socket -> bytes -> libav    (protocols: none; formats: `STREAMED`)
    rtsp://                         libav, the packets in the dialogue's connection    (protocols: tcp; format: rtsp)
    0, /dev/video0                  libav, the system's camera driver

Texts that name other addresses (SDP, HLS, DASH, concat) are not among the formats.
"""

import base64
import http.client
import ipaddress
import os
import re
import socket
import sys
import threading
import time
from contextlib import suppress
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

import av

from datamodules.video.opening import MAX_PIXELS, DecodeError

__all__ = ["SCHEMES", "STREAMED", "Ended", "LiveInput", "is_live"]

SCHEMES = ("udp", "http", "https", "rtsp")

STREAMED = ("mpegts", "mpeg", "flv", "matroska", "mov", "ogg", "mjpeg", "mpjpeg", "h264", "hevc")
"""libav's names of the formats that are read from bytes of a stream, which hold their pictures themselves."""

_UNTIMED = ("mjpeg", "mpjpeg", "h264", "hevc")
"""Formats without time stamps: libav invents a frame rate."""

_CAMERAS = {"linux": "v4l2", "darwin": "avfoundation"}
_ANALYSED_SECONDS = 1  # of a stream before its first frame
_DATAGRAMS_BYTES = 4 * 2**20
_POLL_SECONDS = 0.2


class Ended(DecodeError):
    """A stream has ended, or nothing has come for too long; it may be back later."""


def is_live(source: str) -> bool:
    """Whether a source is a camera or an address, and no file."""
    return source.isdecimal() or source.startswith("/dev/video") or "://" in source


class LiveInput:
    """An open camera (0, /dev/video0), or address of one of `SCHEMES`.

    Args:
        source: camera or address.
        timeout: seconds without a frame after which it counts as lost.
        stop: set by a caller that wants no more, also while it is being opened.

    Attributes:
        name: the source, without its password.
        container: libav's reader of it. Only one thread may use and `close` it.
        is_timed: whether frames have time stamps of their own.

    Raises:
        Ended: nothing came in time.
        DecodeError: it cannot be reached, sends no video, answers with a redirection, or has another scheme.
    """

    def __init__(self, source: str, timeout: float, stop: threading.Event) -> None:
        self.name = _without_password(source)
        self._timeout, self._stop, self._is_shut = timeout, stop, False
        self._feed: _Datagrams | _Response | None = None  # what the bytes of the stream come over
        self.touch()
        try:
            self.container = self._open(source)
        except (av.FFmpegError, OSError, http.client.HTTPException, ValueError) as error:
            self._shut()
            if isinstance(error, TimeoutError) or time.monotonic() >= self._deadline:
                raise self.silent() from error
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
            raise DecodeError(f"{self.name} cannot be opened as a stream of video ({reason}); check the address, and "
                              "that it sends video, as MPEG-TS for example.") from error  # fmt: skip
        except DecodeError:
            self._shut()
            raise
        self.is_timed = self.container.format.name not in _UNTIMED

    def touch(self) -> None:
        """A frame has come: the time until the next one starts."""
        self._deadline = time.monotonic() + self._timeout

    def remaining(self) -> float:
        """Seconds until the stream counts as lost.

        Raises:
            Ended: it does, or somebody has called `interrupt`.
        """
        left = self._deadline - time.monotonic()
        if self._stop.is_set() or self._is_shut or left <= 0:
            raise self.silent()
        return left

    def interrupt(self) -> None:
        """End a read that another thread waits in; libav's own, of RTSP and cameras, end by themselves or not."""
        self._is_shut = True
        if self._feed is not None:
            self._feed.interrupt()

    def close(self) -> None:
        """Close all of it; by the thread that reads."""
        self._shut()
        self.container.close()

    def _shut(self) -> None:
        self.interrupt()
        if self._feed is not None:
            self._feed.close()

    def silent(self) -> Ended:
        """What to tell where no frame has come in time."""
        return Ended(f"{self.name} has sent no frame for {self._timeout:g} s; check that it runs.")

    def _open(self, source: str) -> av.container.InputContainer:
        limits = {"max_pixels": str(MAX_PIXELS), "analyzeduration": str(_ANALYSED_SECONDS * 1_000_000)}
        if "://" not in source:
            return self._open_camera(source, limits)
        url = urlsplit(source)
        if url.scheme not in SCHEMES:
            raise DecodeError(f"{self.name} has the scheme {url.scheme!r}; name a file, a camera, or an address with "
                              f"{', '.join(f'{scheme}://' for scheme in SCHEMES)}.")  # fmt: skip
        if not url.hostname and url.scheme != "udp":
            raise DecodeError(f"{self.name} names no host; write {url.scheme}://HOST/PATH.")
        if url.scheme == "rtsp":
            options = {**limits, "protocol_whitelist": "tcp", "format_whitelist": "rtsp", "rtsp_transport": "tcp"}
            waits = (self._timeout, self._timeout)
            return av.open(source, "r", format="rtsp", options=options, timeout=waits, metadata_errors="replace")
        self._feed = _Datagrams(self, url) if url.scheme == "udp" else _Response(self, url)
        options = {**limits, "protocol_whitelist": "none", "format_whitelist": ",".join(STREAMED)}
        return av.open(self._feed, "r", format=self._feed.format, options=options, metadata_errors="replace")

    def _open_camera(self, source: str, limits: dict[str, str]) -> av.container.InputContainer:
        driver = _CAMERAS.get(sys.platform)
        known = {name for names in av.formats_available for name in names.split(",")}
        if driver not in known:
            raise DecodeError(f"{self.name} is a camera, and this build of PyAV reads none here; stream it over "
                              "rtsp:// or udp:// instead.")  # fmt: skip
        path = f"/dev/video{source}" if source.isdecimal() and driver == "v4l2" else source
        if driver == "v4l2" and not os.path.exists(path):
            raise DecodeError(f"There is no camera {path}; see /dev/video* for those that are connected.")
        return av.open(path, format=driver, options={**limits, "format_whitelist": driver})


class _Datagrams:
    """What is sent to a UDP port.

    ``udp://239.1.2.3:5000`` joins a multicast group; ``udp://@:5000`` takes what comes in on any address of this
    machine.
    """

    format = None  # libav finds it out

    def __init__(self, owner: LiveInput, url: SplitResult) -> None:
        self._owner, self._rest = owner, b""
        if url.port is None:
            raise DecodeError(f"{owner.name} names no port; write udp://HOST:PORT.")
        family, _, _, _, address = socket.getaddrinfo(url.hostname or "0.0.0.0", url.port, type=socket.SOCK_DGRAM)[0]
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):  # the system may allow less
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _DATAGRAMS_BYTES)
            self._socket.settimeout(_POLL_SECONDS)
            self._socket.bind(address)
            group = ipaddress.ip_address(str(address[0]).partition("%")[0])
            if group.is_multicast and group.version == 4:
                self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group.packed + bytes(4))
            elif group.is_multicast:
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group.packed + bytes(4))
        except BaseException:  # Ctrl-C too
            self._socket.close()
            raise

    def read(self, size: int) -> bytes:
        while not self._rest:
            self._owner.remaining()
            with suppress(TimeoutError):
                self._rest = self._socket.recv(65536)
        found, self._rest = self._rest[:size], self._rest[size:]
        return found

    def interrupt(self) -> None:
        """`read` looks by itself whether to end."""

    def close(self) -> None:
        self._socket.close()


class _Response:
    """The body of the answer to one GET; redirections are not followed."""

    def __init__(self, owner: LiveInput, url: SplitResult) -> None:
        self._owner = owner
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(url.hostname or "", url.port, timeout=owner.remaining())
        try:
            self._connection.connect()
            self._socket = self._connection.sock  # which the connection gives away with a last answer
            self._answer = self._ask(url)
        except BaseException:  # Ctrl-C too
            self._connection.close()
            raise
        parts = self._answer.headers.get_content_type() == "multipart/x-mixed-replace"
        self.format = "mpjpeg" if parts else None

    def _ask(self, url: SplitResult) -> http.client.HTTPResponse:
        headers = {"User-Agent": "video-mamba-zoo", "Accept": "*/*"}
        if url.username is not None:
            login = f"{unquote(url.username)}:{unquote(url.password or '')}"
            headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
        self._connection.request("GET", urlunsplit(("", "", url.path or "/", url.query, "")), headers=headers)
        answer = self._connection.getresponse()
        if 300 <= answer.status < 400:
            target = answer.headers.get("Location", "an address that it does not name")
            raise DecodeError(f"{self._owner.name} redirects to {_without_password(target[:200])}; name that address "
                              "yourself if you trust it.")  # fmt: skip
        if answer.status != 200:
            raise DecodeError(f"{self._owner.name} answers {answer.status} {answer.reason:.100}; check the address and "
                              "the login.")  # fmt: skip
        return answer

    def read(self, size: int) -> bytes:
        if self._answer.isclosed():  # by itself, at the end
            return b""
        self._socket.settimeout(self._owner.remaining())
        return self._answer.read1(size)

    def interrupt(self) -> None:
        with suppress(OSError):  # closed already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._answer.close()
        self._connection.close()


def _without_password(source: str) -> str:
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1@", source)
