"""Count unreadable videos, replace them in training, and stop the run if there are too many."""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch

from datamodules.errors import DataError, some
from datamodules.loading import Draw, SizedDataset, seeded
from datamodules.storage.files import is_url
from datamodules.storage.files import split as split_path
from datamodules.storage.members import as_member
from datamodules.video.opening import DecodeError

__all__ = ["Listed", "ListedItems", "Tally", "UnreadableTally"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Listed(Protocol):
    """An entry of a listing: a video, with what is known of it."""

    @property
    def path(self) -> str:
        """The file, folder, URL or address in a shard."""


class Tally(Protocol):
    """Counts the unreadable videos of a listing."""

    @property
    def samples(self) -> Sequence[Listed]:
        """The listing."""

    def report_missing(self, indices: Sequence[int], split: str) -> None:
        """Note files that are known not to exist."""

    def check(self, *, at_start: bool = False) -> None:
        """Raise `DataError` where too many videos are broken."""


class ListedItems(SizedDataset[T_co]):
    """Items that are read from the videos of a listing.

    Attributes:
        tally: counts those that cannot be read.
    """

    tally: Tally


class UnreadableTally:
    """Marks the unreadable videos of a listing, in memory that the loader's workers share.

    Args:
        samples: the listing.
        max_share: share of the listing above which `check` raises. A single broken video is always forgiven, unless
            the share is 0.
    """

    def __init__(self, samples: Sequence[Listed], max_share: float) -> None:
        self.samples = samples
        self.max_count = max(max_share * len(samples), 1) if max_share > 0 else 0
        self.flags = torch.zeros(len(samples), dtype=torch.uint8).share_memory_()

    @property
    def exceeded(self) -> bool:
        """Whether more videos are broken than accepted, or all of them."""
        count = int(self.flags.sum(dtype=torch.int64))
        return count > self.max_count or count == len(self.samples)

    def report_missing(self, indices: Sequence[int], split: str) -> None:
        """Note files that are known not to exist, with one warning for all."""
        if indices:
            self.flags[indices] = 1
            shown = some([self.samples[index].path for index in indices])
            warnings.warn(f"{len(indices)} of the {len(self.samples)} {split} videos do not exist: {shown}.")

    def report(self, index: int, error: DecodeError, consequence: str) -> None:
        """Note a broken video, with one warning per video."""
        if not self.flags[index]:
            self.flags[index] = 1
            warnings.warn(f"{error} ({consequence})", stacklevel=2)

    def read_or_replace(self, draw: Draw, read: Callable[[int], T]) -> T | None:
        """Return `read(draw.index)` or, where that video is broken, `read` of another one drawn at random.

        The result is None where too many are broken.

        Substitutes are tried in an order of their own and each starts with fresh random numbers: the result does not
        depend on which broken videos have been met before.
        """
        order = torch.Generator().manual_seed(draw.seed)
        index = draw.index
        while not self.exceeded:
            if not self.flags[index]:
                try:
                    with seeded(draw.seed):
                        return read(index)
                except DecodeError as error:
                    self.report(index, error, "replaced by another video")
            index = int(torch.randint(len(self.samples), (), generator=order))
        return None

    def check(self, *, at_start: bool = False) -> None:
        """Raise `DataError` with counts and the first culprits where too many videos are broken.

        Args:
            at_start: whether the run has not read anything yet, so that a path is likelier wrong than a disk gone.
        """
        if not self.exceeded:
            return
        broken = self.flags.nonzero().flatten().tolist()
        shown = some([self.samples[index].path for index in broken])
        first = self.samples[broken[0]].path
        member = as_member(first)
        folder = split_path(first if member is None else member.shard)[0]
        is_gone = not is_url(folder) and not os.path.isdir(folder or ".")
        if is_gone and at_start:
            raise DataError(
                f"{len(broken)} of {len(self.samples)} videos do not exist, and neither does the folder {folder}; "
                "check data.root and the paths in the list, and that the disk is mounted."
            )
        if is_gone:
            raise DataError(
                f"{len(broken)} of {len(self.samples)} videos cannot be read, as the folder {folder} is gone; "
                "mount its disk again, and resume from the last checkpoint with --ckpt_path last."
            )
        raise DataError(
            f"{len(broken)} of {len(self.samples)} videos cannot be read, more than max_unreadable allows "
            f"({int(self.max_count)}): {shown}; fix or remove them, or raise max_unreadable."
        )
