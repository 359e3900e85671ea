"""Exact frame access in video files and still images, with PyAV.

The order of frames is the order of presentation: frame i is the i-th frame of a full decode. The index comes from the
file's own tables or from its packets (nothing is decoded). Reading jumps to the key frame before a wanted frame where
that skips work, leaves out frames that neither are wanted nor serve others, and stops behind the last wanted packet:

    packets (file order)   I0 P3 B1 B2 P6 B4 B5 | I7 P10 B8 B9 ...      wanted: 1 and 9
    decoded                I0 P3 B1                I7 P10    B9
                                     -- seek -->

Every frame is identified by its time stamp before it is handed out. Where the index and the decoder disagree, the file
is read in more careful ways (`_passes`), so that wrong tables cost time and not exactness.

`datamodules.video.torchcodec_reader` is another reader.
"""

import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import repeat
from operator import attrgetter, ne
from typing import TypeAlias

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from datamodules.video.opening import DecodeError, Identity, check_size, identity, length_of, open_container, open_file
from datamodules.video.pixels import Painter
from datamodules.video.reader import Reader

__all__ = ["VideoReader", "forget_indices"]

_SEEK_GAIN_PACKETS = 4
"""A seek flushes the decoder; it has to spare at least this many packets to be worth it."""

_OPEN_GROUPS = 8
"""Key frames in a row that may be followed, in the file, by frames shown before them all."""

_KEPT_FRAMES = 2**20
"""Frames in all of the indices that a process remembers, 40 bytes each: a million, 3500 videos of ten seconds."""

_FORMATS = {
    (4, b"ftyp"): "mov",
    (4, b"moov"): "mov",
    (4, b"mdat"): "mov",
    (0, b"\x1a\x45\xdf\xa3"): "matroska",
    (8, b"AVI "): "avi",
}
"""libav's name of a container by four bytes near its start; asking all containers takes a fifth of the opening."""

_SELF_DESCRIBED = ("mov", "matroska")
"""Containers whose header says all there is to know of a stream."""

_IN_ORDER = ("mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "h263", "flv1", "mjpeg", "rawvideo", "huffyuv", "ffv1")
"""Codecs that output frames in the order of the file unless they say otherwise (`has_b_frames`)."""

_LINE = attrgetter("timestamp", "is_keyframe", "size", "is_discard")
"""Fields that are read from a line of libav's index."""


class _IndexMismatch(Exception):
    """Decoded time stamps are not those of the packets, so positions cannot be told from them."""


@dataclass(frozen=True, eq=False)
class _Index:
    """Index of the frames of a file; arrays are in order of presentation.

    Attributes:
        num_frames: how many there are.
        pts: int64, time stamps; none where they cannot be relied on, and the rest with them.
        packet_of: int64, the place of the frame's packet in the file.
        key_of: int64, position of the key frame to seek to.
        seconds: float64, since the first frame.
        in_order: frames come out of the decoder one by one, none may be missing in between.
        from_table: whether this comes from a table of the file instead of its packets.
    """

    num_frames: int
    pts: NDArray[np.int64]
    packet_of: NDArray[np.int64]
    key_of: NDArray[np.int64]
    seconds: NDArray[np.float64]
    in_order: bool = False
    from_table: bool = False

    def position(self, pts: int | None) -> int | None:
        """Return the position of the frame with this time stamp, or None."""
        if pts is None:
            return None
        place = int(self.pts.searchsorted(pts))
        return place if place < self.num_frames and self.pts.item(place) == pts else None


_indices: OrderedDict[Identity, _Index] = OrderedDict()
_NONE = np.empty(0, dtype=np.int64)

_Found: TypeAlias = Iterator[tuple[int, av.VideoFrame]]
"""Positions with their frames."""
_Packet: TypeAlias = "av.Packet[av.VideoStream]"


def forget_indices() -> None:
    """Empty what this process remembers of the files it has read."""
    _indices.clear()


class VideoReader(Reader):
    """Reads frames of one video file (or still image, a video of one frame) by position.

    Sound and other streams are ignored. `num_frames` counts the packets that the file really holds, so a file that was
    cut off can be read as far as it goes. A frame that cannot be decoded is replaced by the nearest one that can, with
    a warning; when that would be more than half of the different frames asked for, the file counts as unreadable. A
    process remembers the indices of the files it has read last (by path, size and time of change).

    Args:
        path: file, local or a URL that fsspec knows (`s3://`, `hf://`, ...), which is read in blocks.
        num_threads: threads of the decoder; 1 suits loader workers, 0 takes all cores.

    Raises:
        DecodeError: the file is missing, empty, cut off before its index, not a video, without a video stream or frame,
            or claims frames of more than `MAX_PIXELS`.
    """

    _probes = False
    """Whether frames are decoded at opening; without, their order has to be verified by time stamps."""

    def __init__(self, path: str | os.PathLike[str], *, num_threads: int = 1) -> None:
        self.path = os.fspath(path)
        self._num_threads = num_threads
        self._first_decoded: av.VideoFrame | None = None
        self._open(probe=self._probes)
        with ExitStack() as stack:
            stack.callback(self.close)
            self._build_index()
            stack.pop_all()

    @override
    def close(self) -> None:
        self._closing.close()

    @property
    def time_base(self) -> Fraction:
        """Unit of the frames' time stamps in seconds."""
        return self._stream.time_base or Fraction(1, 1)

    @property
    def rotation(self) -> int:
        """Clockwise turn that the file asks for: 0, 90, 180 or 270 degrees. `read` applies it."""
        return self._geometry[2]

    @property
    def width(self) -> int:
        """Pixels per row as shown, after `rotation`."""
        width, height, rotation = self._geometry
        return height if rotation % 180 else width

    @property
    def height(self) -> int:
        """Rows as shown, after `rotation`."""
        width, height, rotation = self._geometry
        return width if rotation % 180 else height

    @override
    def _read(self, positions: NDArray[np.int64], short_side: int | None, interpolation: str) -> Tensor:
        places: dict[int, list[int]] = {}
        for place, position in enumerate(positions.tolist()):
            places.setdefault(position, []).append(place)
        wanted = sorted(places)
        pictures: Tensor | None = None
        found: list[int] = []
        for position, frame in self._wanted_frames(wanted):
            if pictures is None:
                self._first_decoded = self._first_decoded or frame
                painter = self._painter(short_side, interpolation)
                pictures = torch.empty((len(positions), *painter.size, 3), dtype=torch.uint8)
            first, *others = places[wanted[len(found)]]
            pictures[first] = self._paint(painter, frame)
            for place in others:
                pictures[place] = pictures[first]
            found.append(position)
        if pictures is None or len(found) < len(wanted):
            raise self._undecodable()
        self._judge(wanted, found)
        return pictures.permute(0, 3, 1, 2)

    # Opening -------------------------------------------------------------------------------------------------------

    def _open(self, *, probe: bool) -> None:
        """Open file and decoder, and set fps, which is 25 where the file does not tell.

        libav decodes the first frames of a file to learn what headers may not say; without `probe` it leaves that out
        where the header does.
        """
        with ExitStack() as stack:
            self._file = open_file(self.path)
            stack.callback(self._file.close)
            try:
                options = {}
                start = self._file.read(12)
                self._file.seek(0)
                found = (name for (place, mark), name in _FORMATS.items() if start[place : place + 4] == mark)
                self._format = next(found, None)
                self._probed = probe or self._format not in _SELF_DESCRIBED
                if not self._probed:
                    options["codec_whitelist"] = "none"  # of the decoders that probing may use
                self._at_start = True
                self._container = open_container(self._file, format=self._format, options=options)
                stack.callback(self._container.close)
                self._stream = self._pick_stream()
            except (av.FFmpegError, OSError) as error:
                raise DecodeError(
                    f"{self.path} cannot be opened as a video ({error.strerror}): it is cut off, not a video or of an "
                    "unsupported format; copy it again or convert it to .mp4."
                ) from error
            rate = self._stream.average_rate or self._stream.guessed_rate
            self.fps = float(rate) if rate else 25.0
            self._closing = stack.pop_all()

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
        check_size(self.path, stream.codec_context.width, stream.codec_context.height)
        stream.codec_context.thread_count = self._num_threads
        if self._num_threads != 1:
            stream.thread_type = "AUTO"
        return stream

    def _build_index(self) -> None:
        """Set num_frames, pts_seconds and the index."""
        self._index = self._find_index()
        self.num_frames = self._index.num_frames
        self.pts_seconds = self._index.seconds
        self._passes = self._passes_for(self._index)

    def _find_index(self) -> _Index:
        key = identity(self.path, self._file)
        index = _indices.get(key)
        if index is None:
            index = _indices[key] = self._index_from_table() or self._index_from_packets()
            while len(_indices) > 1 and sum(kept.num_frames for kept in _indices.values()) > _KEPT_FRAMES:
                _indices.popitem(last=False)
        _indices.move_to_end(key)
        return index

    def _index_from_table(self) -> _Index | None:
        """Index from the table of an AVI file, which has a line for each frame; None if it does not fit the file.

        Other containers list when frames are decoded and not when they are shown.
        """
        if self._container.format.name != "avi":
            return None
        entries, num_bytes = self._stream.index_entries, length_of(self._file)
        if not 0 < len(entries) <= num_bytes:
            return None
        stamps, keys, sizes, discarded = map(np.array, zip(*map(_LINE, entries), strict=True))
        reach = max(entry.pos + entry.size for entry in entries)
        if discarded.any() or (sizes <= 0).any() or reach > num_bytes:
            return None
        context = self._stream.codec_context
        if context.has_b_frames or context.name not in _IN_ORDER:
            return self._countable(len(stamps))
        return self._index_of(stamps, keys, in_order=True, from_table=True)

    def _index_from_packets(self) -> _Index:
        # Only numbers are kept: the packets together are the whole file.
        shown = [(packet.pts, packet.is_keyframe) for packet in self._demux() if packet.size and not packet.is_discard]
        if not shown:
            raise DecodeError(f"{self.path} holds no video frame: it is cut off or damaged; copy or download it again.")
        pts, keys = map(list, zip(*shown, strict=True))
        # AVI stores no presentation times: libav guesses them, and wrongly where frames are reordered.
        if self._container.format.name == "avi" or None in pts:
            return self._countable(len(pts))
        stamps, is_key = np.array(pts), np.array(keys)
        # An edit list that jumps back: frames before a key frame are output before it, whatever their stamps.
        goes_back = self._format == "mov" and (stamps < np.maximum.accumulate(stamps))[is_key].any()
        index = None if goes_back else self._index_of(stamps, is_key)
        return index or self._countable(len(pts))

    def _countable(self, num_frames: int) -> _Index:
        """Return the index of a file whose frames can only be counted."""
        return _Index(num_frames, _NONE, _NONE, _NONE, np.arange(num_frames) / self.fps)

    def _index_of(
        self, stamps: NDArray[np.int64], keys: NDArray[np.bool_], *, in_order: bool = False, from_table: bool = False
    ) -> _Index | None:
        """Index from the packets' time stamps, in file order; None if two of them are equal."""
        packet_of = np.arange(len(stamps))
        if (stamps[1:] > stamps[:-1]).all():
            key_of = np.maximum.accumulate(packet_of * keys)
        else:
            packet_of = np.argsort(stamps)
            stamps = stamps[packet_of]
            if (stamps[1:] == stamps[:-1]).any():
                return None
            key_of = _key_frames(packet_of, keys)
        seconds = (stamps - stamps[0]) * float(self.time_base)
        return _Index(len(stamps), stamps, packet_of, key_of, seconds, in_order, from_table)

    def _passes_for(self, index: _Index) -> list[Callable[[list[int]], _Found]]:
        """Ways to read the file, each more careful than the one before."""
        if not len(index.pts):
            return [self._read_counting]
        return [self._read_seeking, self._read_through, self._read_counting]

    @cached_property
    def _geometry(self) -> tuple[int, int, int]:
        """Width, height and rotation that count for the whole file: those of the first frame that was decoded."""
        frame = self._first_decoded or next(self._wanted_frames([0]), (0, None))[1]
        if frame is None:
            raise self._undecodable()
        clockwise = -frame.rotation  # libav gives the counter-clockwise angle of the display matrix
        return frame.width, frame.height, round(clockwise / 90) * 90 % 360

    # Reading -------------------------------------------------------------------------------------------------------

    def _wanted_frames(self, wanted: list[int]) -> _Found:
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
                self._passes = self._more_careful()

    def _more_careful(self) -> list[Callable[[list[int]], _Found]]:
        if not self._index.from_table:
            return self._passes[1:]
        self.close()
        self._open(probe=True)
        self._index = _indices[identity(self.path, self._file)] = self._index_from_packets()
        # Positions were asked for by the number of frames that the table gave.
        return self._passes_for(self._index) if self._index.num_frames == self.num_frames else [self._read_counting]

    def _read_seeking(self, wanted: list[int]) -> _Found:
        """Seek where that saves work, and skip frames that nothing refers to; a lost frame is a mismatch."""
        for run in self._runs(wanted):
            current = -1
            targets = iter(run)
            target: int | None = next(targets)
            for frame in self._decode_run(run):
                position = self._index.position(frame.pts)
                skipped = self._index.in_order and current >= 0 and position != current + 1
                if position is None or target is None or not current < position <= target or skipped:
                    raise _IndexMismatch
                current = position
                if position == target:
                    yield target, frame
                    target = next(targets, None)
                    if target is None:
                        break
            if target is not None:
                raise _IndexMismatch

    def _runs(self, wanted: list[int]) -> Iterator[list[int]]:
        """Wanted positions that are decoded in one go."""
        packet_of, key_of = self._index.packet_of, self._index.key_of
        run: list[int] = []
        reached = -1
        for target in wanted:
            if run and packet_of[key_of[target]] - reached > _SEEK_GAIN_PACKETS:
                yield run
                run = []
            run.append(target)
            reached = max(reached, int(packet_of[target]))
        yield run

    def _read_through(self, wanted: list[int]) -> _Found:
        """Decode from the start and place frames by time stamp, which shows which ones are lost."""

        def placed() -> _Found:
            last = -1
            for frame in self.decode_all():
                position = self._index.position(frame.pts)
                if position is None or position <= last:
                    raise _IndexMismatch
                last = position
                yield position, frame

        return _nearest(wanted, placed())

    def _read_counting(self, wanted: list[int]) -> _Found:
        """Decode from the start and count: for files without usable time stamps."""
        return _nearest(wanted, enumerate(self.decode_all()))

    def _decode_run(self, run: list[int]) -> Iterator[av.VideoFrame]:
        """Frames from the key frame before the run up to its last frame; some that are not wanted are left out."""
        index = self._index
        key = int(index.key_of[run[0]])
        try:
            self._container.seek(int(index.pts[key]), stream=self._stream)
        except (av.FFmpegError, OSError) as error:
            raise _IndexMismatch from error
        last = int(index.packet_of[run].max())
        needed = None if index.in_order else set(index.pts[run].tolist())

        def packets() -> Iterator[tuple["_Packet | None", bool]]:
            place = -1
            for packet in self._demux():
                if place < 0 and not packet.is_discard:
                    landed = index.position(packet.pts)
                    if landed is None or index.packet_of[landed] > index.packet_of[key]:
                        raise _IndexMismatch
                    place = int(index.packet_of[landed]) - 1
                place += bool(packet.size) and not packet.is_discard
                yield packet, needed is None or packet.pts in needed
                if place >= last:
                    break  # the decoder has all it needs, and hands out what it holds back for reordering
            yield None, True

        return self._decode(packets())

    def decode_all(self) -> Iterator[av.VideoFrame]:
        """Yield all frames that can be decoded, in presentation order.

        Reopens the file if packets were read: not every format can seek, nor to before time 0.
        """
        if not (self._at_start and self._probed):
            self.close()
            self._open(probe=True)
        return self._decode(zip(self._demux(), repeat(True)))

    def _decode(self, packets: Iterable[tuple["_Packet | None", bool]]) -> Iterator[av.VideoFrame]:
        """Yield frames in presentation order, stepping over packets that fail.

        Args:
            packets: each with whether its frame is needed; None ends the stream. Frames that are neither needed nor
                referred to by others may be left out: half of the work with the B-frames of common encoders.
        """
        context = self._stream.codec_context
        skipping = False
        for packet, needed in packets:
            if skipping == needed:
                skipping = not needed
                context.skip_frame = "NONREF" if skipping else "DEFAULT"
            try:
                frames = context.decode(packet)
            except (av.FFmpegError, OSError):
                continue
            for frame in frames:
                check_size(self.path, frame.width, frame.height)
                yield frame

    def _demux(self) -> Iterator[_Packet]:
        self._at_start = False
        while True:
            try:
                yield from self._container.demux(self._stream)
                return
            except IndexError:
                continue  # from PyAV, at the first packet of a stream that begins late in the file: skip it
            except (av.FFmpegError, OSError):
                return  # the file ends in the middle of a packet: what came before counts

    def _painter(self, short_side: int | None, interpolation: str) -> Painter:
        width, height, rotation = self._geometry
        painter = Painter(width, height, rotation=rotation, short_side=short_side, interpolation=interpolation)
        # Of a strip a few pixels high, resized, the longer side can be millions.
        check_size(self.path, *painter.size[::-1])
        return painter

    def _paint(self, painter: Painter, frame: av.VideoFrame) -> Tensor:
        try:
            return painter.paint(frame)
        except (av.FFmpegError, ValueError) as error:
            raise DecodeError(
                f"{self.path} has frames of the pixel format {frame.format.name}, which cannot be turned into RGB; "
                "convert it to .mp4."
            ) from error

    def _undecodable(self) -> DecodeError:
        return DecodeError(f"{self.path} is damaged: not one frame of it can be decoded; copy or download it again.")

    def _judge(self, wanted: list[int], found: list[int]) -> None:
        lost = sum(map(ne, wanted, found))
        if 2 * lost > len(wanted):
            raise DecodeError(
                f"{self.path} is damaged: {lost} of the {len(wanted)} frames asked for cannot be decoded; "
                "copy or download it again."
            )
        if lost:
            # The same words each time, which Python shows once: other frames are asked for in every epoch.
            warnings.warn(
                f"{self.path} is damaged: frames that cannot be decoded are replaced by their neighbours.", stacklevel=4
            )


def _key_frames(packet_of: NDArray[np.int64], is_key: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return, for each position of presentation, the position of the key frame to seek to, or 0.

    That key frame comes before it in the file and in presentation. (Frames that follow a key frame in the file and are
    shown before it may refer to the group before.)

    Args:
        packet_of: place in the file of each position's packet.
        is_key: for each place in the file.
    """
    positions = np.empty_like(packet_of)
    positions[packet_of] = np.arange(len(packet_of))
    places = np.flatnonzero(is_key)
    keys = positions[places]
    number = np.searchsorted(places, packet_of, side="right") - 1
    shown = np.arange(len(packet_of))
    for _ in range(_OPEN_GROUPS):
        too_late = (number >= 0) & (keys[number] > shown) if len(keys) else np.zeros(len(shown), dtype=bool)
        if not too_late.any():
            return np.where(number >= 0, keys[number], 0) if len(keys) else np.zeros_like(shown)
        number -= too_late
    return np.zeros_like(shown)  # a strange order: from the start


def _nearest(wanted: list[int], frames: _Found) -> _Found:
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
