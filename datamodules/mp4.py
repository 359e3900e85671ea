"""The one table of MP4 files that libav keeps to itself: how much later than decoded each frame is shown.

Box layouts: ISO/IEC 14496-12, sections 4.2 (boxes), 8.3.2 (tkhd), 8.6.1.3 (ctts), 8.7.3.2 (stsz), 8.8 (fragments).
"""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

__all__ = ["composition_offsets"]

_LARGEST = 2**27
"""Bytes of a header that are read at most: an hour-long film with sound has two million."""


def composition_offsets(file: BinaryIO, track_id: int) -> np.ndarray | None:
    """Presentation minus decoding time of each sample of a track, in the track's time unit; zeros where all are equal.

    The file's position is left as it was.

    Returns:
        int64 (samples,), or None for files that are fragmented, broken or have no such track.
    """
    position = file.tell()
    try:
        header = _header(file)
        return None if header is None else _offsets(header, track_id)
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


def _offsets(header: memoryview, track_id: int) -> np.ndarray | None:
    if _find(header, b"mvex") is not None:  # the samples are in fragments
        return None
    for kind, track in _boxes(header):
        if kind != b"trak" or _track_id(track) != track_id:
            continue
        table = _find(track, b"mdia", b"minf", b"stbl")
        sizes, offsets = (None, None) if table is None else (_find(table, b"stsz"), _find(table, b"ctts"))
        if sizes is None:
            return None
        (num_samples,) = struct.unpack_from(">I", sizes, 8)
        if offsets is None:
            return np.zeros(num_samples, dtype=np.int64) if num_samples <= _LARGEST else None
        (num_entries,) = struct.unpack_from(">I", offsets, 4)
        # Unsigned in version 0, but written signed there too, and read so by everybody.
        entries = np.frombuffer(offsets, dtype=">i4", count=2 * num_entries, offset=8).astype(np.int64)
        counts, values = entries[::2], entries[1::2]
        if (counts < 0).any() or counts.sum() != num_samples or num_samples > _LARGEST:
            return None
        return np.repeat(values, counts)
    return None


def _track_id(track: memoryview) -> int | None:
    head = _find(track, b"tkhd")
    return None if head is None else struct.unpack_from(">I", head, 20 if head[0] == 1 else 12)[0]
