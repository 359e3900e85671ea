"""Streams for tests: an HTTP server that sends frames one by one as it is told, and a sender of UDP at a video's speed.

python tests/stream_server.py udp://127.0.0.1:5000 clip.mp4     sends it over and over, until it is killed
"""

import socket
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from fractions import Fraction

import av
import numpy as np

__all__ = ["StreamServer", "send_udp"]

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\nConnection: close\r\n\r\n"
_LIVE = {"preset": "ultrafast", "tune": "zerolatency", "crf": "18"}


class StreamServer:
    """Sends frames as MPEG-TS to every client, as many as `release` has allowed; each asker gets the rest of them.

    A context manager; on loopback, at `url`.
    """

    def __init__(self, frames: Iterable[np.ndarray], fps: int, port: int = 0) -> None:
        self._frames, self._fps = iter(frames), fps
        self._allowed = threading.Semaphore(0)
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/stream"
        self.connections = 0
        self._open: socket.socket | None = None
        self._over = False
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "StreamServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._allowed.release(10_000)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        self._thread.join()

    def release(self, count: int) -> None:
        """Let that many more frames go."""
        self._allowed.release(count)

    def hang_up(self) -> None:
        """Break off the connection, as where the sender dies."""
        with suppress(OSError, AttributeError):
            self._open.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        while not self._over:
            try:
                self._open, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with self._open, suppress(OSError, av.FFmpegError):
                self._open.recv(65536)
                self._open.sendall(_HEAD)
                self._send(_Socket(self._open))

    def _send(self, out: "_Socket") -> None:
        with av.open(out, "w", format="mpegts", options={"flush_packets": "1"}) as target:
            stream = None
            number = 0
            while not self._over:
                self._allowed.acquire()
                frame = None if self._over else next(self._frames, None)
                if frame is None:
                    target.mux(stream.encode()) if stream is not None else None
                    return
                if stream is None:
                    stream = target.add_stream("libx264", rate=self._fps, options={**_LIVE, "g": str(self._fps)})
                    stream.height, stream.width = frame.shape[:2]
                    stream.pix_fmt = "yuv420p"
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                picture.pts, picture.time_base = number, Fraction(1, self._fps)
                target.mux(stream.encode(picture))
                number += 1


class _Socket:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def write(self, content: bytes) -> int:
        self._connection.sendall(content)
        return len(content)


def send_udp(address: str, path: str) -> None:
    """Send a video at its own speed, over and over."""
    with av.open(path) as source:
        frames = [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]
        fps = source.streams.video[0].average_rate
    with av.open(f"{address}?pkt_size=1316", "w", format="mpegts") as target:
        stream = target.add_stream("libx264", rate=fps, options={**_LIVE, "g": str(round(fps))})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        start, number = time.monotonic(), 0
        while True:
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                picture.pts, picture.time_base = number, 1 / fps
                target.mux(stream.encode(picture))
                number += 1
                time.sleep(max(0.0, start + number / float(fps) - time.monotonic()))


if __name__ == "__main__":
    send_udp(*sys.argv[1:])
