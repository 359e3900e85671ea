"""Upper limits of what a visitor may upload; `zoo app` has an option for each."""

import math
import os
from typing import NamedTuple

from datamodules.video.frames import open_video
from zoo.errors import ZooError
from zoo.limits import check_range
from zoo.printable import clock

__all__ = ["MOST_MEGABYTES", "MOST_MINUTES", "QUESTION", "QUEUE", "Limits", "check_length"]

MOST_MEGABYTES = (1, 100_000)
MOST_MINUTES = (0.01, 10_000)
QUESTION = 500
"""Characters of a text."""
QUEUE = 32
"""Visitors that wait for the model."""


class Limits(NamedTuple):
    """The largest file and the longest video that the page takes."""

    megabytes: int = 200  # of 2^20 bytes
    minutes: float = 10.0

    def check(self) -> None:
        """Raise `ZooError` for limits that are out of range themselves."""
        check_range("max_megabytes", self.megabytes, MOST_MEGABYTES)
        check_range("max_minutes", self.minutes, MOST_MINUTES)

    @property
    def bytes(self) -> int:
        """The largest file, in bytes."""
        return self.megabytes * 2**20


def check_length(path: str | os.PathLike[str], minutes: float = math.inf) -> float:
    """Return the seconds of a video, counted from its packets, whatever its header claims.

    Raises:
        DecodeError: it cannot be read.
        ZooError: it is longer than that.
    """
    with open_video(path) as reader:
        seconds = reader.duration_seconds
    if seconds > minutes * 60:
        raise ZooError(f"{path} is {clock(seconds)} long, and this page takes videos of up to {clock(minutes * 60)}; "
                       "cut it, or use `zoo predict --timeline` on your own machine.")  # fmt: skip
    return seconds
