"""Videos as numbered pictures, and the choice of the reader for a path."""

import os
import re
from abc import abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from datamodules.errors import DataError
from datamodules.storage.files import Folders, is_url, join
from datamodules.video.decode import VideoReader
from datamodules.video.opening import DecodeError
from datamodules.video.reader import Reader

__all__ = ["DECODERS", "NUMBERED", "FrameFolder", "NumberedFrames", "check_decoder", "open_video"]

NUMBERED = re.compile(r"\D*(\d+)\.(?:jpe?g|png)", re.IGNORECASE)
"""Names of numbered pictures, such as img_00001.jpg."""

DECODERS = ("pyav", "torchcodec", "torchcodec-cuda")
"""Decoders of video files; still images and folders of them are always read with PyAV."""

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


def check_decoder(decoder: str) -> None:
    """Raise `DataError` for one that does not exist, or cannot be used here."""
    if decoder not in DECODERS:
        raise DataError(f"decoder is {decoder!r}; it has to be one of {', '.join(DECODERS)}.")
    if decoder != "pyav":
        from datamodules.video.torchcodec_reader import check_torchcodec

        check_torchcodec("cuda" if decoder == "torchcodec-cuda" else "cpu")


def open_video(path: str | os.PathLike[str], *, decoder: str = "pyav") -> Reader:
    """The reader of a video file or still image, or of a folder of frames. Behind a URL, no suffix means a folder.

    Args:
        path: local, a URL, or an address in a shard.
        decoder: one of `DECODERS`.

    Raises:
        DataError: the decoder does not exist or is not installed.
        DecodeError: there is nothing at the path, or nothing that can be read.
    """
    path = os.fspath(path)
    is_folder = not os.path.splitext(path)[1] if is_url(path) else os.path.isdir(path)
    if is_folder:
        return FrameFolder(path)
    if decoder == "pyav" or path.lower().endswith(_IMAGES):
        return VideoReader(path)
    check_decoder(decoder)
    from datamodules.video.torchcodec_reader import TorchCodecReader  # an extra

    return TorchCodecReader(path, device="cuda" if decoder == "torchcodec-cuda" else "cpu")


class NumberedFrames(Reader):
    """Frames of one video as numbered pictures.

    Position i is the picture with the i-th smallest number, wherever the numbers start.
    """

    def __init__(self, path: str, num_frames: int, fps: float) -> None:
        self.path, self.num_frames, self.fps = path, num_frames, fps
        self.pts_seconds = np.arange(num_frames) / fps

    @override
    def _read(self, positions: NDArray[np.int64], short_side: int | None, interpolation: str) -> Tensor:
        wanted, inverse = np.unique(positions, return_inverse=True)
        pictures = [picture.permute(1, 2, 0) for picture in self._pictures(wanted.tolist(), short_side, interpolation)]
        return torch.stack(pictures).index_select(0, torch.from_numpy(inverse)).permute(0, 3, 1, 2)

    @abstractmethod
    def _pictures(self, positions: list[int], short_side: int | None, interpolation: str) -> list[Tensor]:
        """The pictures at some positions, uint8 (3, H, W) each."""


class FrameFolder(NumberedFrames):
    """Frames of one video as pictures `img_00001.jpg`, `img_00002.jpg`, ... in a folder.

    Args:
        path: the folder, local or a URL.
        fps: frames per second, which the pictures do not tell.

    Raises:
        DecodeError: the folder is missing or has no such pictures.
    """

    def __init__(self, path: str | os.PathLike[str], *, fps: float = 25.0) -> None:
        path = os.fspath(path)
        found = [(match, name) for name in Folders().entries(path) if (match := NUMBERED.fullmatch(name))]
        self._names = [name for _, name in sorted((int(match[1]), name) for match, name in found)]
        if not self._names:
            raise DecodeError(
                f"{path} is not a video file, and no folder of numbered frames (img_00001.jpg, ...); check the path."
            )
        super().__init__(path, len(self._names), fps)

    def _pictures(self, positions: list[int], short_side: int | None, interpolation: str) -> list[Tensor]:
        """Raise `DecodeError` for a picture that cannot be read, or has another size than the others."""
        pictures = []
        for position in positions:
            with VideoReader(join(self.path, self._names[position])) as reader:
                pictures.append(reader.read([0], short_side=short_side, interpolation=interpolation)[0])
            if pictures[-1].shape != pictures[0].shape:
                sizes = [f"{picture.shape[2]} x {picture.shape[1]}" for picture in (pictures[0], pictures[-1])]
                raise DecodeError(
                    f"{self.path} has frames of different sizes ({' and '.join(sizes)}); take the video apart again."
                )
        return pictures
