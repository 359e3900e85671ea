"""Choose the frames of a clip: positions in a video of n frames, as plain numpy functions.

The rules are those of the published VideoMamba protocol, rounding included: `numpy.round` sends ties to the even
neighbour. All positions are in 0 .. n - 1; files shorter than the clip repeat frames. Drawing of T = 4 frames, n = 16:

    sparse   |  . x . .  |  x . . .  |  . . . x  |  . x . .  |    one frame per interval, the whole video is covered
    dense    |  . . x . x . x . x . . . . . . .  |                 T frames at a fixed stride around one place
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.errors import DataError

__all__ = ["MAX_FRAMES", "SAMPLINGS", "clip_indices", "frames_of", "range_in"]

MAX_FRAMES = 10_000
"""Frames of a clip, and clips of a video: what is above asks for all memory and not for a result."""

SAMPLINGS = ("sparse", "dense", "ssv2", "intervals", "middles")
_SLACK_SECONDS = 1e-6


def clip_indices(
    num_video_frames: int,
    num_frames: int,
    *,
    sampling: str,
    mode: Literal["train", "val", "test"],
    clip: int = 0,
    num_clips: int = 1,
    frame_stride: int = 4,
    generator: torch.Generator | None = None,
) -> NDArray[np.int64]:
    """Positions of the frames of one clip.

    `train` draws at random, `val` is the fixed middle clip, `test` is clip number `clip` of `num_clips`:

    | sampling | train                         | val                     | test, clip k of S                   |
    |----------|-------------------------------|-------------------------|-------------------------------------|
    | sparse   | one at random per interval    | middle of each interval | (k + 1) / (S + 1) of each interval  |
    | intervals | the same                     | the same                | the same                            |
    | ssv2     | one at random per segment     | middle of each segment  | k = 0: segment starts, k = 1: middles |
    | dense    | random start, then the stride | centred                 | S starts spread evenly over the file |
    | middles  | anywhere in each part         | middle of each part     | (k + 1) / (S + 1) of each part      |

    `sparse` is the rule of Kinetics, Breakfast and COIN, whose intervals lie between frame 0 and frame n - 1; `ssv2` is
    that of Something-Something V2 with segments of n / T frames and exactly two test clips. With one test clip, `ssv2`
    and `dense` give the `val` clip. `intervals` is the rule of VideoMamba with language: all n frames are shared out,
    and a file shorter than the clip repeats its last frame (docs/protocol.md, section 14). `middles` is the rule of
    AVION and of the published MambaVL: T equal parts of n / T frames each; their middles, in training moved by up to
    (n - 1) / 2T frames either way, cut down to whole frames (docs/protocol.md, section 22).

    Args:
        num_video_frames: n >= 1, frames in the file.
        num_frames: T >= 1, frames in the clip.
        clip: number of the test clip, 0 .. num_clips - 1.
        frame_stride: distance between frames of a dense clip.
        generator: source of randomness for `train`; None is torch's own.

    Returns:
        int64 (T,), sorted.

    Raises:
        DataError: an argument is out of range, or `ssv2` is asked for a number of test clips other than 1 or 2.
    """
    if num_video_frames < 1 or num_frames < 1 or frame_stride < 1:
        raise DataError(
            f"num_video_frames, num_frames and frame_stride have to be at least 1, got {num_video_frames}, "
            f"{num_frames} and {frame_stride}."
        )
    if mode not in ("train", "val", "test"):
        raise DataError(f"mode has to be 'train', 'val' or 'test', got {mode!r}.")
    if not 0 <= clip < num_clips:
        raise DataError(f"clip has to be in 0 .. num_clips - 1 = {num_clips - 1}, got {clip}.")
    rules: dict[str, _Rule] = {"sparse": _sparse, "ssv2": _ssv2, "intervals": _intervals, "middles": _middles,
             "dense": partial(_dense, frame_stride=frame_stride)}  # fmt: skip
    if sampling not in rules:
        raise DataError(f"sampling has to be one of {', '.join(SAMPLINGS)}, got {sampling!r}.")
    places: dict[str, _Place] = {"train": None, "val": (0, 1), "test": (clip, num_clips)}
    indices = rules[sampling](num_video_frames, num_frames, places[mode], generator)
    return np.clip(indices, 0, num_video_frames - 1).astype(np.int64)


def frames_of(span: tuple[float, float] | None, num_video_frames: int, fps: float) -> range:
    """Positions of the frames of a stretch of a video, one at least.

    As in the published windows (docs/protocol.md, section 2), they are the frame that is shown at its first second up
    to that shown at its last; no span is the whole video.
    """
    if span is None:
        return range(num_video_frames)
    # Times are sums and quotients of decimals; a whole frame must not be lost to the last binary digit.
    first, last = (min(int(second * fps + 1e-6), num_video_frames - 1) for second in span)
    return range(first, last + 1)


# The rules take n, T, and the number of the clip and of all clips, or None to draw at random.
_Place: TypeAlias = tuple[int, int] | None
_Numbers: TypeAlias = NDArray[np.int64] | NDArray[np.float64]
_Rule: TypeAlias = Callable[[int, int, _Place, torch.Generator | None], _Numbers]


def _sparse(n: int, num_frames: int, place: _Place, generator: torch.Generator | None) -> NDArray[np.int64]:
    interval = (n - 1) / num_frames
    edges = np.round(interval * np.arange(num_frames + 1)).astype(np.int64)
    if place is None:
        return _draw(edges[:-1], edges[1:], generator)  # both ends included
    clip, num_clips = place
    return edges[:-1] + int(interval / (num_clips + 1) * (clip + 1))


def _intervals(n: int, num_frames: int, place: _Place, generator: torch.Generator | None) -> NDArray[np.int64]:
    count = min(num_frames, n)
    edges = np.linspace(0, n, count + 1).astype(np.int64)
    first, last = edges[:-1], edges[1:] - 1
    if place is None:
        indices = _draw(first, last, generator)  # the published rule never draws the last one
    else:
        clip, num_clips = place
        indices = first + (last - first) * (clip + 1) // (num_clips + 1)
    return np.pad(indices, (0, num_frames - count), mode="edge")


def _middles(n: int, num_frames: int, place: _Place, generator: torch.Generator | None) -> NDArray[np.float64]:
    edges = np.linspace(0, n, num_frames + 1)
    if place is not None and place[1] > 1:
        clip, num_clips = place
        return np.floor(edges[:-1] + (clip + 1) / (num_clips + 1) * np.diff(edges))
    middles = (edges[:-1] + edges[1:]) / 2
    if place is None:
        uniform = torch.rand(num_frames, generator=generator, dtype=torch.float64).numpy()
        middles = middles + (uniform - 0.5) * (n - 1) / num_frames
    return np.floor(middles)


def _ssv2(n: int, num_frames: int, place: _Place, generator: torch.Generator | None) -> NDArray[np.int64]:
    if place is None:
        segment = n // num_frames
        if segment:
            starts = np.arange(num_frames) * segment
            return _draw(starts, starts + segment - 1, generator)
        # The published rule has a branch for n > T here, which segment == 0 excludes: short files give frame 0 only.
        return np.zeros(num_frames, dtype=np.int64)
    clip, num_clips = place
    if num_clips > 2:
        raise DataError(f"sampling 'ssv2' defines one or two test clips, got num_clips={num_clips}; use 2.")
    tick = n / num_frames
    starts = (tick * np.arange(num_frames)).astype(np.int64)
    middles = (tick / 2 + tick * np.arange(num_frames)).astype(np.int64)
    if num_clips == 1:
        return middles
    # Every second of the sorted union: starts and middles where they alternate, which short files do not grant.
    return np.sort(np.concatenate([starts, middles]))[clip::2]


def _dense(
    n: int, num_frames: int, place: _Place, generator: torch.Generator | None, frame_stride: int
) -> NDArray[np.int64]:
    last_start = max(n - ((num_frames - 1) * frame_stride + 1), 0)
    if place is None:
        start = int(_draw(np.zeros(1), np.full(1, last_start), generator)[0])
    elif place[1] == 1:
        start = last_start // 2
    else:
        start = int(place[0] * last_start / (place[1] - 1))
    return start + np.arange(num_frames) * frame_stride


def _draw(low: _Numbers, high: _Numbers, generator: torch.Generator | None) -> NDArray[np.int64]:
    """Uniform integers in [low, high], both ends included, one per element."""
    uniform = torch.rand(len(low), generator=generator, dtype=torch.float64).numpy()
    drawn: NDArray[np.float64] = low + np.floor(uniform * (high - low + 1))
    return drawn.astype(np.int64)


def range_in(seconds: NDArray[np.float64], span: tuple[float, float], displayed: bool = True) -> tuple[int, int] | None:
    """First and last of what lies in a span; never anything that comes after its end.

    Args:
        seconds: (n,), ascending times.
        span: first and last second, both included; without anything in between it is the last one before.
        displayed: whether the frame that is on display where the span begins counts, as in the annotations' frame
            numbers.

    Returns:
        None where everything comes after the span.
    """
    last = int(np.searchsorted(seconds, span[1] + _SLACK_SECONDS)) - 1
    if last < 0:
        return None
    if displayed:
        first = max(int(np.searchsorted(seconds, span[0] + _SLACK_SECONDS)) - 1, 0)
    else:
        first = int(np.searchsorted(seconds, span[0] - _SLACK_SECONDS))
    return min(first, last), last
