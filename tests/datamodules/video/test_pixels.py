"""Pictures have the pixels of libswscale and torchvision, and the colours of the standards."""

from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode

from datamodules.video.decode import VideoReader
from datamodules.video.pixels import Painter
from datamodules.video.resize import to_clip

BT709, UNSAID, BT601 = 1, 2, 5
LIMITED, FULL = 1, 2


def noise(name: str, width: int, height: int, colour_space: int = UNSAID, colour_range: int = 0, seed: int = 0):
    frame = av.VideoFrame(width, height, name)
    numbers = np.random.default_rng(seed)
    for plane in frame.planes:
        plane.update(numbers.bytes(plane.buffer_size))
    frame.colorspace, frame.color_range = colour_space, colour_range
    return frame


def by_libraries(frame, width, height, rotation=0, short_side=None, interpolation="bilinear"):
    """uint8 (H, W, 3), step by step."""
    rgb = frame.reformat(width, height, format="rgb24", threads=1).to_ndarray()
    picture = torch.from_numpy(np.rot90(rgb, -rotation // 90).copy()).permute(2, 0, 1)[None]
    if short_side is not None and short_side != min(picture.shape[-2:]):
        high, wide = picture.shape[-2:]
        size = (
            [short_side, int(short_side * wide / high)] if high <= wide else [int(short_side * high / wide), short_side]
        )
        mode = InterpolationMode.BICUBIC if interpolation.startswith("bicubic") else InterpolationMode.BILINEAR
        picture = F.resize(picture, size, interpolation=mode, antialias=interpolation == "bicubic")
    return picture[0].permute(1, 2, 0)


def painted(frame, painter: Painter):
    picture = painter.paint(frame)
    assert tuple(picture.shape) == (*painter.size, 3)
    return picture


OTHERS = ["yuvj420p", "yuv422p", "yuv444p", "nv12", "gray", "yuv420p10le", "rgb24", "pal8"]


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(["yuv420p"] * 5 + OTHERS),
    st.integers(1, 90),
    st.integers(1, 60),
    st.sampled_from([UNSAID, UNSAID, 0, BT709, 4, BT601, 6, 7, 9]),
    st.integers(0, 2),
    st.sampled_from([None, 16, 31, 48, 100]),
    st.sampled_from([0, 0, 0, 90, 180, 270]),
    st.sampled_from(["bilinear", "bilinear", "bicubic", "bicubic-plain"]),
    st.booleans(),
)
def test_pictures_are_those_of_the_libraries(
    name, width, height, colour_space, colour_range, short_side, rotation, interpolation, even
):
    if even:
        width, height = 2 * width + 30, 2 * height
    frame = noise(name, width, height, colour_space, colour_range)
    options = {"rotation": rotation, "short_side": short_side, "interpolation": interpolation}
    if short_side is not None and max(width, height) / min(width, height) > 8:
        return
    expected = by_libraries(frame, width, height, **options)
    picture = painted(frame, Painter(width, height, **options))
    assert torch.equal(picture, expected)


SIZES = [(1920, 1080, 256), (1280, 720, 256), (1080, 1920, 256), (320, 240, 256), (340, 256, 224), (34, 2, None)]


@pytest.mark.parametrize(("width", "height", "short_side"), SIZES)
def test_sizes_of_real_videos(width, height, short_side):
    frame = noise("yuv420p", width, height)
    expected = by_libraries(frame, width, height, short_side=short_side)
    assert torch.equal(painted(frame, Painter(width, height, short_side=short_side)), expected)


@pytest.mark.parametrize(
    ("colour_space", "red", "blue"), [(BT601, 0.299, 0.114), (BT709, 0.2126, 0.0722)], ids=["601", "709"]
)
@pytest.mark.parametrize("full", [False, True])
def test_colours_are_those_of_the_standard(colour_space, red, blue, full):
    """Recommendations BT.601 and BT.709: Y = r R + (1 - r - b) G + b B, U and V the differences of B and R from it."""
    frame = noise("yuv420p", 64, 48, colour_space, FULL if full else LIMITED)
    y, u, v = (
        np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width].astype(float)
        for plane in frame.planes
    )
    y = y / 255 if full else (y - 16) / 219
    u, v = (((plane - 128) / (255 if full else 224)).repeat(2, 0).repeat(2, 1) for plane in (u, v))
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    g = (y - red * r - blue * b) / (1 - red - blue)
    expected = np.clip(255 * np.stack([r, g, b], axis=2), 0, 255)
    picture = painted(frame, Painter(64, 48)).numpy()
    assert np.abs(picture - expected).max() < 3.5 and abs((picture - expected).mean()) < 1


def test_resizing_is_bilinear():
    frame = noise("yuv420p", 96, 72)
    picture = painted(frame, Painter(96, 72)).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(picture, (50, 66), mode="bilinear", align_corners=False)
    resized = painted(frame, Painter(96, 72, short_side=50)).permute(2, 0, 1)[None]
    assert resized.shape == (1, 3, 50, 66) and (resized - expected).abs().max() < 1.1


def test_a_frame_of_another_size_is_brought_to_that_of_the_video():
    frame = noise("yuv420p", 64, 48)
    expected = by_libraries(frame, 96, 72, short_side=40)
    assert torch.equal(painted(frame, Painter(96, 72, short_side=40)), expected)


def test_a_pixel_format_without_colours_raises():
    with pytest.raises((ValueError, av.FFmpegError)):
        Painter(64, 48).paint(noise("yuv420p", 64, 48, colour_space=3))


def test_threads_do_not_disturb_each_other():
    frames = [noise("yuv420p", 320, 240, seed=seed) for seed in range(16)]
    painter = Painter(320, 240, short_side=128)
    expected = [by_libraries(frame, 320, 240, short_side=128) for frame in frames]
    with ThreadPoolExecutor(4) as pool:
        for picture, wanted in zip(pool.map(lambda frame: painted(frame, painter), frames), expected, strict=True):
            assert torch.equal(picture, wanted)


@pytest.mark.parametrize(
    ("codec", "pixel_format", "colour_space", "colour_range"),
    [
        ("libx264", "yuv420p", BT709, LIMITED),
        ("libx264", "yuvj420p", BT709, FULL),
        ("libx264", "yuv444p", BT601, LIMITED),
        ("libx264", "yuv420p10le", BT709, LIMITED),
        ("mjpeg", "yuvj420p", BT601, FULL),
        ("mpeg2video", "yuv420p", BT709, LIMITED),
    ],
)
def test_files_of_several_kinds(codec, pixel_format, colour_space, colour_range, tmp_path):
    path = tmp_path / "video.mp4"
    with av.open(str(path), "w") as container:
        interlaced = {"flags": "+ildct+ilme"} if codec == "mpeg2video" else {}
        stream = container.add_stream(codec, rate=25, options=interlaced)
        stream.width, stream.height, stream.pix_fmt = 96, 72, pixel_format
        stream.codec_context.colorspace, stream.codec_context.color_range = colour_space, colour_range
        for seed in range(6):
            picture = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert frames[0].format.name == pixel_format and frames[0].interlaced_frame == bool(interlaced)
    for short_side in (None, 48):
        expected = torch.stack([by_libraries(frame, 96, 72, short_side=short_side) for frame in frames])
        with VideoReader(path) as reader:
            read = reader.read(range(6), short_side=short_side)
        assert torch.equal(read.permute(0, 2, 3, 1), expected)


MEMORY = ["together", "apart", "float", "two"]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 120), st.sampled_from(MEMORY))
def test_clips_have_the_order_of_models(num_frames, height, width, memory):
    frames = torch.randint(0, 256, (num_frames, height + 3, width + 5, 3), dtype=torch.uint8)
    frames = frames.permute(0, 3, 1, 2)[..., 2:-1, 1:-4]
    if memory == "apart":
        frames = frames.contiguous()
    elif memory == "float":
        frames = frames.float()
    elif memory == "two":
        frames = frames[:, :2]
    clip = to_clip(frames)
    assert clip.is_contiguous() and clip.dtype == frames.dtype
    assert torch.equal(clip, frames.transpose(0, 1))
