"""Exact frame access in video files and still images, with PyAV.

The order of frames is the order of presentation: frame i is the i-th frame of a full decode. The index is built from
packets alone (nothing is decoded), and reading jumps to the key frame before a wanted frame where that skips work:

    packets (file order)   I0 P3 B1 B2 P6 B4 B5 | I7 P10 B8 B9 ...      wanted: 1 and 9
    decoded                I0 P3 B1                I7 P10 B8 B9
                                     -- seek -->

Whatever can replace PyAV later has to offer what the rest of the package uses: `VideoReader(path)` as a context
manager with `num_frames`, `pts_seconds` and `read`.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain
from typing import BinaryIO

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from datamodules.files import RemoteFile, is_url
from datamodules.transforms import resize_short_side

__all__ = ["MAX_PIXELS", "DecodeError", "VideoReader"]

MAX_PIXELS = 2**26
"""Largest frame accepted, in pixels (8192 x 8192): a damaged header must not ask for terabytes."""

_SEEK_GAIN_PACKETS = 4
"""A seek flushes the decoder; it has to spare at least this many packets to be worth it."""


class DecodeError(RuntimeError):
    """A file cannot be read as video; the message is one sentence with the file's name and the remedy."""


class _IndexMismatch(Exception):
    """Decoded time stamps are not those of the packets, so positions cannot be told from them."""


class _Nameless:
    """A file without its name, since libav guesses formats, image sequences and protocols from names."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell

    def seekable(self) -> bool:
        return True


class VideoReader:
    """Reads frames of one video file (or still image, a video of one frame) by position.

    A context manager; sound and other streams are ignored. `num_frames` counts the packets that the file really holds,
    so a file that was cut off can be read as far as it goes. See `read` for what happens with damaged frames.

    Args:
        path: file, local or a URL that fsspec knows (`s3://`, `hf://`, ...), which is read in blocks.
        num_threads: threads of the decoder; 1 suits loader workers, 0 takes all cores.

    Raises:
        DecodeError: the file is missing, empty, cut off before its index, not a video, without a video stream or frame,
            or claims frames of more than `MAX_PIXELS`.
    """

    def __init__(self, path: str | os.PathLike[str], *, num_threads: int = 1) -> None:
        self.path = os.fspath(path)
        self._num_threads = num_threads
        self._converter = VideoReformatter()  # kept, since setting one up costs as much as converting a small frame
        self._first_decoded: av.VideoFrame | None = None
        self._open()
        try:
            self._build_index()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.num_frames

    def close(self) -> None:
        """Closes the file; the reader is of no use afterwards."""
        if self._container is not None:
            self._container.close()
        self._file.close()

    @property
    def fps(self) -> float:
        """Average frames per second; 25 where the file does not tell."""
        rate = self._stream.average_rate or self._stream.guessed_rate
        return float(rate) if rate else 25.0

    @property
    def duration_seconds(self) -> float:
        """Time from the first frame to the end of the last one."""
        return float(self.pts_seconds[-1]) + 1.0 / self.fps

    @property
    def rotation(self) -> int:
        """Clockwise turn that the file asks for: 0, 90, 180 or 270 degrees. `read` applies it."""
        return _clockwise_degrees(self._any_frame)

    @property
    def width(self) -> int:
        """Pixels per row as shown, after `rotation`."""
        return self._any_frame.height if self.rotation % 180 else self._any_frame.width

    @property
    def height(self) -> int:
        """Rows as shown, after `rotation`."""
        return self._any_frame.width if self.rotation % 180 else self._any_frame.height

    def read(
        self, indices: Sequence[int] | np.ndarray, *, short_side: int | None = None, interpolation: str = "bilinear"
    ) -> Tensor:
        """Frames at the given positions, in the given order, which may be unsorted and repeat itself.

        A frame that cannot be decoded is replaced by the nearest one that can, with a warning; when that would be more
        than half of the different frames asked for, the file counts as unreadable.

        Args:
            indices: positions in 0 .. num_frames - 1.
            short_side: length in pixels to which the shorter side is resized, frame by frame, so that memory stays
                small for large videos; None keeps the size.
            interpolation: see `transforms.resize_short_side`.

        Returns:
            uint8 (T, 3, H, W), RGB.

        Raises:
            IndexError: a position is outside the video.
            DecodeError: fewer than half of the frames can be decoded.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if indices.ndim != 1 or len(indices) == 0:
            raise ValueError(f"indices have to be a non-empty list of frame positions, got shape {indices.shape}.")
        if indices.min() < 0 or indices.max() >= self.num_frames:
            raise IndexError(
                f"{self.path} has {self.num_frames} frames: positions have to be in 0 .. {self.num_frames - 1}, "
                f"got {indices.min()} .. {indices.max()}."
            )
        wanted, inverse = np.unique(indices, return_inverse=True)
        frames: Tensor | None = None
        found = np.zeros(len(wanted), dtype=np.int64)
        for slot, (position, frame) in enumerate(self._wanted_frames(wanted.tolist())):
            self._first_decoded = self._first_decoded or frame
            image = self._to_tensor(frame)[None]
            if short_side is not None:
                image = resize_short_side(image, short_side, interpolation)
            if frames is None:
                frames = torch.empty((len(wanted), *image.shape[1:]), dtype=torch.uint8)
            frames[slot] = image[0]
            found[slot] = position
        if frames is None:
            raise self._undecodable()
        self._judge(wanted, found)
        return frames if np.array_equal(wanted, indices) else frames[torch.from_numpy(inverse)]

    # Opening -------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._container = None
        self._file = _open_file(self.path)
        try:
            options = {"max_pixels": str(MAX_PIXELS)}  # also guards what libav decodes while it probes
            self._container = av.open(_Nameless(self._file), mode="r", metadata_errors="replace", options=options)
            self._stream = self._pick_stream()
        except (av.FFmpegError, OSError) as error:
            self._file.close()
            raise DecodeError(
                f"{self.path} cannot be opened as a video ({error.strerror}): it is cut off or not a video; "
                "copy it again or convert it to .mp4."
            ) from error
        except DecodeError:
            self.close()
            raise

    def _pick_stream(self) -> av.VideoStream:
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in self._container.streams.video if not stream.disposition & cover]
        if not streams:
            raise DecodeError(
                f"{self.path} has no video stream (only sound or data); remove it from the list of videos."
            )
        stream = streams[0]
        if stream.codec_context is None:
            raise DecodeError(
                f"{self.path} is coded in a way that this build of FFmpeg cannot decode; convert it to H.264."
            )
        self._check_size(stream.codec_context.width, stream.codec_context.height)
        stream.codec_context.thread_count = self._num_threads
        if self._num_threads != 1:
            stream.thread_type = "AUTO"
        return stream

    def _check_size(self, width: int, height: int) -> None:
        if width * height > MAX_PIXELS:
            raise DecodeError(
                f"{self.path} claims frames of {width} x {height} pixels, above the limit of {MAX_PIXELS} pixels; "
                "its header is damaged or it has to be scaled down first."
            )

    def _build_index(self) -> None:
        """Sets num_frames, pts_seconds and, where positions follow from time stamps, what seeking needs."""
        # Only numbers are kept: the packets together are the whole file.
        shown = [(packet.pts, packet.is_keyframe) for packet in self._demux() if packet.size and not packet.is_discard]
        self.num_frames = len(shown)
        if not shown:
            raise DecodeError(f"{self.path} holds no video frame: it is cut off or damaged; copy or download it again.")
        pts = [time for time, _ in shown]
        # AVI stores no presentation times: libav guesses them, and wrongly where frames are reordered.
        trusted = None not in pts and len(set(pts)) == len(pts) and self._container.format.name != "avi"
        if trusted:
            self._pts = np.sort(np.asarray(pts, dtype=np.int64))
            self._position = {time: position for position, time in enumerate(self._pts.tolist())}
            self._packet_of, self._key_of = _key_frames(shown, self._position)
            time_base = self._stream.time_base or Fraction(1, 1)
            self.pts_seconds = (self._pts - self._pts[0]) * float(time_base)
        else:
            self._position = None
            self.pts_seconds = np.arange(self.num_frames) / self.fps
        self._passes = [self._read_seeking, self._read_through] if trusted else []
        self._passes.append(self._read_counting)

    @property
    def _any_frame(self) -> av.VideoFrame:
        """The frame whose size and rotation count for the whole file: the first that was decoded."""
        if self._first_decoded is None:
            _, self._first_decoded = next(self._wanted_frames([0]), (0, None))
        if self._first_decoded is None:
            raise self._undecodable()
        return self._first_decoded

    # Reading -------------------------------------------------------------------------------------------------------

    def _wanted_frames(self, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """(position found, frame) per wanted position (sorted, distinct); another position stands in for a lost one."""
        delivered = 0
        while True:
            try:
                for found in self._passes[0](wanted[delivered:]):
                    yield found
                    delivered += 1
                return
            except _IndexMismatch:
                # What was handed out was verified; the file is read in the next, more careful way from here on.
                del self._passes[0]

    def _read_seeking(self, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Seeks where that spares work and leaves out what nothing refers to; a lost frame is a mismatch."""
        needed = set(self._pts[wanted].tolist())
        frames, current = None, -1
        for target in wanted:
            key = int(self._key_of[target])
            if frames is None or self._packet_of[key] - self._packet_of[current] > _SEEK_GAIN_PACKETS:
                frames, current = self._decode_from_key(key, needed), -1
            while current < target:
                frame = next(frames, None)
                position = None if frame is None else self._position.get(frame.pts)
                if position is None or position <= current:
                    raise _IndexMismatch
                current = position
            if current > target:
                raise _IndexMismatch
            yield target, frame

    def _read_through(self, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decodes from the start and places frames by time stamp, which shows which ones are lost."""

        def placed() -> Iterator[tuple[int, av.VideoFrame]]:
            last = -1
            for frame in self._decode_all():
                position = self._position.get(frame.pts)
                if position is None or position <= last:
                    raise _IndexMismatch
                last = position
                yield position, frame

        return _nearest(wanted, placed())

    def _read_counting(self, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decodes from the start and counts: for files without usable time stamps."""
        return _nearest(wanted, enumerate(self._decode_all()))

    def _decode_from_key(self, key: int, needed: set[int]) -> Iterator[av.VideoFrame]:
        try:
            self._container.seek(int(self._pts[key]), stream=self._stream)
        except (av.FFmpegError, OSError) as error:
            raise _IndexMismatch from error
        packets = self._demux()
        first = next(packets, None)
        landed = None if first is None else self._position.get(first.pts)
        late = landed is None or self._packet_of[landed] > self._packet_of[key]
        if first is None or (late and not first.is_discard):
            raise _IndexMismatch
        return self._decode(chain([first], packets), needed)

    def _decode_all(self) -> Iterator[av.VideoFrame]:
        """Decodes from the start after reopening, as not every format can seek, nor to before time 0."""
        self.close()
        self._open()
        return self._decode(self._demux())

    def _decode(self, packets: Iterator[av.Packet], needed: set[int] | None = None) -> Iterator[av.VideoFrame]:
        """Frames in presentation order, stepping over packets that fail.

        With `needed` (time stamps), frames that are neither needed nor referred to by others may be left out: half of
        the work with the B-frames of common encoders.
        """
        for packet in packets:
            if needed is not None:
                self._stream.codec_context.skip_frame = "DEFAULT" if packet.pts in needed else "NONREF"
            try:
                frames = packet.decode()
            except (av.FFmpegError, OSError):
                continue
            for frame in frames:
                self._check_size(frame.width, frame.height)
                yield frame

    def _demux(self) -> Iterator[av.Packet]:
        while True:
            try:
                yield from self._container.demux(self._stream)
                return
            except IndexError:
                continue  # PyAV, at the first packet of a stream that begins late in the file: go on behind it
            except (av.FFmpegError, OSError):
                return  # the file ends in the middle of a packet: what came before counts

    def _to_tensor(self, frame: av.VideoFrame) -> Tensor:
        width, height = self._any_frame.width, self._any_frame.height  # a stream may change its size on the way
        try:
            rgb = self._converter.reformat(frame, width, height, format="rgb24", threads=1).to_ndarray()
        except (av.FFmpegError, ValueError) as error:
            raise DecodeError(
                f"{self.path} has frames of the pixel format {frame.format.name}, which cannot be turned into RGB; "
                "convert it to .mp4."
            ) from error
        return torch.from_numpy(np.ascontiguousarray(np.rot90(rgb, -self.rotation // 90).transpose(2, 0, 1)))

    def _undecodable(self) -> DecodeError:
        return DecodeError(f"{self.path} is damaged: not one frame of it can be decoded; copy or download it again.")

    def _judge(self, wanted: np.ndarray, found: np.ndarray) -> None:
        lost = int((wanted != found).sum())
        if 2 * lost > len(wanted):
            raise DecodeError(
                f"{self.path} is damaged: {lost} of the {len(wanted)} frames asked for cannot be decoded; "
                "copy or download it again."
            )
        if lost:
            warnings.warn(
                f"{self.path} is damaged: {lost} of the {len(wanted)} frames asked for cannot be decoded and are "
                "replaced by their neighbours.",
                stacklevel=3,
            )


def _open_file(path: str) -> BinaryIO:
    if is_url(path):
        return _open_url(path)
    if not os.path.exists(path):
        raise DecodeError(f"{path} does not exist; check the path.")
    if os.path.isdir(path):
        raise DecodeError(f"{path} is a folder, not a video file; give the path of one file.")
    try:
        file = open(path, "rb")  # noqa: SIM115  (closed by the reader)
    except OSError as error:
        raise DecodeError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error
    if os.fstat(file.fileno()).st_size == 0:
        file.close()
        raise DecodeError(f"{path} is empty (0 bytes); copy or download it again.")
    return file


class _Url(RemoteFile):
    """A lost connection must not look like the end of the file, which libav would be content with."""

    def read(self, size: int = -1) -> bytes:
        try:
            return super().read(size)
        except OSError as error:
            raise DecodeError(f"{self.url} cannot be read ({error.strerror}); check the connection.") from error


def _open_url(url: str) -> BinaryIO:
    try:
        file = _Url(url)
        num_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)
    except FileNotFoundError as error:
        raise DecodeError(f"{url} does not exist; check the path.") from error
    except IsADirectoryError as error:
        raise DecodeError(f"{url} is a folder, not a video file; give the path of one file.") from error
    except OSError as error:
        raise DecodeError(f"{url} cannot be read ({error.strerror}); check your access and the connection.") from error
    if num_bytes == 0:
        file.close()
        raise DecodeError(f"{url} is empty (0 bytes); copy or download it again.")
    return file


def _key_frames(packets: list[tuple[int, bool]], position: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """For each position of presentation: its packet's place in the file, and the position of the key frame to seek to.

    `packets` has (time stamp, is it a key frame) in file order.

    That key frame comes before it in the file and in presentation. (Frames that follow a key frame in the file and are
    shown before it may refer to the group before.)
    """
    packet_of = np.zeros(len(packets), dtype=np.int64)
    key_of = np.zeros(len(packets), dtype=np.int64)
    keys: list[int] = []
    for place, (time, is_key) in enumerate(packets):
        shown = position[time]
        packet_of[shown] = place
        if is_key:
            keys.append(shown)
        key_of[shown] = next((key for key in reversed(keys) if key <= shown), 0)
    return packet_of, key_of


def _nearest(wanted: list[int], frames: Iterator[tuple[int, av.VideoFrame]]) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frame at each wanted position or, where `frames` (sorted by position) lacks it, its nearest neighbour."""
    before: tuple[int, av.VideoFrame] | None = None
    after = next(frames, None)
    for target in wanted:
        while after is not None and after[0] < target:
            before, after = after, next(frames, None)
        candidates = [item for item in (before, after) if item is not None]
        if not candidates:
            return
        yield min(candidates, key=lambda item: abs(item[0] - target))


def _clockwise_degrees(frame: av.VideoFrame) -> int:
    # libav gives the counter-clockwise angle of the display matrix.
    return -round(frame.rotation / 90) * 90 % 360
