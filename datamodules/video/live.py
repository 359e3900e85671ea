"""The newest clip of a stream that does not wait: a camera, an address, or a file at its own speed.

    stream     | . . . . . . . . . . . . . . . . . . . . . . . . . . .      decoded in a thread of its own
    samples    |   x     x     x     x     x     x     x     x     x        one each `period`; the last T are kept
    windows    |   [---------------]                                        the caller gets the newest T
               |               ^ works on it ...                            meanwhile samples come and go,
               |                           [---------------]                and are dropped where nobody asks

So what is shown is never older than the time that its reader takes. Lost streams are opened again.
"""

import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import NamedTuple, Self

import av
import torch
from torch import Tensor
from typing_extensions import override

from datamodules.errors import DataError
from datamodules.video.live_opening import Ended, LiveInput, is_live
from datamodules.video.opening import DecodeError, check_size
from datamodules.video.pixels import Painter
from datamodules.video.resize import center_crop, to_clip
from datamodules.video.streaming import Draw, FrameStream, Source

__all__ = ["LiveStream", "LiveWindow", "StreamLost"]

_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 8.0
_JOIN_SECONDS = 2.0
_JUMP_SECONDS = 10.0
"""Time stamps that go further ahead have started anew."""
_WAKE_SECONDS = 0.5
"""How often a wait looks up, where the system does not interrupt it for Ctrl-C."""


class StreamLost(UserWarning):
    """A stream has broken off and is looked for."""


class LiveWindow(NamedTuple):
    """The newest clip: what the stream showed from `start` to `end`, in seconds since its first frame.

    `video` is uint8 (3, T, H, W); `arrived` is when its last frame had come, on the stream's clock.
    """

    start: float
    end: float
    video: Tensor
    arrived: float


class LiveStream:
    """Reads a stream in a thread of its own, which keeps the newest frames only. A context manager.

    Args:
        source: a camera (0, /dev/video0), an address (``rtsp://``, ``udp://``, ``http://``, ``https://``), or a file or
            folder of frames, which is read at its own speed.
        timeout: seconds without a frame after which a stream counts as lost.
        reconnect: seconds for which a lost stream is looked for, at growing distances; 0 takes its first end as the
            end.
        clock: seconds that only grow.

    Attributes:
        name: the source, without its password.
        fps: frames per second that the stream claims.
        seconds: how far it has been read, since its first frame.
        sampled: frames so far, one each period.
        dropped: those among them that came and went between two windows.

    Raises:
        DecodeError: it cannot be opened as video.
    """

    name: str
    fps: float

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        timeout: float = 10.0,
        reconnect: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._timeout, self._reconnect, self.clock = os.fspath(source), timeout, reconnect, clock
        self.seconds, self.sampled, self.dropped = 0.0, 0, 0
        self._given = 0  # of the samples, up to the end of the last window
        self._kept: deque[tuple[Tensor, float]] = deque()
        self._stop, self._news = threading.Event(), threading.Condition()
        self._messages: list[str] = []
        self._frames: FrameStream | None = None
        self._live: _LiveFrames | None = None  # where these come from, if not from a file
        self._take: Callable[[], None] | None = None  # what `windows` asks the thread to do
        self._begun: float | None = None  # when the first frame came
        self._heard = clock()  # when the last one came
        self._wait = _FIRST_WAIT_SECONDS
        self._failure: BaseException | None = None
        self._done = False
        # Opened by the thread, too: libav cannot be interrupted while it waits for an answer.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        try:
            with self._news:
                while self._frames is None and not self._done:
                    self._news.wait(_WAKE_SECONDS)
        except KeyboardInterrupt:
            self.close()
            raise
        if self._frames is None:
            assert self._failure is not None
            raise self._failure
        self.name = self._source if self._live is None else self._live.input.name
        self.fps = self._frames.fps

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread; one that waits in libav is left to that."""
        self._stop.set()
        with self._news:
            self._news.notify_all()
        if self._live is not None:
            self._live.input.interrupt()
        self._thread.join(_JOIN_SECONDS)

    @property
    def dropped_share(self) -> float:
        """Of the frames so far, those that came and went between two windows, in [0, 1]."""
        return self.dropped / max(self.sampled, 1)

    def windows(
        self,
        *,
        num_frames: int,
        period: float,
        step: int,
        image_size: int,
        short_side: int,
        interpolation: str = "bilinear",
    ) -> Iterator[LiveWindow]:
        """The newest clip each time that one is asked for, once it has `step` new samples; to be called once.

        No window reaches over a gap in the stream. A stream that ends before its first window is one window, its
        frames spread over T places.

        The arguments are those of `streaming.stream_windows`.

        Raises:
            DecodeError: the stream was lost and is not back in time, or not one frame can be decoded.
            DataError: period or step is out of range.
        """
        if not period > 0 or not 1 <= step <= num_frames:
            raise DataError(f"period {period} has to be above 0 and step {step} in 1 .. num_frames = {num_frames}.")

        def is_ready() -> bool:
            return len(self._kept) == num_frames and self.sampled - self._given >= step

        with self._news:
            self._kept = deque(maxlen=num_frames)
            self._take = partial(self._take_samples, period, image_size, short_side, interpolation)
            self._news.notify_all()
        done = False
        while not done:
            with self._news:
                self._news.wait_for(lambda: self._done or self._messages or is_ready(), _WAKE_SECONDS)
                done, messages, self._messages = self._done, self._messages, []
                window = self._newest(num_frames, period) if done or is_ready() else None
            for message in messages:
                warnings.warn(message, StreamLost, stacklevel=2)
            if window is not None:
                yield window
        if self._failure is not None:
            raise self._failure

    def _newest(self, num_frames: int, period: float) -> LiveWindow | None:
        """What is kept, if some of it is new and it is a whole window or all there was."""
        new, count = self.sampled - self._given, len(self._kept)
        if new == 0 or count == 0 or (count < num_frames and self._given):
            return None
        self.dropped += max(0, new - count)
        self._given = self.sampled
        pictures = [picture for picture, _ in self._kept]
        if count < num_frames:
            pictures = [pictures[(2 * place + 1) * count // (2 * num_frames)] for place in range(num_frames)]
        start = max(self.seconds - count * period, 0.0)
        return LiveWindow(start, self.seconds, torch.stack(pictures, dim=1), self._kept[-1][1])

    # The thread -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._open_first()
            with self._news:
                self._news.notify_all()
                self._news.wait_for(lambda: self._take or self._stop.is_set())
            while not self._stop.is_set():
                reason = self._until_lost()
                if reason is None:
                    break
                self._find_again(reason)
        except BaseException as error:  # for the caller of windows
            self._failure = error
        finally:
            if self._frames is not None:
                self._frames.__exit__()
            with self._news:
                self._done = True
                self._news.notify_all()

    def _open(self) -> None:
        if is_live(self._source):
            self._live = _LiveFrames(LiveInput(self._source, self._timeout, self._stop))
        self._frames = FrameStream(self._live or self._source)

    def _open_first(self) -> None:
        """Open the source; what sends nothing may be about to start."""
        while True:
            try:
                return self._open()
            except Ended:
                if self._stop.is_set() or self.clock() - self._heard >= self._reconnect:
                    raise

    def _until_lost(self) -> DecodeError | None:
        """Take samples; why the stream has ended, if it may be back."""
        assert self._take is not None  # which `_run` has waited for
        try:
            self._take()
        except Ended as error:
            if self._stop.is_set():
                return None
            if self._reconnect == 0:
                raise
            return error
        may_be_back = self._live is not None and self._reconnect > 0 and not self._stop.is_set()
        return Ended(f"{self.name} has ended.") if may_be_back else None

    def _take_samples(self, period: float, image_size: int, short_side: int, interpolation: str) -> None:
        is_file, start = self._live is None, 0.0
        assert self._frames is not None
        with self._news:
            self._kept.clear()
        for number, picture in enumerate(self._frames.samples(period, short_side, interpolation), start=1):
            now = self.clock()
            if self._begun is None:
                self._begun = now if is_file else now - period
            if is_file:
                self._stop.wait(max(0.0, self._begun + number * period - now))
            elif number == 1:  # what came faster than it was filmed is ahead of the clock
                start = max(now - self._begun - period, self.seconds)
            if self._stop.is_set():
                return
            frame = to_clip(center_crop(picture[None], image_size))[:, 0]
            with self._news:
                self._heard, self._wait = self.clock(), _FIRST_WAIT_SECONDS
                self._kept.append((frame, self._heard))
                self.sampled += 1
                self.seconds = start + number * period
                self._news.notify_all()

    def _find_again(self, reason: DecodeError) -> None:
        """Open the stream anew, after waits that double until a frame comes, if it was not lost for too long."""
        assert self._frames is not None
        self._frames.__exit__()
        with self._news:
            self._messages.append(f"{str(reason).rstrip('.')} (looking for it for {self._reconnect:g} s).")
            self._news.notify_all()
        while not self._stop.wait(self._wait):
            self._wait = min(2 * self._wait, _LONGEST_WAIT_SECONDS)
            if self.clock() - self._heard > self._reconnect:
                raise DecodeError(f"{self.name} was lost and is not back after {self._reconnect:g} s; check that it "
                                  "runs.") from reason  # fmt: skip
            with suppress(DecodeError):
                self._open()
                return


class _LiveFrames(Source):
    """Frames of a camera or an address, with their times, until it breaks off."""

    def __init__(self, source: LiveInput) -> None:
        self.input = source
        self.expected_seconds: float | None = None
        self.end_seconds = 0.0
        try:
            if not source.container.streams.video:
                raise DecodeError(f"{source.name} sends no video; check the address.")
            self._stream = source.container.streams.video[0]
            if self._stream.codec_context is None:
                raise DecodeError(f"{source.name} is coded in a way that this build of FFmpeg cannot decode; send "
                                  "H.264.")  # fmt: skip
            self._stream.thread_type = "SLICE"  # threads of whole frames would hold frames back
        except DecodeError:
            source.close()
            raise
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps = float(rate) if rate else 25.0
        self._size: tuple[int, int] | None = None

    def __exit__(self, *_: object) -> None:
        self.input.close()

    @override
    def timed(self, period: float) -> Iterator[tuple[float, Draw]]:
        first, last = None, -1.0 / self.fps
        for frame in self._decoded():
            here = time.monotonic()
            if self.input.is_timed:
                here = last if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base)
            first = here if first is None else first
            if not last < here - first < last + _JUMP_SECONDS:
                first = here - (last + 1.0 / self.fps)
            last = here - first
            self.end_seconds = last + 1.0 / self.fps
            self.input.touch()
            yield last, partial(self._picture, frame)

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """Frames; those that cannot be decoded, as the first ones behind a gap, are left out."""
        while True:
            try:
                for packet in self.input.container.demux(self._stream):
                    self.input.remaining()
                    with suppress(av.FFmpegError):
                        for frame in packet.decode():
                            check_size(self.input.name, frame.width, frame.height)
                            yield frame
                return
            except IndexError:
                continue  # from PyAV, at the first packet of a stream that begins late
            except (av.FFmpegError, OSError) as error:
                raise Ended(f"{self.input.name} has broken off ({error.strerror}); check that it runs.") from error

    def _picture(self, frame: av.VideoFrame, short_side: int, interpolation: str) -> Tensor:
        self._size = self._size or (frame.width, frame.height)
        painter = Painter(*self._size, short_side=short_side, interpolation=interpolation)
        check_size(self.input.name, *painter.size[::-1])
        try:
            return painter.paint(frame).permute(2, 0, 1)
        except (av.FFmpegError, ValueError) as error:
            raise DecodeError(f"{self.input.name} has frames of the pixel format {frame.format.name}, which cannot be "
                              "turned into RGB; send H.264.") from error  # fmt: skip
