"""A few clips of a test as moving pictures."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

__all__ = ["animated", "clip_of", "webp"]

FRAMES, HEIGHT_PX, FRAME_MS = 8, 144, 250


def clip_of(loader: "DataLoader[Any]", index: int) -> bytes | None:
    """The item at a position of a loader's data set (docs/batches.md) as an animated WebP.

    None where it cannot be read, whatever the data set raises: a report is not worth a failed test.
    """
    try:
        item = loader.dataset[index]
        if item["index"] != index:  # a placeholder
            return None
        video = item["video"]
        video = video[len(video) // 2] if video.ndim == 5 else video
        mask = item.get("frame_mask")
        return animated(video if mask is None else video[:, mask])
    except Exception:  # see above
        return None


def animated(video: Tensor) -> bytes:
    """A clip, uint8 (3, T, H, W), as an animated WebP of a few evenly spaced frames."""
    positions = np.unique(np.linspace(0, video.shape[1] - 1, FRAMES).round().astype(int))
    frames = video[:, torch.from_numpy(positions)].permute(1, 2, 3, 0).numpy()
    pictures = [Image.fromarray(frame) for frame in frames]
    width = max(1, round(HEIGHT_PX * pictures[0].width / pictures[0].height))
    return webp([picture.resize((width, HEIGHT_PX), Image.Resampling.BILINEAR) for picture in pictures])


def webp(pictures: Sequence[Image.Image]) -> bytes:
    """Pictures of one size as an animated WebP that plays in a loop; a single one stands still."""
    file = io.BytesIO()
    pictures[0].save(
        file, "WEBP", save_all=True, append_images=pictures[1:], duration=FRAME_MS, loop=0, quality=60, method=4
    )
    return file.getvalue()
