import os
import struct
import warnings
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.video import decode
from datamodules.video.decode import VideoReader
from datamodules.video.opening import DecodeError

ENCODINGS = {
    "b-frames": {"options": {"bf": "3", "g": "12", "keyint_min": "12"}},
    "pyramid, one key frame": {"options": {"x264-params": "bframes=5:b-pyramid=normal:keyint=250:scenecut=0"}},
    "open gop": {"options": {"x264-params": "open-gop=1:bframes=3:keyint=10:min-keyint=10:scenecut=0"}},
    "intra refresh": {"options": {"x264-params": "intra-refresh=1:keyint=10:bframes=0"}},
    "key frames only": {"options": {"g": "1"}},
    "mpeg4": {"codec": "mpeg4", "options": {"g": "10", "bf": "2"}},
    "mpeg4 in order": {"codec": "mpeg4", "options": {"g": "10"}},
    "fragments": {"options": {"bf": "2", "g": "8"}, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "hevc open gop": {
        "codec": "libx265",
        "options": {"x265-params": "open-gop=1:keyint=10:min-keyint=10:log-level=-1"},
    },
    "vp9": {"codec": "libvpx-vp9", "options": {"g": "10", "auto-alt-ref": "1", "lag-in-frames": "10"}},
}


def assert_exact(path, full, seed=0, rounds=6):
    rng = np.random.default_rng(seed)
    with VideoReader(path) as reader:
        assert len(reader) == reader.num_frames == len(full)
        for _ in range(rounds):
            indices = rng.integers(0, len(full), rng.integers(1, 9))
            torch.testing.assert_close(reader.read(indices), full[indices], rtol=0, atol=0)
    for index in (0, len(full) // 2, len(full) - 1):  # from a fresh reader each
        with VideoReader(path) as reader:
            torch.testing.assert_close(reader.read([index])[0], full[index], rtol=0, atol=0)


FILES = [(name, ".mp4") for name in ENCODINGS] + [
    ("b-frames", ".mkv"),
    ("b-frames", ".ts"),
    ("b-frames", ".avi"),
    ("open gop", ".mkv"),
    ("open gop", ".ts"),
    ("mpeg4", ".avi"),
    ("mpeg4 in order", ".avi"),
    ("pyramid, one key frame", ".mov"),
    ("vp9", ".webm"),
]


@pytest.mark.parametrize(("name", "suffix"), FILES)
def test_frames_equal_a_full_decode(tmp_path, make_video, decode_fully, read_number, name, suffix):
    path = make_video(tmp_path / f"v{suffix}", 50, **ENCODINGS[name])
    full = decode_fully(path)
    numbers = [read_number(frame) for frame in full]
    assert numbers == list(range(50))
    assert_exact(path, full)
    with VideoReader(path) as reader:
        reader.read([7, 33])
        assert reader._index.from_table == ((name, suffix) == ("mpeg4 in order", ".avi"))


def test_key_frames_that_are_not_marked(tmp_path, make_video, decode_fully):
    """Only the first of five key frames is in the table of key frames."""
    path = make_video(tmp_path / "v.mp4", 50, options={"bf": "2", "g": "10", "keyint_min": "10"})
    data = bytearray(path.read_bytes())
    place = data.index(b"stss")
    assert struct.unpack_from(">I", data, place + 8)[0] == 5
    struct.pack_into(">II", data, place - 4, 20, 0x73747373)
    struct.pack_into(">I", data, place + 8, 1)
    struct.pack_into(">I4s", data, place + 16, 16, b"free")  # what is left of the table
    path.write_bytes(data)
    assert_exact(path, decode_fully(path))


@pytest.mark.parametrize("marked", ["the first", "none"])
def test_a_table_with_missing_key_frames_costs_no_exactness(tmp_path, make_video, decode_fully, marked):
    path = make_video(tmp_path / "v.avi", 40, **ENCODINGS["mpeg4 in order"])
    data = bytearray(path.read_bytes())
    table = data.rindex(b"idx1")
    for line in range(40):
        is_key = marked == "the first" and line == 0
        struct.pack_into("<I", data, table + 8 + 16 * line + 4, 0x10 if is_key else 0)
    path.write_bytes(data)
    assert_exact(path, decode_fully(path))


def write_edits(path, edits):
    """Gives an MP4 file whose header stands last other edits: (duration, first time) in frames of 1/30 s."""
    data = bytearray(path.read_bytes())
    places = [data.rindex(kind) - 4 for kind in (b"moov", b"trak", b"edts", b"elst")]
    start, (size,) = places[-1], struct.unpack_from(">I", data, places[-1])
    (clock,) = struct.unpack_from(">I", data, data.rindex(b"mvhd") + 16)
    (ticks,) = struct.unpack_from(">I", data, data.rindex(b"mdhd") + 16)
    _, delay = struct.unpack_from(">Ii", data, start + 16)  # what the encoder's reordering takes
    lines = [(length * clock // 30, delay + first * ticks // 30, 1 << 16) for length, first in edits]
    new = struct.pack(">I4sII", 16 + 12 * len(lines), b"elst", 0, len(lines))
    new += b"".join(struct.pack(">Iii", *line) for line in lines)
    for place in places[:-1]:
        struct.pack_into(">I", data, place, struct.unpack_from(">I", data, place)[0] + len(new) - size)
    path.write_bytes(data[:start] + new + data[start + size :])


@pytest.mark.parametrize("bf", ["0", "2"])
@pytest.mark.parametrize(
    "edits",
    [[(50, 0)], [(43, 7)], [(42, 0)], [(30, 10)], [(20, 0), (15, 35)], [(30, 0), (30, 20)], [(25, 25), (25, 0)]],
    ids=["whole", "from 7", "to 42", "10 to 40", "a hole", "a repetition", "halves change places"],
)
def test_edit_lists(tmp_path, make_video, decode_fully, bf, edits):
    path = make_video(tmp_path / "v.mp4", 50, options={"bf": bf, "g": "10"})
    write_edits(path, edits)
    assert_exact(path, decode_fully(path))


@pytest.mark.parametrize("shown", [[0, 1, 2, 5, 6, 9, 10, 11], [3, 4, 5, 8], [0, 70, 71, 200, 201]])
def test_avi_with_empty_packets(tmp_path, make_video, decode_fully, read_number, shown):
    """An empty packet says that the frame before is shown once more; it is none of its own."""
    options = {"codec": "mpeg4", "options": {"g": "3"}, "pts": shown, "time_base": Fraction(1, 30)}
    path = make_video(tmp_path / "v.avi", len(shown), **options)
    full = decode_fully(path)
    assert [read_number(frame) for frame in full] == list(range(len(shown)))
    assert_exact(path, full)


def test_index_is_remembered_until_the_file_changes(tmp_path, make_video, monkeypatch):
    path = make_video(tmp_path / "v.mkv", 20)
    with VideoReader(path) as reader:
        first = reader._index
    with VideoReader(path) as reader:
        assert reader._index is first
    make_video(path, 30)
    with VideoReader(path) as reader:
        assert len(reader) == 30 and reader.read([29]).shape[0] == 1
    monkeypatch.setattr("datamodules.video.decode._KEPT_FRAMES", 60)
    for number in range(4):
        with VideoReader(make_video(tmp_path / f"{number}.mkv", 20)):
            pass
    assert sum(index.num_frames for index in decode._indices.values()) <= 60


def test_opening_decodes_nothing(tmp_path, make_video):
    """Where the header says all; a damaged first frame is then met by who reads it."""
    for suffix in (".mp4", ".mkv"):
        with VideoReader(make_video(tmp_path / f"v{suffix}", 10)) as reader:
            assert not reader._stream.codec_context.is_open and len(reader) == 10
            assert reader.read([9]).shape == (1, 3, 48, 80)


@pytest.mark.parametrize("num_threads", [0, 2])
def test_frames_with_decoder_threads(tmp_path, make_video, decode_fully, num_threads):
    path = make_video(tmp_path / "v.mp4", 60, options={"bf": "3", "g": "20"})
    full = decode_fully(path)
    with VideoReader(path, num_threads=num_threads) as reader:
        for indices in ([59, 3, 3, 41], range(60)):
            torch.testing.assert_close(reader.read(indices), full[list(indices)], rtol=0, atol=0)


def test_seeking_decodes_less(tmp_path, make_video, monkeypatch):
    path = make_video(tmp_path / "v.mp4", 200, options={"g": "10", "bf": "0"})
    decoded = []
    original = VideoReader._decode

    def counting(self, *args):
        for frame in original(self, *args):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(VideoReader, "_decode", counting)
    with VideoReader(path) as reader:
        reader.read([5, 155])
    assert len(decoded) <= 20
    decoded.clear()
    with VideoReader(path) as reader:
        reader.read([5, 9, 13])  # close together: decoding on is cheaper
    assert len(decoded) <= 20


def test_variable_frame_rate(tmp_path, make_video, read_number):
    steps = np.random.default_rng(0).integers(1, 20, 40) * 900
    pts = np.cumsum(steps)
    path = make_video(tmp_path / "v.mkv", 40, pts=pts.tolist(), options={"bf": "2", "g": "8"})
    with VideoReader(path) as reader:
        frames = reader.read([39, 0, 17, 17])
        assert [read_number(frame) for frame in frames] == [39, 0, 17, 17]
        np.testing.assert_allclose(reader.pts_seconds, (pts - pts[0]) / 90000, atol=1e-3)  # Matroska has milliseconds


def remux(source, target, shift_packets, **options):
    """Copies the packets with time stamps moved so that the first ones lie before 0."""
    with av.open(str(source)) as reading, av.open(str(target), "w", options=options) as writing:
        stream = reading.streams.video[0]
        copy = writing.add_stream_from_template(stream)
        packets = [packet for packet in reading.demux(stream) if packet.size]
        step = sorted(packet.pts for packet in packets)[1]
        for packet in packets:
            packet.pts -= shift_packets * step
            packet.dts -= shift_packets * step
            packet.stream = copy
            writing.mux(packet)


@pytest.mark.parametrize("shift", [1, 7, 23])
def test_edit_list_hides_frames_before_zero(tmp_path, make_video, decode_fully, read_number, shift):
    source = make_video(tmp_path / "source.mp4", 50, options={"bf": "2", "g": "12"})
    path = tmp_path / "cut.mp4"
    remux(source, path, shift, use_editlist="1", avoid_negative_ts="disabled")
    full = decode_fully(path)
    assert read_number(full[0]) == shift  # the file is what the test wants it to be
    assert_exact(path, full)


@pytest.mark.parametrize(("suffix", "shift", "options"), [
    (".mkv", 8, {"avoid_negative_ts": "disabled"}),  # early packets come back without time stamps
    (".ts", -100, {}),
    (".mp4", 0, {"use_editlist": "0"}),
    (".mp4", 0, {"use_editlist": "0", "movflags": "negative_cts_offsets"}),
])  # fmt: skip
def test_clocks_that_do_not_start_at_zero(tmp_path, make_video, decode_fully, suffix, shift, options):
    source = make_video(tmp_path / "source.mp4", 40, options={"bf": "2", "g": "8"})
    path = tmp_path / f"moved{suffix}"
    remux(source, path, shift, **options)
    full = decode_fully(path)
    assert len(full) == 40
    assert_exact(path, full)
    with VideoReader(path) as reader:
        assert reader.pts_seconds[0] == 0
        np.testing.assert_allclose(np.diff(reader.pts_seconds), 1 / 30, atol=2e-3)


def test_raw_stream_without_time_stamps(tmp_path, make_video, decode_fully):
    path = make_video(tmp_path / "v.h264", 30, options={"bf": "2", "g": "6"})
    assert_exact(path, decode_fully(path))


def test_wrong_time_stamps_fall_back_to_counting(tmp_path, make_video, decode_fully, monkeypatch):
    path = make_video(tmp_path / "v.mp4", 30, options={"bf": "2", "g": "6"})
    full = decode_fully(path)
    with VideoReader(path) as reader:
        # An index whose time stamps are not those of the decoded frames, as broken muxers write.
        reader._index = replace(reader._index, pts=reader._index.pts + 1)
        torch.testing.assert_close(reader.read([25, 2, 11]), full[[25, 2, 11]], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["arm_wrestling.mp4", "cleaning_pool.mp4", "mpeg4_320x240.avi"])
def test_real_clips(shared, decode_fully, name):
    path = shared / "videos" / name
    full = decode_fully(path)
    assert_exact(path, full)
    with VideoReader(path) as reader:
        torch.testing.assert_close(reader.read(range(0, len(full), 3)), full[::3], rtol=0, atol=0)
        assert (reader.width, reader.height) == (full.shape[3], full.shape[2])
        assert reader.duration_seconds == pytest.approx(len(full) / reader.fps, rel=0.02)


CORNERS = {0: "top left", 90: "top right", 180: "bottom right", 270: "bottom left"}


@pytest.mark.parametrize("clockwise", CORNERS)
def test_rotation(tmp_path, make_video, clockwise):
    def frame_at(_):
        frame = np.zeros((32, 64, 3), np.uint8)
        frame[:8, :8] = 255  # a white patch in the stored top left corner
        return frame

    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        # ISO 14496-12: a pixel (x, y) is shown at (a x + c y, b x + d y), y downwards; here turned clockwise.
        cosine, sine = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[clockwise]
        one = 1 << 16
        stream.set_display_matrix([cosine * one, sine * one, 0, -sine * one, cosine * one, 0, 0, 0, 1 << 30])
        for number in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_at(number), format="rgb24")))
        container.mux(stream.encode())
    with VideoReader(path) as reader:
        frame = reader.read([1])[0].float().mean(0)
        assert reader.rotation == clockwise
        assert (reader.width, reader.height) == ((32, 64) if clockwise % 180 else (64, 32))
    assert frame.shape == ((64, 32) if clockwise % 180 else (32, 64))
    corners = {
        "top left": frame[:4, :4],
        "top right": frame[:4, -4:],
        "bottom right": frame[-4:, -4:],
        "bottom left": frame[-4:, :4],
    }
    assert {name for name, patch in corners.items() if patch.mean() > 200} == {CORNERS[clockwise]}


def test_metadata_before_any_read(tmp_path, make_video):
    path = make_video(tmp_path / "v.mp4", 12, fps=24, width=100, height=60)
    with VideoReader(path) as reader:
        assert (reader.width, reader.height, reader.rotation) == (100, 60, 0)
        assert reader.fps == 24
        assert reader.duration_seconds == pytest.approx(0.5)
        np.testing.assert_allclose(reader.pts_seconds, np.arange(12) / 24, atol=1e-6)


def test_short_side_is_resized_frame_by_frame(tmp_path, make_video, decode_fully):
    path = make_video(tmp_path / "v.mp4", 5, width=80, height=48)
    with VideoReader(path) as reader:
        frames = reader.read([0, 4], short_side=24)
    assert frames.shape == (2, 3, 24, 40)
    # Bilinear without antialiasing at exactly half size: the mean of each block of 2 x 2.
    expected = decode_fully(path)[[0, 4]].float().unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    assert (frames.float() - expected).abs().max() <= 1


def test_sound_is_ignored(tmp_path, make_video, decode_fully):
    path = tmp_path / "sound.mp4"
    silent = make_video(tmp_path / "silent.mp4", 20)
    with av.open(str(path), "w") as container:
        with av.open(str(silent)) as source:
            sound = container.add_stream("aac", rate=16000)
            copy = container.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = copy
                    container.mux(packet)
        for start in range(0, 16000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    assert_exact(path, decode_fully(silent))


def test_animated_gif(tmp_path, decode_fully):
    frames = [Image.fromarray(np.full((24, 32, 3), 8 * i, np.uint8)) for i in range(20)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=50)
    full = decode_fully(tmp_path / "a.gif")
    assert len(full) == 20
    assert_exact(tmp_path / "a.gif", full)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_still_image(tmp_path, suffix):
    path = tmp_path / f"50%_%d a:b{suffix}"  # what libav would take for an image sequence
    pixels = np.full((40, 60, 3), (200, 30, 90), np.uint8)
    Image.fromarray(pixels).save(path)
    with VideoReader(path) as reader:
        assert (len(reader), reader.width, reader.height) == (1, 60, 40)
        frame = reader.read([0, 0])
    assert frame.shape == (2, 3, 40, 60)
    assert (frame.float() - torch.tensor([200.0, 30.0, 90.0]).view(3, 1, 1)).abs().max() < (
        1 if suffix == ".png" else 6
    )


def test_odd_names(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4", 3)
    for name in ("http:x.mp4", "concat:a|b.mp4", "no suffix", "Ünïcode 100%d.mp4"):
        renamed = tmp_path / name
        renamed.write_bytes(path.read_bytes())
        with VideoReader(renamed) as reader:
            assert reader.read([2]).shape == (1, 3, 48, 80)


def test_files_are_closed(tmp_path, make_video):
    path = make_video(tmp_path / "v.mp4", 30, options={"g": "10"})
    (tmp_path / "text.mp4").write_text("no video " * 100)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with VideoReader(path) as reader:
            reader.read([3, 25])
            list(reader._read_counting([7]))  # reopens
        with pytest.raises(DecodeError):
            VideoReader(tmp_path / "text.mp4")
    assert len(os.listdir("/proc/self/fd")) == before


# Files at fault --------------------------------------------------------------------------------------------------


def sentence(path):
    with pytest.raises(DecodeError) as caught, VideoReader(path) as reader:
        reader.read(range(len(reader)))
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and text.endswith(".")
    return text


@pytest.mark.parametrize("name", ["text.mp4", "text.txt", "noise.mp4", "noise.avi"])
def test_not_a_video(tmp_path, name):
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 256, 20000, dtype=np.uint8).tobytes()
    path.write_bytes(b"no video here\n" * 200 if "text" in name else noise)
    assert "not a video" in sentence(path)


def test_no_video_stream(tmp_path, make_silence):
    assert "no video stream" in sentence(make_silence(tmp_path / "sound.mp4"))


def test_cut_off_before_the_index(tmp_path, make_video):
    path = make_video(tmp_path / "v.mp4", 50)  # MP4 keeps its index at the end
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "cut off" in sentence(path)


def test_cut_off_after_the_index_keeps_what_is_there(tmp_path, make_video, read_number):
    path = make_video(tmp_path / "v.mkv", 200, options={"bf": "2", "g": "20"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with VideoReader(path) as reader, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert 60 < len(reader) < 140
        frames = reader.read(range(len(reader)))
    numbers = [read_number(frame) for frame in frames]
    assert numbers[:-3] == list(range(len(numbers) - 3))  # B-frames at the very end may lack a reference


def damage(path, first_share, last_share):
    data = bytearray(path.read_bytes())
    first, last = int(len(data) * first_share), int(len(data) * last_share)
    data[first:last] = bytes(last - first)
    path.write_bytes(bytes(data))


def test_damaged_tail_is_replaced_with_a_warning(tmp_path, make_video, read_number):
    path = make_video(
        tmp_path / "v.mp4", 100, options={"g": "1", "crf": "10"}, container_options={"movflags": "faststart"}
    )
    damage(path, 0.8, 1.0)
    with VideoReader(path) as reader:
        assert len(reader) == 100
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert [read_number(frame) for frame in reader.read([3, 40])] == [3, 40]
        with pytest.warns(UserWarning, match="replaced by their neighbours") as caught:
            frames = reader.read([10, 40, 60, 98])
        assert str(path) in str(caught[0].message)
        numbers = [read_number(frame) for frame in frames]
        assert numbers[:3] == [10, 40, 60] and 70 < numbers[3] < 85
        with pytest.raises(DecodeError, match="3 of the 4 frames asked for cannot be decoded"):
            reader.read([10, 90, 95, 98])


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
def test_random_damage_raises_nothing_but_decode_errors(tmp_path, make_video, suffix):
    options = {"container_options": {"movflags": "faststart"}} if suffix == ".mp4" else {}
    sound = make_video(tmp_path / f"v{suffix}", 40, options={"g": "10", "bf": "2"}, **options).read_bytes()
    rng = np.random.default_rng(0)
    read = refused = 0
    for _ in range(40):
        data = np.frombuffer(sound, np.uint8).copy()
        if rng.random() < 0.3:
            data = data[: rng.integers(1, len(data))]
        else:
            data[rng.integers(0, len(data), rng.choice([3, 200]))] = rng.integers(0, 256)
        path = tmp_path / f"damaged{suffix}"
        path.write_bytes(data.tobytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("error", ResourceWarning)
            try:
                with VideoReader(path) as reader:
                    indices = np.sort(rng.integers(0, len(reader), 5))
                    assert len(reader.read(indices)) == 5
                read += 1
            except DecodeError as error:
                assert str(path) in str(error) and "\n" not in str(error)
                refused += 1
    assert read > 5 and refused > 2


def test_no_frame_decodes(tmp_path, make_video):
    path = make_video(tmp_path / "v.mp4", 10, container_options={"movflags": "faststart"})
    data = path.read_bytes()
    start = data.index(b"mdat") + 4
    path.write_bytes(data[:start] + bytes(len(data) - start))
    assert "not one frame of it can be decoded" in sentence(path)


@pytest.mark.parametrize("indices", [[-1], [12], [0, 100]])
def test_position_outside(tmp_path, make_video, indices):
    path = make_video(tmp_path / "v.mp4", 12)
    with (
        VideoReader(path) as reader,
        pytest.raises(IndexError, match=r"has 12 frames: positions have to be in 0 \.\. 11"),
    ):
        reader.read(indices)
    with VideoReader(path) as reader, pytest.raises(ValueError, match="non-empty list"):
        reader.read([])


def test_libav_is_silent(tmp_path, make_video, capfd):
    path = make_video(tmp_path / "v.mp4", 60, options={"g": "1"}, container_options={"movflags": "faststart"})
    damage(path, 0.5, 0.7)
    capfd.readouterr()
    with VideoReader(path) as reader, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader.read(range(len(reader)))
    assert capfd.readouterr() == ("", "")


def test_time_base_of_the_stream_is_used(tmp_path, make_video):
    pts = [0, 1000, 5000]
    path = make_video(tmp_path / "v.mp4", 3, pts=pts, time_base=Fraction(1, 1000), options={"bf": "0"})
    with VideoReader(path) as reader:
        np.testing.assert_allclose(reader.pts_seconds, [0, 1, 5], atol=1e-4)
