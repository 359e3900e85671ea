"""What MP4 and AVI files list of their samples, read at once from their own tables.

libav shows one line of these tables at a time, and not all that stands in a line of MP4; an hour of video has a hundred
thousand. Who uses them here compares them with libav at a few places (`datamodules.decode`).

Layouts: ISO/IEC 14496-12, sections 4.2 (boxes), 8.3.2 (tkhd), 8.6.1 (stts, ctts), 8.6.2 (stss), 8.7 (stsz, stsc, stco,
co64), 8.8 (fragments); Microsoft's AVI RIFF file reference, "idx1".
"""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

__all__ = ["SampleTable", "avi_samples", "mp4_samples"]

_LARGEST = 2**27
"""Bytes of tables that are read at most: an hour-long film with sound has two million."""

_IDX1 = np.dtype([("stream", "S2"), ("kind", "S2"), ("flags", "<u4"), ("offset", "<u4"), ("size", "<u4")])
_IS_KEY = 0x10


class SampleTable(NamedTuple):
    """Samples of a track in the order of the file.

    Attributes:
        decoded: int64, when a sample is decoded, in the track's unit of time, the first at 0.
        shown: int64, when it is shown, on the same clock.
        is_key: bool, whether decoding can begin there.
        sizes: int64, bytes.
        reach: bytes from the beginning of the first sample to the end of the furthest one.
    """

    decoded: np.ndarray
    shown: np.ndarray
    is_key: np.ndarray
    sizes: np.ndarray
    reach: int


def mp4_samples(file: BinaryIO, track_id: int, count: int) -> SampleTable | None:
    """The samples of a track of an MP4 or MOV file; edit lists are not applied. The file's position is left as it was.

    Returns:
        None for files that are fragmented or broken or have no such track of `count` samples.
    """
    position = file.tell()
    try:
        header = _header(file)
        return None if header is None else _track_samples(header, track_id, count)
    except (struct.error, ValueError, IndexError):
        return None
    finally:
        file.seek(position)


def _header(file: BinaryIO) -> memoryview | None:
    """The content of the "moov" box."""
    end = file.seek(0, os.SEEK_END)
    start = 0
    while start + 8 <= end:
        file.seek(start)
        size, kind = struct.unpack(">I4s", file.read(8))
        skipped = 8
        if size == 1:
            (size,) = struct.unpack(">Q", file.read(8))
            skipped = 16
        size = size or end - start
        if kind == b"moov" and skipped <= size <= min(_LARGEST, end - start):
            return memoryview(file.read(size - skipped))
        if size < skipped:
            return None
        start += size
    return None


def _boxes(content: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """(kind, content) of the boxes inside."""
    start = 0
    while start + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, start)
        if not 8 <= size <= len(content) - start:
            return
        yield kind, content[start + 8 : start + size]
        start += size


def _find(content: memoryview, *kinds: bytes) -> memoryview | None:
    """The content of the first box at a path."""
    for kind in kinds:
        found = next((inner for name, inner in _boxes(content) if name == kind), None)
        if found is None:
            return None
        content = found
    return content


def _track_samples(header: memoryview, track_id: int, count: int) -> SampleTable | None:
    if _find(header, b"mvex") is not None:  # the samples are in fragments
        return None
    for kind, track in _boxes(header):
        if kind == b"trak" and _track_id(track) == track_id:
            table = _find(track, b"mdia", b"minf", b"stbl")
            return None if table is None else _samples_of(dict(_boxes(table)), count)
    return None


def _track_id(track: memoryview) -> int | None:
    head = _find(track, b"tkhd")
    return None if head is None else struct.unpack_from(">I", head, 20 if head[0] == 1 else 12)[0]


def _samples_of(boxes: dict[bytes, memoryview], count: int) -> SampleTable | None:
    if not {b"stsz", b"stts", b"stsc"} <= boxes.keys() or not {b"stco", b"co64"} & boxes.keys():
        return None
    size, held = struct.unpack_from(">II", boxes[b"stsz"], 4)
    if held != count:
        return None
    sizes = np.full(count, size) if size else _numbers(boxes[b"stsz"], ">u4", count, start=12)
    durations = _of_runs(boxes[b"stts"], ">u4", count)
    decoded = np.concatenate([[0], np.cumsum(durations[:-1])])
    # Unsigned in version 0, but written signed there too, and read so by everybody.
    later = _of_runs(boxes[b"ctts"], ">i4", count) if b"ctts" in boxes else 0
    is_key = np.full(count, b"stss" not in boxes)  # without the table each of them is one
    if b"stss" in boxes:
        is_key[_listed(boxes[b"stss"], ">u4") - 1] = True
    chunks = _listed(boxes[b"stco"], ">u4") if b"stco" in boxes else _listed(boxes[b"co64"], ">i8")
    firsts = _first_samples(boxes[b"stsc"], len(chunks), count)
    reach = int((chunks + np.add.reduceat(sizes, firsts)).max() - chunks[0])
    return SampleTable(decoded, decoded + later, is_key, sizes, reach)


def _numbers(content: memoryview, kind: str, count: int, start: int) -> np.ndarray:
    """int64; raises ValueError where the box is too short."""
    return np.frombuffer(content, dtype=kind, count=count, offset=start).astype(np.int64)


def _listed(content: memoryview, kind: str) -> np.ndarray:
    """The numbers behind a count."""
    return _numbers(content, kind, struct.unpack_from(">I", content, 4)[0], start=8)


def _of_runs(content: memoryview, kind: str, count: int) -> np.ndarray:
    """A number for each sample from runs of (how many, number); raises ValueError where they are not `count`."""
    (num_runs,) = struct.unpack_from(">I", content, 4)
    runs = np.frombuffer(content, dtype=[("length", ">u4"), ("value", kind)], count=num_runs, offset=8)
    lengths = runs["length"].astype(np.int64)
    if lengths.sum() != count:
        raise ValueError("the runs of a table are not as many as its samples")
    return np.repeat(runs["value"].astype(np.int64), lengths)


def _first_samples(content: memoryview, num_chunks: int, count: int) -> np.ndarray:
    """The number of each chunk's first sample, from runs of (first chunk, samples in each, kind)."""
    runs = _numbers(content, ">u4", 3 * struct.unpack_from(">I", content, 4)[0], start=8).reshape(-1, 3)
    lengths = np.diff(runs[:, 0], append=num_chunks + 1)
    if (lengths < 0).any() or lengths.sum() != num_chunks:
        raise ValueError("the runs of a table are not as many as its chunks")
    held = np.repeat(runs[:, 1], lengths)
    if (held < 1).any() or held.sum() != count:
        raise ValueError("the chunks do not hold all samples")
    return np.cumsum(held) - held


def avi_samples(file: BinaryIO, stream: int) -> SampleTable | None:
    """The frames that the index of an AVI file lists for a stream. The file's position is left as it was.

    Returns:
        None for files without such an index.
    """
    position = file.tell()
    try:
        content = _idx1(file)
        return None if content is None else _listed_frames(content, stream)
    except (struct.error, ValueError):
        return None
    finally:
        file.seek(position)


def _idx1(file: BinaryIO) -> bytes | None:
    file.seek(0)
    riff, _, kind = struct.unpack("<4sI4s", file.read(12))
    if (riff, kind) != (b"RIFF", b"AVI "):
        return None
    while len(head := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        if name == b"idx1":
            return file.read(min(size, _LARGEST))
        file.seek(size + size % 2, os.SEEK_CUR)
    return None


def _listed_frames(content: bytes, stream: int) -> SampleTable | None:
    lines = np.frombuffer(content, dtype=_IDX1, count=len(content) // _IDX1.itemsize)
    lines = lines[lines["stream"] == b"%02d" % stream]
    numbers = np.flatnonzero(lines["size"])  # an empty sample repeats the frame before
    if len(numbers) == 0:
        return None
    lines = lines[numbers]
    offsets, sizes = lines["offset"].astype(np.int64), lines["size"].astype(np.int64)
    decoded = numbers - numbers[0]
    reach = int((offsets + sizes).max() - offsets[0])
    return SampleTable(decoded, decoded, (lines["flags"] & _IS_KEY) != 0, sizes, reach)
