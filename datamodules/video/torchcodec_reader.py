"""torchcodec instead of PyAV, on the CPU or an NVIDIA GPU; an extra (`pip install "video-mamba-zoo[torchcodec]"`).

It needs the libraries of FFmpeg 4 to 8 on the system. See docs/data.md for when it is faster.
"""

import os
from functools import cached_property

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from datamodules.errors import DataError
from datamodules.video.decode import VideoReader
from datamodules.video.opening import DecodeError, check_size, open_container, open_file
from datamodules.video.reader import Reader
from datamodules.video.resize import resize_short_side, short_side_size

__all__ = ["TorchCodecReader", "check_torchcodec"]

_AT_ONCE = 16
"""Frames that are in memory in their full size."""


def check_torchcodec(device: str = "cpu") -> None:
    """Raise `DataError` where torchcodec cannot be used on the device, "cpu" or "cuda"."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".:")
        raise DataError(
            f"The decoder torchcodec cannot be loaded ({reason}); install video-mamba-zoo[torchcodec] and FFmpeg, or "
            "set decoder: pyav."
        ) from error
    if device == "cuda" and not torch.cuda.is_available():
        raise DataError("The decoder torchcodec-cuda needs an NVIDIA GPU, and there is none; set decoder: torchcodec.")


class TorchCodecReader(Reader):
    """Reads frames of one video file by position.

    A damaged frame makes the file unreadable; none is replaced by a neighbour.

    Args:
        path: file, local, behind a URL or in a shard.
        device: "cpu", or "cuda" to decode and resize on the current GPU; frames come back to main memory.

    Raises:
        DataError: torchcodec is not installed, or there is no GPU.
        DecodeError: the file cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], *, device: str = "cpu") -> None:
        check_torchcodec(device)
        from torchcodec.decoders import VideoDecoder

        self.path = os.fspath(path)
        self._file = open_file(self.path)
        try:
            # torchcodec cannot be told which formats to leave alone, nor not to take a file's name for an address.
            open_container(self._file).close()
            self._file.seek(0)
            self._decoder = VideoDecoder(self._file, num_ffmpeg_threads=1, device=device)
            metadata = self._decoder.metadata
            self.num_frames, self.width, self.height = len(self._decoder), metadata.width, metadata.height
            self.fps = float(metadata.average_fps or 25.0)
            check_size(self.path, self.width or 0, self.height or 0)
        except (av.FFmpegError, OSError, RuntimeError, ValueError, TypeError) as error:
            self.close()
            if isinstance(error, DecodeError):
                raise
            raise self._unreadable(error) from error

    @override
    def close(self) -> None:
        self._decoder = None
        self._file.close()

    @cached_property
    def pts_seconds(self) -> NDArray[np.float64]:  # type: ignore[override]  # made when it is asked for
        """float64 (num_frames,), times since the first frame, from the index that PyAV makes."""
        with VideoReader(self.path) as reader:
            return reader.pts_seconds if len(reader) == len(self) else np.arange(len(self)) / self.fps

    @override
    def _read(self, positions: NDArray[np.int64], short_side: int | None, interpolation: str) -> Tensor:
        if short_side is not None:
            check_size(self.path, *short_side_size(self.height, self.width, short_side)[::-1])
        wanted, inverse = np.unique(positions, return_inverse=True)
        parts = []
        for start in range(0, len(wanted), _AT_ONCE):
            try:
                frames = self._decoder.get_frames_at(wanted[start : start + _AT_ONCE].tolist()).data
            except (RuntimeError, IndexError) as error:
                raise self._unreadable(error) from error
            frames = frames if short_side is None else resize_short_side(frames, short_side, interpolation)
            parts.append(frames.cpu())
        frames = torch.cat(parts) if len(parts) > 1 else parts[0]
        return frames if np.array_equal(wanted, positions) else frames.index_select(0, torch.from_numpy(inverse))

    def _unreadable(self, error: Exception) -> DecodeError:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        return DecodeError(f"{self.path} cannot be read by torchcodec ({reason}); copy it again, or set decoder: pyav.")
