"""From decoded frames to RGB pictures of one size.

The pixels are those of libswscale (conversion) and torchvision (resizing). Frames of the common kind, 4:2:0 with 8
bits, are converted and resized bilinearly in one pass by compiled loops (`pixel_kernels`), which look only at the rows
that are needed; all others go through the libraries:

    frame --libswscale--> RGB --torchvision--> resized        1080p to 256: 1.3 ms
    frame ------------- one pass ------------> resized                      0.2 ms

Libraries round differently on other CPUs. So a process compares both ways on a small picture before it takes the loops
for a kind of frame, and keeps to the libraries where one bit differs.
"""

import threading
from functools import cache, lru_cache
from typing import NamedTuple

import av
import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from av.video.reformatter import VideoReformatter
from torch import Tensor

from datamodules.transforms import LOOP_WIDTH, resize_options, short_side_size

__all__ = ["Painter"]

_MATRICES = {
    1: (117489, 138438, 13975, 34925),  # BT.709
    2: (104597, 132201, 25675, 53279),  # not said: as BT.601
    5: (104597, 132201, 25675, 53279),  # BT.601 at 625 lines
    6: (104597, 132201, 25675, 53279),  # BT.601 at 525 lines
}
"""By libav's number of a colour space: V in red, U in blue, U in green, V in green, in 1/65536 at limited range."""

_FULL_RANGE = 2
"""libav's number of the range 0 .. 255."""


class Painter:
    """Turns the frames of a video into RGB pictures of one size.

    Args:
        width: of the frames, before `rotation`; others are brought to it, as a stream may change its size on the way.
        height: of the frames.
        rotation: clockwise turn of the pictures: 0, 90, 180 or 270 degrees.
        short_side: length in pixels to which the shorter side is resized; None keeps the size.
        interpolation: see `transforms.resize_short_side`.

    Attributes:
        size: height and width of the pictures.
    """

    def __init__(
        self, width: int, height: int, *, rotation: int = 0, short_side: int | None = None, interpolation="bilinear"
    ) -> None:
        self._width, self._height, self._rotation = width, height, rotation
        self._options = resize_options(interpolation)
        shown = (width, height) if rotation % 180 else (height, width)
        self.size = shown if short_side is None else short_side_size(*shown, short_side)
        self._resizes = self.size != shown
        self._convertible = width % 2 == height % 2 == 0 and width >= LOOP_WIDTH
        out_height, out_width = self.size
        both = out_width != width and out_height != height  # torch leaves out a direction that does not change
        self._resizing: _Resizing | None = None
        if self._convertible and not rotation and both and out_width >= LOOP_WIDTH and interpolation == "bilinear":
            self._resizing = _resizing(width, height, out_width, out_height)

    def paint(self, frame: av.VideoFrame, out: Tensor | None = None) -> Tensor:
        """A frame as uint8 (H, W, 3), written to `out` where that is given, which has to be contiguous.

        Raises:
            ValueError, av.FFmpegError: frames of this pixel format cannot be turned into RGB.
        """
        out = torch.empty((*self.size, 3), dtype=torch.uint8) if out is None else out
        matrix = self._matrix_for(frame)
        if matrix is not None and self._resizing is not None and _resizing_agrees():
            _paint(frame, out, matrix, self._resizing)
        elif matrix is not None and not self._rotation and not self._resizes:
            _paint(frame, out, matrix)
        else:
            if matrix is None:
                picture = _to_rgb(frame, self._width, self._height)
            else:
                picture = torch.empty((self._height, self._width, 3), dtype=torch.uint8)
                _paint(frame, picture, matrix)
            out.copy_(self._turned_and_resized(picture))
        return out

    def _matrix_for(self, frame: av.VideoFrame) -> tuple[int, ...] | None:
        """What the loops need for a frame; None where they do not suit it."""
        if not self._convertible or frame.width != self._width or frame.height != self._height:
            return None
        if frame.interlaced_frame:  # libswscale takes its halves one after the other
            return None
        name = frame.format.name
        if name not in ("yuv420p", "yuvj420p"):
            return None
        return _verified_matrix(name, int(frame.colorspace), int(frame.color_range))

    def _turned_and_resized(self, picture: Tensor) -> Tensor:
        picture = torch.rot90(picture, -self._rotation // 90) if self._rotation else picture
        if not self._resizes:
            return picture
        return _resized(picture, self.size, self._options)


# The two ways --------------------------------------------------------------------------------------------------------


class _OfThread(threading.local):
    """What a thread keeps: setting up a converter costs more than converting a small frame."""

    def __init__(self) -> None:
        self.converter = VideoReformatter()


_of_thread = _OfThread()


def _to_rgb(frame: av.VideoFrame, width: int, height: int) -> Tensor:
    """uint8 (H, W, 3) by libswscale, in the memory of the frame."""
    plane = _of_thread.converter.reformat(frame, width, height, format="rgb24", threads=1).planes[0]
    rows = torch.frombuffer(plane, dtype=torch.uint8).view(height, plane.line_size)
    return rows[:, : 3 * width].unflatten(1, (width, 3))


def _resized(picture: Tensor, size: tuple[int, int], options: dict) -> Tensor:
    """uint8 (H, W, 3) by torchvision."""
    return F.resize(picture.permute(2, 0, 1)[None], list(size), **options)[0].permute(1, 2, 0)


class _Resizing(NamedTuple):
    """Where the loops look, see `pixel_kernels.yuv_to_rgb_resized`."""

    column_offsets: np.ndarray
    column_weights: np.ndarray
    column_bits: int
    row_numbers: np.ndarray
    row_weights: np.ndarray
    row_bits: int


def _paint(frame: av.VideoFrame, out: Tensor, matrix: tuple[int, ...], resizing: _Resizing | None = None) -> None:
    """By the loops."""
    from datamodules import pixel_kernels  # numba takes half a second

    out_height, out_width, _ = out.shape
    y, u, v = frame.planes
    planes = (y.buffer_ptr, y.line_size, u.buffer_ptr, u.line_size, v.buffer_ptr, v.line_size)
    target = (out.data_ptr(), 3 * out_width, frame.width, frame.height)
    if resizing is None:
        pixel_kernels.yuv_to_rgb(*planes, *target, matrix)
        return
    room = frame.width + 2 * out_width + 3 * pixel_kernels.SCRATCH_PIXELS
    scratch = np.empty(room, dtype=np.int32)
    tables = (value if isinstance(value, int) else value.ctypes.data for value in resizing)
    pixel_kernels.yuv_to_rgb_resized(*planes, *target, out_width, out_height, *tables, scratch.ctypes.data, matrix)


def _matrix(colour_space: int, *, full_range: bool) -> tuple[int, ...]:
    """The integers of `pixel_kernels`, rounded as libswscale does (`ff_yuv2rgb_c_init_tables`)."""
    red_v, blue_u, green_u, green_v = _MATRICES[colour_space]
    luma, offset = 65536, 0
    if full_range:
        red_v, blue_u, green_u, green_v = (factor * 224 // 255 for factor in (red_v, blue_u, green_u, green_v))
    else:
        luma, offset = luma * 255 // 219, 16
    return offset * 8, *((factor * 8192 + 2**15) >> 16 for factor in (luma, red_v, blue_u, -green_v, -green_u))


@lru_cache(maxsize=256)
def _resizing(width: int, height: int, out_width: int, out_height: int) -> _Resizing:
    columns, column_weights, column_bits = _neighbours(width, out_width)
    rows, row_weights, row_bits = _neighbours(height, out_height)
    # Columns go by fours: the last ones are done more than once.
    fours = np.minimum(np.arange(-(-out_width // 4) * 4), out_width - 1)
    return _Resizing(
        (4 * columns[fours]).astype(np.int32),
        np.repeat(column_weights[fours], 4, axis=0).astype(np.int16, order="C"),
        column_bits,
        rows.astype(np.int32),
        row_weights.astype(np.int32, order="C"),
        row_bits,
    )


def _neighbours(length: int, out_length: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Of each place in a resized row: the first of its two neighbours, their weights, and the bits of the weights.

    As torch has them for uint8: the centres of pixels are matched, weights are as exact as 16 bits allow.
    """
    centre = np.maximum((np.arange(out_length) + 0.5) * (length / out_length) - 0.5, 0)
    first = np.minimum(centre.astype(np.int64), length - 1)
    share = np.where(first < length - 1, centre - first, 0)
    weights = np.stack([1 - share, share], axis=1)
    bits = next(bits for bits in range(22, -1, -1) if int(0.5 + weights.max() * 2**bits) < 2**15)
    return first, (0.5 + weights * 2**bits).astype(np.int64), bits


# Verification --------------------------------------------------------------------------------------------------------


@cache
def _verified_matrix(name: str, colour_space: int, colour_range: int) -> tuple[int, ...] | None:
    """The integers for a kind of frame; None where the loop would give other pixels than libswscale."""
    if colour_space not in _MATRICES:
        return None
    matrix = _matrix(colour_space, full_range=colour_range == _FULL_RANGE or name == "yuvj420p")
    frame = _noise(name, 94, 64)
    frame.colorspace, frame.color_range = colour_space, colour_range
    painted = torch.empty((frame.height, frame.width, 3), dtype=torch.uint8)
    _paint(frame, painted, matrix)
    return matrix if torch.equal(painted, _to_rgb(frame, frame.width, frame.height)) else None


@cache
def _resizing_agrees() -> bool:
    """Whether the loop gives the pixels of torchvision."""
    frame = _noise("yuv420p", 94, 64)
    matrix = _verified_matrix("yuv420p", int(frame.colorspace), int(frame.color_range))
    if matrix is None:
        return False
    picture = _to_rgb(frame, frame.width, frame.height)
    for height, width in ((21, 33), (97, 131)):
        painted = torch.empty((height, width, 3), dtype=torch.uint8)
        _paint(frame, painted, matrix, _resizing(frame.width, frame.height, width, height))
        if not torch.equal(painted, _resized(picture, painted.shape[:2], resize_options("bilinear"))):
            return False
    return True


def _noise(name: str, width: int, height: int) -> av.VideoFrame:
    frame = av.VideoFrame(width, height, name)
    noise = np.random.default_rng(0)
    for plane in frame.planes:
        plane.update(noise.bytes(plane.buffer_size))
    return frame
