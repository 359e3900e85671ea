"""Videos coded anew: smaller, with the same frames at the same times."""

import io

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datamodules import DecodeError, VideoReader
from datamodules.synthetic.writing import generate
from datamodules.video.encoding import reencode
from datamodules.video.frames import open_video


@pytest.fixture
def coded(tmp_path):
    """What `reencode` makes of a path, as a file."""

    def write(path, short_side, **options):
        out = tmp_path / "coded.mp4"
        out.write_bytes(reencode(path, short_side, **options))
        return out

    return write


def read_all(path):
    with open_video(path) as reader:
        return reader.read(range(reader.num_frames)).float(), reader.pts_seconds


def smooth(number):
    """A gradient that moves: what scaling and coding keep."""
    y, x = np.mgrid[:120, :200]
    planes = (128 + 100 * np.sin((x + 6 * number) / 40), 128 + 100 * np.cos((y - 4 * number) / 30), x + 0 * y)
    return np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)


def test_frames_and_times_stay(tmp_path, make_video, coded):
    pts = [0, 3000, 6000, 15000, 18000, 18900, 30000, 33000, 36000, 60000]
    source = make_video(tmp_path / "a.mp4", 10, width=200, height=120, frame_at=smooth, pts=pts, options={"bf": "2"})
    before, times = read_all(source)
    frames, after = read_all(coded(source, 60))
    assert frames.shape == (10, 3, 60, 100)
    np.testing.assert_allclose(after, times, atol=1e-6)
    wanted = F.interpolate(before, size=(60, 100), mode="bicubic", antialias=True)
    errors = ((frames - wanted) ** 2).mean(dim=(1, 2, 3))
    assert 10 * torch.log10(255**2 / errors).min() > 30  # dB, of each frame
    better, _ = read_all(coded(source, 60, crf=5))
    assert ((better - wanted) ** 2).mean() < errors.mean()


def test_what_is_small_already_stays(tmp_path, make_video):
    source = make_video(tmp_path / "a.mp4", 4, width=100, height=60)
    assert reencode(source, 60) is None and reencode(source, 61) is None
    with av.open(io.BytesIO(reencode(source, 33))) as made:
        stream = made.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height, stream.pix_fmt) == ("h264", 56, 32, "yuv420p")


def test_turned_as_it_is_shown(tmp_path, make_video, coded):
    source = make_video(tmp_path / "a.mp4", 3, width=200, height=120, frame_at=smooth, rotation=90)
    before, _ = read_all(source)
    out = coded(source, 60)
    with VideoReader(out) as reader:
        assert reader.rotation == 0 and (reader.width, reader.height) == (60, 100)
    frames, _ = read_all(out)
    wanted = F.interpolate(before, size=(100, 60), mode="bicubic", antialias=True)
    assert (frames - wanted).abs().mean() < 6


def test_key_frames_every_two_seconds(tmp_path, make_video, coded):
    source = make_video(tmp_path / "a.mp4", 60, width=80, height=48, fps=10, options={"g": "250"})
    with av.open(str(coded(source, 24))) as made:
        keys = [i for i, frame in enumerate(made.decode(video=0)) if frame.key_frame]
    assert keys[0] == 0 and max(np.diff([*keys, 60])) <= 20


def test_a_folder_of_frames_becomes_a_video(tmp_path, coded):
    from torchvision.io import write_jpeg

    (tmp_path / "frames").mkdir()
    for number in range(1, 6):
        write_jpeg(torch.from_numpy(smooth(number)).permute(2, 0, 1), str(tmp_path / f"frames/img_{number:05d}.jpg"))
    before, times = read_all(tmp_path / "frames")
    frames, after = read_all(coded(tmp_path / "frames", 240))
    assert frames.shape == before.shape and (frames - before).abs().mean() < 6  # never larger than it was
    np.testing.assert_allclose(after, times, atol=1e-4)


def test_sound_is_left_out_and_damage_is_told(tmp_path, make_video, make_silence):
    with pytest.raises(DecodeError, match="no video stream"):
        reencode(make_silence(tmp_path / "s.mp4"), 20)
    source = make_video(tmp_path / "a.mp4", 40, width=200, height=120, frame_at=smooth, options={"g": "5", "bf": "0"})
    data = bytearray(source.read_bytes())
    start, end = data.index(b"mdat") + 8, data.index(b"moov") - 4
    for share, message in ((0.3, None), (0.9, "damaged")):
        first = end - int(share * (end - start))
        source.write_bytes(data[:first] + bytes(end - first) + data[end:])
        if message is None:
            with av.open(io.BytesIO(reencode(source, 24))) as made:
                assert 20 <= sum(1 for _ in made.decode(video=0)) <= 40
        else:
            with pytest.raises(DecodeError, match=message):
                reencode(source, 24)


@pytest.mark.parametrize(("codec", "pixels", "space", "value_range"), [
    ("libx264", "yuv420p", 1, 1), ("libx264", "yuv420p", 1, 2), ("libx264", "yuv444p10le", 9, 1),
    ("mjpeg", "yuvj420p", 5, 2),
])  # fmt: skip
def test_colours_stay(tmp_path, coded, codec, pixels, space, value_range):
    """Whatever the file says of its numbers: BT.709, BT.2020, all of 0 .. 255 or not, ten bits."""
    source = tmp_path / "a.mkv"
    picture = np.zeros((120, 200, 3), np.uint8)
    picture[:, :66], picture[:, 66:133], picture[:, 133:] = (230, 50, 45), (70, 190, 70), (60, 110, 235)
    with av.open(str(source), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"crf": "5"} if codec == "libx264" else {"q": "1"})
        stream.width, stream.height, stream.pix_fmt = 200, 120, pixels
        stream.codec_context.colorspace, stream.codec_context.color_range = space, value_range
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    before, _ = read_all(source)
    frames, _ = read_all(coded(source, 60, crf=5))
    for share in (1 / 6, 1 / 2, 5 / 6):
        colours = [frame[1, :, frame.shape[2] // 2, int(share * frame.shape[3])] for frame in (before, frames)]
        assert (colours[0] - colours[1]).abs().max() <= 4


def test_the_same_video_gives_the_same_bytes(tmp_path):
    """As x264's code for AVX-512 does not, for most of these."""
    root = generate(
        tmp_path / "clips", num_train=4, num_val=0, num_test=0, size=(96, 80), num_workers=0, progress=False
    )
    for path in root.rglob("*.mp4"):
        assert len({reencode(path, 48) for _ in range(8)}) == 1
