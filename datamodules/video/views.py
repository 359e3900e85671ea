"""The views of one video for testing: several clips in time, several crops in space."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.checks import Count, OneOf, check
from datamodules.errors import DataError
from datamodules.video.frames import open_video
from datamodules.video.resize import MAX_SIDE, crop_views, read_resized
from datamodules.video.sampling import MAX_FRAMES, clip_indices, frames_of

__all__ = ["MAX_BYTES", "Views", "load_views"]

MAX_BYTES = 2**34
"""Bytes of the views of one video."""


@dataclass(frozen=True)
class Views:
    """Views of one video, V = num_clips x num_crops (of each stretch of it), with all crops of clip 0 first.

    Attributes:
        video: uint8 (V, 3, T, H, W).
        indices: int64 (num_clips, T), positions of the frames in the file.
        seconds: float64 (num_clips, T), their times since the first frame.
        duration: seconds of the whole video.
    """

    video: Tensor
    indices: NDArray[np.int64]
    seconds: NDArray[np.float64]
    duration: float


def load_views(
    path: str | os.PathLike[str],
    *,
    num_frames: int,
    image_size: int,
    short_side: int,
    sampling: str = "sparse",
    frame_stride: int = 4,
    interpolation: str = "bilinear",
    resize: str = "crop",
    num_clips: int = 1,
    num_crops: int = 1,
    spans: Sequence[tuple[float, float] | None] = (None,),
    decoder: str = "pyav",
) -> Views:
    """Read the views of a video, of a folder of its frames, or of a still image, a video of one frame.

    Args:
        path: local, or a URL that fsspec knows.
        num_frames: T, frames of a clip.
        image_size: H = W in pixels of the square crops.
        short_side: length of the shorter side before cropping, at least image_size.
        sampling: see `sampling.clip_indices`, with mode "test".
        interpolation: one of `resize.INTERPOLATIONS`.
        resize: "crop", or "squeeze" the whole frame to a square, which ignores short_side and num_crops.
        num_clips: clips, spread over the video.
        num_crops: 1 (middle) or 3 (along the longer side).
        spans: stretches of the video, first and last second, which have `num_clips` clips each, one stretch after the
            other; None is the whole.
        decoder: one of `frames.DECODERS`.

    Raises:
        DataError: the decoder is not installed, an argument is out of range, or the views take more than `MAX_BYTES`.
        DecodeError: the file cannot be read.
    """
    check(
        num_frames=(num_frames, Count(1, MAX_FRAMES)),
        num_clips=(num_clips, Count(1, MAX_FRAMES)),
        image_size=(image_size, Count(1, MAX_SIDE)),
        short_side=(short_side, Count(1, MAX_SIDE)),
        num_crops=(num_crops, OneOf(1, 3)),
    )
    num_bytes = len(spans) * num_clips * num_crops * num_frames * 3 * image_size**2
    if num_bytes > MAX_BYTES:
        raise DataError(
            f"{len(spans) * num_clips * num_crops} views of {num_frames} frames take {num_bytes / 1e9:.0f} GB; take "
            f"fewer clips, crops or frames, {MAX_BYTES / 1e9:.0f} GB at most."
        )
    with open_video(path, decoder=decoder) as reader:
        parts = [frames_of(span, reader.num_frames, reader.fps) for span in spans]
        indices = np.stack(
            [
                part.start
                + clip_indices(
                    len(part),
                    num_frames,
                    sampling=sampling,
                    mode="test",
                    clip=clip,
                    num_clips=num_clips,
                    frame_stride=frame_stride,
                )
                for part in parts
                for clip in range(num_clips)
            ]
        )
        # One pass over the file for all clips; frames that clips share are decoded once.
        frames = read_resized(
            reader,
            indices.reshape(-1),
            image_size=image_size,
            short_side=short_side,
            interpolation=interpolation,
            resize=resize,
        )
        seconds, duration = reader.pts_seconds[indices], reader.duration_seconds
    crops = crop_views(frames.unflatten(0, indices.shape), image_size, num_crops)  # (crops, clips, T, 3, H, W)
    return Views(torch.flatten(crops.permute(1, 0, 3, 2, 4, 5), 0, 1), indices, seconds, duration)
