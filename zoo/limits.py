"""Upper limits of what one call may ask for."""

import os
import zlib

from zoo.errors import ZooError

__all__ = ["BATCH", "CLIPS", "FRAMES", "PICTURED", "SECONDS", "SHARDS", "TOPK", "VIEWS_BYTES", "WINDOWS", "WORKERS",
           "TooManyWindows", "check_range", "check_shard", "check_window_and_step", "check_windows",
           "in_share"]  # fmt: skip

BATCH = (1, 1024)
CLIPS = (1, 100)
"""Clips of a video that are averaged; all are in memory at once. The papers test with 10 at most."""
FRAMES = (1, 4096)
"""Frames of a clip: 0.6 GB of 224 x 224 pixels."""
PICTURED = 80
"""Videos in one picture, which may be 65,535 pixels high."""
SECONDS = (0.01, 1_000_000)
"""Length of a window, and from one to the next."""
SHARDS = (1, 10_000)
"""Processes that share files out."""
VIEWS_BYTES = 16 * 10**9
"""Pixels of the views of one video, which are in memory at once."""
TOPK = (1, 100_000)
WINDOWS = 250_000
"""Windows of one video: 3 a second for a day. Scores of 400 classes take 0.4 GB."""
WORKERS = (0, 256)


class TooManyWindows(ZooError):
    """A video is too long for the distance of the windows."""


def check_range(name: str, value: float, limits: tuple[float, float]) -> None:
    """Refuse a number outside of `limits`, both included; so is NaN.

    Args:
        name: what the caller named it, an option or an argument.
        value: the number.
        limits: the smallest and the largest one.
    """
    low, high = limits
    if not low <= value <= high:
        raise ZooError(f"{name} is {value}; it has to be from {low:,} to {high:,}.")


def check_shard(shard: tuple[int, int]) -> None:
    """Refuse shares other than k of n with k from 1 to n."""
    check_range("the number of processes of shard", shard[1], SHARDS)
    check_range("shard", shard[0], (1, shard[1]))


def in_share(name: str, shard: tuple[int, int]) -> bool:
    """Whether a file belongs to share k of n; that depends on its name alone, wherever it stands in a listing."""
    return zlib.crc32(os.fsencode(name)) % shard[1] == shard[0] - 1


def check_window_and_step(window: float | None, step: float | None, prefix: str = "") -> None:
    """Refuse lengths that are out of range, and steps that leave gaps; None is a default.

    Args:
        window: seconds.
        step: seconds.
        prefix: before the names of the two: ``--`` for options.
    """
    for name, value in (("window", window), ("step", step)):
        if value is not None:
            check_range(f"{prefix}{name}", value, SECONDS)
    if window is not None and step is not None and step > window:
        raise ZooError(f"{prefix}window is {window:g} s and {prefix}step {step:g} s; make the step at most the window.")


def check_windows(path: object, seconds: float, step: float) -> None:
    """Refuse a video that has more than `WINDOWS` steps of so many seconds."""
    if not seconds <= WINDOWS * step:
        raise TooManyWindows(f"{path} is {seconds:.0f} s long, which makes {seconds / step:,.0f} windows at one every "
                             f"{step:g} s, and {WINDOWS:,} are the most; move them further apart.")  # fmt: skip
