"""Clips of a video of any length in one pass over the file, in memory that does not grow with it.

    frames     | . . . . . . . . . . . . . . . . . . . . . . . . . . . . |   decoded in order, each at most once
    samples    |   x     x     x     x     x     x     x     x     x     |   shown in the middle of each `period`
    windows    |   [---------------]                                     |   T samples each (here 4)
               |               [---------------]                         |   a new one every `step` samples (here 2)
               |                           [---------------]             |
               |                                 [---------------]       |   the last one ends with the file

Windows share their samples, so that a frame is decoded and scaled once however much they overlap; only the last T
samples are kept. Sample i is the frame that a player shows at (i + 1/2) `period` seconds after the first frame: with a
period of window / T these are the middles of T equal intervals of the window, as `sampling.clip_indices` picks them in
mode "val".
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice, repeat
from typing import NamedTuple, Protocol, Self, TypeAlias

import av
import torch
from torch import Tensor
from typing_extensions import override

from datamodules.errors import DataError
from datamodules.video.decode import VideoReader
from datamodules.video.frames import FrameFolder
from datamodules.video.resize import center_crop, to_clip

__all__ = ["FrameStream", "Window", "stream_windows"]

_REORDERED = 32
"""Packets around one in which the next time stamp is looked for; decoders reorder at most 16 frames."""


class Window(NamedTuple):
    """A clip of a stream: what it shows from `start` to `end`, in seconds since the first frame of the file.

    `video` is uint8 (3, T, H, W).
    """

    start: float
    end: float
    video: Tensor


def stream_windows(
    stream: "FrameStream",
    *,
    num_frames: int,
    period: float,
    step: int,
    image_size: int,
    short_side: int,
    interpolation: str = "bilinear",
) -> Iterator[Window]:
    """Overlapping clips of a stream, in order, as soon as their last frame has been read.

    The whole file is covered: the last window ends with it, and overlaps the one before by more than the others where
    its length asks for that. A file shorter than one window is one window, its frames spread over T places.

    Args:
        stream: at its beginning.
        num_frames: T, frames of a clip.
        period: seconds between two of them.
        step: frames from one window's start to the next one's, 1 .. num_frames.
        image_size: H = W in pixels, cut from the middle.
        short_side: length of the shorter side before that, at least image_size.
        interpolation: see `resize.resize_short_side`.

    Raises:
        DecodeError: not one frame can be decoded.
        DataError: period or step is out of range.
    """
    if not period > 0 or not 1 <= step <= num_frames:
        raise DataError(f"period {period} has to be above 0 and step {step} in 1 .. num_frames = {num_frames}.")
    kept: deque[Tensor] = deque(maxlen=num_frames)
    count = complete = 0
    for frame in stream.samples(period, short_side, interpolation):
        kept.append(to_clip(center_crop(frame[None], image_size))[:, 0])
        count += 1
        if count == num_frames + complete * step:
            yield Window(complete * step * period, count * period, torch.stack(list(kept), dim=1))
            complete += 1
    if count < num_frames:
        spread = [kept[(2 * place + 1) * count // (2 * num_frames)] for place in range(num_frames)]
        yield Window(0.0, stream.seconds, torch.stack(spread, dim=1))
    elif count > num_frames + (complete - 1) * step:
        yield Window((count - num_frames) * period, stream.seconds, torch.stack(list(kept), dim=1))


Draw: TypeAlias = Callable[[int, str], Tensor]
"""Makes a frame uint8 (3, H, W), given its shorter side in pixels and the interpolation."""


class Source(Protocol):
    """Where a `FrameStream` gets its frames.

    Attributes:
        fps: frames per second, on average.
        expected_seconds: length that the source claims to have, None where it does not.
        end_seconds: when the last frame so far is no longer shown.
    """

    fps: float
    expected_seconds: float | None
    end_seconds: float

    def timed(self, period: float) -> Iterator[tuple[float, Draw]]:
        """(seconds since the first frame, what draws it), in order of presentation."""

    def __exit__(self, *_: object) -> None: ...


class FrameStream:
    """Reads a video file, or a folder of its frames, from the first frame to the last, once.

    A context manager. Damaged frames are skipped: the one before stays on display. Time stamps that are missing, go
    back, or lie far beyond the end of the file are replaced by the frame rate.

    Args:
        source: path, local or a URL that fsspec knows; or where else frames come from, such as a camera.

    Attributes:
        expected_seconds: those of the source, and so is fps.
        seconds: how far it has been read; at the end, the length of the video.

    Raises:
        DecodeError: the file is missing, empty or not readable as video.
    """

    def __init__(self, source: str | os.PathLike[str] | Source) -> None:
        if isinstance(source, str | os.PathLike):
            path = os.fspath(source)
            source = _FolderSource(path) if os.path.isdir(path) else _FileSource(path, num_threads=0)
        self._source, self.expected_seconds, self.fps = source, source.expected_seconds, source.fps
        self.seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.__exit__()

    def samples(self, period: float, short_side: int, interpolation: str = "bilinear") -> Iterator[Tensor]:
        """The frame on display in the middle of each `period` seconds, uint8 (3, H, W), and at least one.

        Args:
            period: seconds between two samples; a frame that is on display for longer is given again.
            short_side: length in pixels of the shorter side.

        Raises:
            DecodeError: not one frame can be decoded.
        """
        end: tuple[float | None, Draw | None] = (None, None)
        taken, shown = 0, None
        for seconds, image in chain(self._source.timed(period), [end]):
            # What was shown so far was on display until now, the last frame until the end of the file.
            self.seconds = self._source.end_seconds if seconds is None else seconds
            until = max(_samples_before(self.seconds, period), 1 if seconds is None else 0)
            if shown is not None and until > taken:
                scaled = shown(short_side, interpolation)
                for _ in range(until - taken):
                    yield scaled
                taken = until
            shown = image


def _samples_before(seconds: float, period: float) -> int:
    """Count the times (i + 1/2) period that are less than `seconds`."""
    return max(0, math.ceil(seconds / period - 0.5 - 1e-9))


class _FileSource(VideoReader):
    """Frames of a video file with their times, without the index of the file that reading by position takes."""

    _probes = True  # frames are to come out of the decoder in order from the first one on

    @override
    def _build_index(self) -> None:
        length = self._stream.duration and float(self._stream.duration * self.time_base)
        self.expected_seconds: float | None = length or (self._container.duration or 0) / av.time_base or None
        self.end_seconds = 0.0

    def timed(self, period: float) -> Iterator[tuple[float, Draw]]:
        unsure = self._container.format.name == "avi"  # it stores no presentation times, libav guesses them
        # A damaged stamp may lie days ahead, and every sample until then would be the same frame.
        latest = 60.0 + 2 * self.expected_seconds if self.expected_seconds else math.inf
        first, last = None, -1.0 / self.fps
        packets = self._demux()
        for frame in self._decode(zip(packets, repeat(True)) if unsure else self._marked(packets, period)):
            self._first_decoded = self._first_decoded or frame
            seconds = last + 1.0 / self.fps
            if frame.pts is not None and not unsure:
                first = frame.pts if first is None else first
                shown_at = float((frame.pts - first) * (frame.time_base or self.time_base))
                seconds = shown_at if last < shown_at < latest else seconds
            last = seconds
            self.end_seconds = seconds + 1.0 / self.fps
            yield seconds, partial(self._picture, frame)
        if self._first_decoded is None:
            raise self._undecodable()

    def _picture(self, frame: av.VideoFrame, short_side: int, interpolation: str) -> Tensor:
        return self._paint(self._painter(short_side, interpolation), frame).permute(2, 0, 1)

    def _marked(
        self, packets: Iterator["av.Packet[av.VideoStream]"], period: float
    ) -> Iterator[tuple["av.Packet[av.VideoStream]", bool]]:
        """Each packet, and whether its frame is on display at a sample: until the next time stamp around it."""
        ahead = deque(islice(packets, _REORDERED))
        behind: deque[int] = deque(maxlen=_REORDERED)
        starts = [packet.pts for packet in ahead if packet.pts is not None and packet.size and not packet.is_discard]
        first, tick = min(starts, default=0), float(self._stream.time_base or 1)
        while ahead:
            packet = ahead[0]
            needed = True
            if packet.pts is not None:
                around = chain(behind, (other.pts for other in ahead if other.pts is not None))
                next_pts = min((pts for pts in around if pts > packet.pts), default=None)
                if next_pts is not None:
                    here, there = ((pts - first) * tick for pts in (packet.pts, next_pts))
                    needed = _samples_before(there, period) > _samples_before(here, period)
                behind.append(packet.pts)
            ahead.popleft()
            ahead.extend(islice(packets, 1))
            yield packet, needed


class _FolderSource(FrameFolder):
    """The pictures of a folder with their times."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.expected_seconds: float | None = self.num_frames / self.fps
        self.end_seconds = self.num_frames / self.fps

    def timed(self, period: float) -> Iterator[tuple[float, Draw]]:
        for position, seconds in enumerate(self.pts_seconds.tolist()):
            yield seconds, partial(self._picture, position)

    def _picture(self, position: int, short_side: int, interpolation: str) -> Tensor:
        return self.read([position], short_side=short_side, interpolation=interpolation)[0]
