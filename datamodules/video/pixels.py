"""Turn decoded frames into RGB pictures of one size: libswscale converts, torchvision resizes."""

import threading

import av
import torch
import torchvision.transforms.v2.functional as F
from av.video.reformatter import VideoReformatter
from torch import Tensor

from datamodules.video.resize import resize_options, short_side_size

__all__ = ["Painter"]


class Painter:
    """Turns the frames of a video into RGB pictures of one size.

    Args:
        width: of the frames, before `rotation`; others are brought to it, as a stream may change its size on the way.
        height: of the frames.
        rotation: clockwise turn of the pictures: 0, 90, 180 or 270 degrees.
        short_side: length in pixels to which the shorter side is resized; None keeps the size.
        interpolation: see `resize.resize_short_side`.

    Attributes:
        size: height and width of the pictures.
    """

    def __init__(
        self,
        width: int,
        height: int,
        *,
        rotation: int = 0,
        short_side: int | None = None,
        interpolation: str = "bilinear",
    ) -> None:
        self._width, self._height, self._rotation = width, height, rotation
        self._options = resize_options(interpolation)
        shown = (width, height) if rotation % 180 else (height, width)
        self.size = shown if short_side is None else short_side_size(*shown, short_side)
        self._resizes = self.size != shown

    def paint(self, frame: av.VideoFrame) -> Tensor:
        """Return a frame as uint8 (H, W, 3) of `size`.

        Raises:
            ValueError, av.FFmpegError: frames of this pixel format cannot be turned into RGB.
        """
        picture = _to_rgb(frame, self._width, self._height)
        if self._rotation:
            picture = torch.rot90(picture, -self._rotation // 90)
        if self._resizes:
            # torchvision's fast path wants rows without gaps, which libswscale leaves behind some widths.
            picture = picture.contiguous()
            picture = F.resize(picture.permute(2, 0, 1)[None], list(self.size), **self._options)[0].permute(1, 2, 0)
        return picture


class _OfThread(threading.local):
    """The converter of a thread: setting one up costs more than converting a small frame."""

    def __init__(self) -> None:
        self.converter = VideoReformatter()


_of_thread = _OfThread()


def _to_rgb(frame: av.VideoFrame, width: int, height: int) -> Tensor:
    """uint8 (H, W, 3), in the memory of the converted frame."""
    plane = _of_thread.converter.reformat(frame, width, height, format="rgb24", threads=1).planes[0]
    rows = torch.frombuffer(plane, dtype=torch.uint8).view(height, plane.line_size)
    pixels: Tensor = rows[:, : 3 * width].unflatten(1, (width, 3))
    return pixels
