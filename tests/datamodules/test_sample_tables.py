import io
import struct

import av
import numpy as np
import pytest

from datamodules.sample_tables import avi_samples, mp4_samples


def box(kind, *contents):
    content = b"".join(contents)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def table(kind, layout, *lines):
    """A box of lines behind their count."""
    lines = [line if isinstance(line, tuple) else (line,) for line in lines]
    return box(kind, struct.pack(">II", 0, len(lines)), *(struct.pack(f">{layout}", *line) for line in lines))


def movie(
    *, sizes=(10, 20, 30, 40, 50), durations=((5, 2),), later=(), keys=(1, 4), chunks=(1000, 500),
    held=((1, 3, 1), (2, 2, 1)), track_id=1, extra=b"", large=False, without=None,
):  # fmt: skip
    """A header alone, written after ISO/IEC 14496-12: five samples in two chunks."""
    tables = {
        "stsz": box(b"stsz", struct.pack(">III", 0, 0, len(sizes)), *(struct.pack(">I", size) for size in sizes)),
        "stts": table(b"stts", "II", *durations),
        "ctts": table(b"ctts", "Ii", *later) if later else b"",
        "stss": table(b"stss", "I", *keys) if keys else b"",
        "stsc": table(b"stsc", "III", *held),
        "stco": table(b"co64", "Q", *chunks) if large else table(b"stco", "I", *chunks),
    }
    tables = b"".join(content for name, content in tables.items() if name != without)
    track = box(b"trak", box(b"tkhd", struct.pack(">IIII", 0, 0, 0, track_id)),
                box(b"mdia", box(b"minf", box(b"stbl", tables))))  # fmt: skip
    return io.BytesIO(box(b"ftyp", b"isom") + box(b"mdat", bytes(2000)) + box(b"moov", track, extra))


def columns(found):
    return [column.tolist() for column in found[:4]]


@pytest.mark.parametrize("large", [False, True])
def test_mp4_by_hand(large):
    file = movie(durations=((2, 3), (3, 5)), later=((1, 3), (2, 0), (2, -1)), large=large)
    file.seek(7)
    found = mp4_samples(file, 1, 5)
    assert file.tell() == 7
    decoded = [0, 3, 6, 11, 16]
    shown = [3, 3, 6, 10, 15]
    assert columns(found) == [decoded, shown, [True, False, False, True, False], [10, 20, 30, 40, 50]]
    assert found.reach == 60  # the first chunk, 60 bytes from 1000 on, ends behind the second
    assert mp4_samples(movie(chunks=(500, 1000), large=large), 1, 5).reach == 500 + 90


def test_mp4_with_fewer_tables():
    found = mp4_samples(movie(keys=()), 1, 5)
    assert columns(found)[:3] == [[0, 2, 4, 6, 8], [0, 2, 4, 6, 8], [True] * 5]
    one_size = movie()
    data = one_size.getvalue()
    place = data.index(b"stsz")
    same = io.BytesIO(data[: place + 8] + struct.pack(">I", 25) + data[place + 12 :])
    assert mp4_samples(same, 1, 5).sizes.tolist() == [25] * 5


@pytest.mark.parametrize(
    "changed",
    [
        {"durations": ((4, 2),)},
        {"later": ((4, 0),)},
        {"later": ((2**31, 0),)},
        {"later": ((2**32 - 1, 0), (6, 0))},
        {"keys": (1, 6)},
        {"held": ((1, 3, 1), (2, 3, 1))},
        {"held": ((1, 3, 1), (4, 2, 1))},
        {"held": ((2, 3, 1), (1, 2, 1))},
        {"held": ((1, 0, 1), (2, 5, 1))},
        {"chunks": (1000,)},
        {"track_id": 2},
        {"extra": box(b"mvex")},
        {"without": "stsz"},
        {"without": "stts"},
        {"without": "stsc"},
        {"without": "stco"},
    ],
    ids=str,
)
def test_mp4_that_contradicts_itself(changed):
    assert mp4_samples(movie(**changed), 1, 5) is None


def test_mp4_cut_off_or_of_another_length():
    whole = movie(later=((1, 3), (4, 0))).getvalue()
    for length in range(len(whole)):
        assert mp4_samples(io.BytesIO(whole[:length]), 1, 5) is None
    assert mp4_samples(io.BytesIO(b"\0\0\0\1moov" + b"\xff" * 8), 1, 5) is None
    assert mp4_samples(movie(), 1, 2**32 - 1) is None  # not allocated


def riff(*lines, before=b"", kind=b"AVI "):
    """lines: (chunk, flags, offset, size)."""
    index = b"".join(struct.pack("<4sIII", *line) for line in lines)
    chunks = [before, struct.pack("<4sI", b"idx1", len(index)), index]
    content = kind + b"".join(chunks)
    return io.BytesIO(struct.pack("<4sI", b"RIFF", len(content)) + content)


LINES = [
    (b"00dc", 0x10, 4, 100),
    (b"01wb", 0x10, 112, 8),
    (b"00dc", 0, 128, 30),
    (b"00dc", 0, 166, 0),
    (b"00dc", 0x10, 174, 7),
]


@pytest.mark.parametrize("before", [b"", struct.pack("<4sI", b"JUNK", 3) + bytes(4)], ids=["", "odd chunk"])
def test_avi_by_hand(before):
    file = riff(*LINES, before=before)
    file.seek(5)
    found = avi_samples(file, 0)
    assert file.tell() == 5
    # The empty line shows the frame before once more.
    assert columns(found) == [[0, 1, 3], [0, 1, 3], [True, False, True], [100, 30, 7]]
    assert found.reach == 174 + 7 - 4
    assert columns(avi_samples(file, 1)) == [[0], [0], [True], [8]]
    assert avi_samples(file, 2) is None


def test_avi_without_an_index():
    assert avi_samples(riff(*LINES, kind=b"WAVE"), 0) is None
    assert avi_samples(riff(), 0) is None
    whole = riff(*LINES).getvalue()
    for length in range(whole.index(b"idx1") + 8):
        assert avi_samples(io.BytesIO(whole[:length]), 0) is None
    assert len(avi_samples(io.BytesIO(whole[:-16]), 0).sizes) == 2


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".avi"])
@pytest.mark.parametrize("bf", ["0", "3"])
def test_equals_what_libav_lists(tmp_path, make_video, suffix, bf):
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    path = make_video(tmp_path / f"v{suffix}", 70, codec=codec, options={"bf": bf, "g": "20"})
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        lines = [(line.timestamp, line.is_keyframe, line.size, line.pos) for line in stream.index_entries]
        packets = [packet for packet in container.demux(stream) if packet.size]
        number = stream.index if suffix == ".avi" else stream.id
    with path.open("rb") as file:
        found = avi_samples(file, number) if suffix == ".avi" else mp4_samples(file, number, 70)
    times, keys, sizes, places = zip(*lines, strict=True)
    assert found.decoded.tolist() == [time - times[0] for time in times]
    assert found.is_key.tolist() == list(keys) and found.sizes.tolist() == list(sizes)
    assert found.reach == max(place + size for place, size in zip(places, sizes, strict=True)) - places[0]
    if suffix != ".avi":
        differences = np.array([packet.pts - packet.dts for packet in packets])
        later = found.shown - found.decoded
        assert np.array_equal(later - later[0], differences - differences[0])
        assert np.ptp(differences) > 0 or bf == "0"
