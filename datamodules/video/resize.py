"""Frames and clips brought to a size: uint8 (T, 3, H, W), the same for every frame of a clip."""

from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import InterpolationMode

from datamodules.errors import DataError
from datamodules.video.reader import Reader

__all__ = [
    "MAX_SIDE",
    "INTERPOLATIONS",
    "RESIZES",
    "resize_options",
    "resize_short_side",
    "short_side_size",
    "squeeze",
    "read_resized",
    "center_crop",
    "crop_views",
    "to_clip",
]

MAX_SIDE = 8192
"""Pixels of a side of what a model sees."""

INTERPOLATIONS = ("bilinear", "bicubic", "bicubic-plain")
"""`bilinear` without antialiasing, as video models were trained; `bicubic` with it, as image models were;
`bicubic-plain` without it, as models of videos and language were."""

RESIZES = ("crop", "squeeze")
"""How a frame becomes a square in evaluation: `crop` resizes its shorter side to `short_side` pixels and cuts squares
out of it; `squeeze` resizes it to a square and ignores its proportions."""


def resize_options(interpolation: str) -> dict[str, Any]:
    """Return the options of torchvision's resizing for one of `INTERPOLATIONS`; raise `DataError` for others."""
    if interpolation not in INTERPOLATIONS:
        raise DataError(f"interpolation has to be one of {', '.join(INTERPOLATIONS)}, got {interpolation!r}.")
    mode = InterpolationMode(interpolation.removesuffix("-plain"))
    return {"interpolation": mode, "antialias": interpolation == "bicubic"}


def resize_short_side(video: Tensor, short_side: int, interpolation: str = "bilinear") -> Tensor:
    """Resize so that the shorter side has `short_side` pixels; the longer one is truncated to an integer.

    Args:
        video: uint8 (T, 3, H, W).
        interpolation: one of `INTERPOLATIONS`.

    Returns:
        uint8 (T, 3, H', W') with min(H', W') = short_side.
    """
    options = resize_options(interpolation)
    height, width = video.shape[-2:]
    if min(height, width) == short_side:
        return video
    return F.resize(video, list(short_side_size(height, width, short_side)), **options)


def short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width with a shorter side of `short_side` pixels, the longer one truncated to an integer."""
    if height <= width:
        return short_side, int(short_side * width / height)
    return int(short_side * height / width), short_side


def squeeze(video: Tensor, size: int, interpolation: str = "bilinear") -> Tensor:
    """The whole frame as a square of `size` pixels, uint8 (T, 3, H, W) -> (T, 3, size, size)."""
    return F.resize(video, [size, size], **resize_options(interpolation))


def read_resized(
    reader: Reader, indices: NDArray[np.int64], *, image_size: int, short_side: int, interpolation: str, resize: str
) -> Tensor:
    """Frames for evaluation, to be cropped to squares of `image_size`, which they are already where `resize` squeezes.

    Frames that are squeezed are in memory all at once in their own size before that.

    Args:
        indices: int64 (T,), positions of the frames.
        image_size: side of the model's input in pixels.
        short_side: of the frames in pixels, where `resize`, one of `RESIZES`, is "crop".

    Returns:
        uint8 (T, 3, H, W).
    """
    if resize not in RESIZES:
        raise DataError(f"resize has to be one of {', '.join(RESIZES)}, got {resize!r}.")
    if resize == "squeeze":
        return squeeze(reader.read(indices), image_size, interpolation)
    return reader.read(indices, short_side=short_side, interpolation=interpolation)


def center_crop(video: Tensor, size: int) -> Tensor:
    """The square of `size` pixels in the middle, uint8 (T, 3, size, size), in the memory of the video.

    Raises:
        DataError: a side is shorter than `size`.
    """
    ((y, x),) = _corners(video, size, 1)
    return video[..., y : y + size, x : x + size]


def crop_views(video: Tensor, size: int, num_crops: int) -> Tensor:
    """Squares of `size` pixels: the middle one, or three along the longer side (start, middle, end).

    With `size` equal to the shorter side, the three start at int(c (long - short) / 2), c = 0, 1, 2, as the published
    three-crop test does.

        +-----+-----+-----+
        |  0  :  1  :  2  |    they overlap unless the video is very wide
        +-----+-----+-----+

    Args:
        video: uint8 (T, 3, H, W), or (clips, T, 3, H, W).
        num_crops: 1 or 3.

    Returns:
        uint8 (num_crops, T, 3, size, size), or (num_crops, clips, T, 3, size, size). In memory the crops of a clip
        follow each other and frames come after colours, as models take them.

    Raises:
        DataError: a side is shorter than `size`, or `num_crops` is another number.
    """
    corners = _corners(video, size, num_crops)
    video = _contiguous(video)  # once, as the squares overlap
    *clips, num_frames, colours, _, _ = video.shape
    views = video.new_empty((*clips, num_crops, colours, num_frames, size, size)).transpose(-4, -3).movedim(-5, 0)
    for view, (y, x) in zip(views, corners, strict=True):
        view.copy_(video[..., y : y + size, x : x + size])
    return views


def _corners(video: Tensor, size: int, num_crops: int) -> list[tuple[int, int]]:
    """Rows and columns where the squares of `crop_views` begin."""
    height, width = video.shape[-2:]
    if min(height, width) < size:
        raise DataError(
            f"cannot crop {size} pixels from a video of {width} x {height}; choose image_size <= short_side."
        )
    top, left = round((height - size) / 2), round((width - size) / 2)
    if num_crops == 1:
        corners = [(top, left)]
    elif num_crops == 3 and height > width:
        corners = [(int(c * (height - size) / 2), left) for c in range(3)]
    elif num_crops == 3:
        corners = [(top, int(c * (width - size) / 2)) for c in range(3)]
    else:
        raise DataError(f"num_crops has to be 1 or 3, got {num_crops}.")
    return corners


def to_clip(frames: Tensor) -> Tensor:
    """Pictures in the order that models take: uint8 (T, 3, H, W) -> (3, T, H, W), contiguous.

    The last step of reading a clip. Before it, the colours of a pixel stand together in memory, as decoders and
    resizing have it.
    """
    return _contiguous(frames.transpose(0, 1))


def _contiguous(video: Tensor) -> Tensor:
    """A copy, where one is needed, by numpy, which takes half of torch's time to bring the colours of pixels apart."""
    if video.is_contiguous() or not video.is_cpu:
        return video.contiguous()
    return torch.from_numpy(np.ascontiguousarray(video.numpy()))
