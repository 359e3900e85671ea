import io
import struct

import av
import numpy as np
import pytest

from datamodules.mp4 import composition_offsets


def box(kind, *contents):
    content = b"".join(contents)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def movie(num_samples, runs, track_id=1, extra=b""):
    """A header alone, written after ISO/IEC 14496-12."""
    sizes = box(b"stsz", struct.pack(">III", 0, 100, num_samples))
    offsets = (
        box(b"ctts", struct.pack(">II", 0, len(runs)), *(struct.pack(">Ii", *run) for run in runs)) if runs else b""
    )
    track = box(b"trak", box(b"tkhd", struct.pack(">IIII", 0, 0, 0, track_id)),
                box(b"mdia", box(b"minf", box(b"stbl", sizes, offsets))))  # fmt: skip
    return io.BytesIO(box(b"ftyp", b"isom") + box(b"mdat", bytes(1000)) + box(b"moov", track, extra))


def test_by_hand():
    file = movie(5, [(1, 3), (2, 0), (2, -1)])
    file.seek(7)
    assert composition_offsets(file, 1).tolist() == [3, 0, 0, -1, -1]
    assert file.tell() == 7
    assert composition_offsets(movie(4, []), 1).tolist() == [0] * 4
    assert composition_offsets(movie(5, [(5, 1)]), 2) is None  # another track


@pytest.mark.parametrize("runs", [[(4, 0)], [(2**31, 0)], [(2**32 - 1, 0), (6, 0)]])
def test_tables_that_contradict_each_other(runs):
    assert composition_offsets(movie(5, runs), 1) is None


def test_fragments_and_garbage():
    assert composition_offsets(movie(5, [(5, 0)], extra=box(b"mvex")), 1) is None
    whole = movie(5, [(1, 3), (4, 0)]).getvalue()
    for length in range(len(whole)):
        assert composition_offsets(io.BytesIO(whole[:length]), 1) is None
    assert composition_offsets(io.BytesIO(b"\0\0\0\1moov" + b"\xff" * 8), 1) is None
    assert composition_offsets(movie(2**32 - 1, []), 1) is None  # not allocated


def test_equals_what_packets_say(tmp_path, make_video):
    path = make_video(tmp_path / "v.mp4", 60, options={"bf": "3", "g": "20"})
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        differences = np.array([packet.pts - packet.dts for packet in packets])
    with path.open("rb") as file:
        offsets = composition_offsets(file, 1)
    assert np.ptp(differences) > 0 and np.array_equal(offsets - offsets[0], differences - differences[0])
