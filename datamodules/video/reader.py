"""Base of all readers of a video's frames."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from datamodules.errors import DataError

__all__ = ["Reader"]


class Reader(ABC):
    """Frames of one video by position. A context manager.

    Attributes:
        path: of the video.
        num_frames: frames in it.
        fps: frames per second, on average.
        pts_seconds: float64 (num_frames,), times since the first frame, ascending.
    """

    path: str
    num_frames: int
    fps: float
    pts_seconds: NDArray[np.float64]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.num_frames

    def close(self) -> None:  # noqa: B027  (some keep nothing open)
        """Close the file; the reader cannot be used afterwards."""

    @property
    def duration_seconds(self) -> float:
        """Time from the first frame to the end of the last one."""
        return float(self.pts_seconds[-1]) + 1.0 / self.fps

    def read(
        self,
        indices: Sequence[int] | NDArray[np.integer],
        *,
        short_side: int | None = None,
        interpolation: str = "bilinear",
    ) -> Tensor:
        """Return the frames at the given positions, in the given order, which may be unsorted and repeat itself.

        Args:
            indices: positions in 0 .. num_frames - 1.
            short_side: length in pixels to which the shorter side is resized, frame by frame, so that memory stays
                small for large videos; None keeps the size.
            interpolation: see `datamodules.video.resize.resize_short_side`.

        Returns:
            uint8 (T, 3, H, W), RGB; in memory the colours of a pixel stand together, as decoders and resizing have it.

        Raises:
            IndexError: a position is outside the video.
            DecodeError: frames cannot be decoded.
        """
        positions = np.asarray(indices, dtype=np.int64)
        if positions.ndim != 1 or len(positions) == 0:
            raise DataError(f"indices have to be a non-empty list of frame positions, got shape {positions.shape}.")
        if positions.min() < 0 or positions.max() >= self.num_frames:
            raise IndexError(
                f"{self.path} has {self.num_frames} frames: positions have to be in 0 .. {self.num_frames - 1}, "
                f"got {positions.min()} .. {positions.max()}."
            )
        return self._read(positions, short_side, interpolation)

    @abstractmethod
    def _read(self, positions: NDArray[np.int64], short_side: int | None, interpolation: str) -> Tensor:
        """Return what `read` promises; the positions are in the video."""
