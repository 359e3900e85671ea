"""Items read from the videos of a listing: unreadable ones are counted and replaced, and too many stop the run."""

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from datamodules.errors import DataError, some
from datamodules.loading import Draw, Item, number_of, seeded
from datamodules.storage.files import is_url
from datamodules.storage.files import split as split_path
from datamodules.storage.members import as_member, fetched_ahead
from datamodules.video.opening import DecodeError

__all__ = ["Listed", "ListedItems", "UnreadableTally"]

T = TypeVar("T")


class Listed(Protocol):
    """An entry of a listing: a video, with what is known of it."""

    @property
    def path(self) -> str:
        """The file, folder, URL or address in a shard."""


class UnreadableTally:
    """Marks the unreadable videos of a listing, in memory that the loader's workers share.

    Args:
        samples: the listing.
        max_share: share of the listing above which `check` raises. A single broken video is always forgiven, unless
            the share is 0.
        parts: stretches of the listing that are counted apart, and whose videos replace each other; None is one of all.
    """

    def __init__(self, samples: Sequence[Listed], max_share: float, parts: Sequence[range] | None = None) -> None:
        self.samples, self.max_share = samples, max_share
        self.parts = [range(len(samples))] if parts is None else parts
        self.flags = torch.zeros(len(samples), dtype=torch.uint8).share_memory_()

    def max_count(self, part: range) -> float:
        """Broken videos that are accepted."""
        return max(self.max_share * len(part), 1) if self.max_share > 0 else 0

    def exceeded(self, part: range) -> bool:
        """Whether more videos are broken than accepted, or all of them."""
        count = int(self.flags[part.start : part.stop].sum(dtype=torch.int64))
        return count > self.max_count(part) or count == len(part)

    def report_missing(self, indices: Sequence[int], split: str) -> None:
        """Note files that are known not to exist, with one warning for all of a part."""
        for part in self.parts:
            missing = [index for index in indices if index in part]
            if missing:
                self.flags[missing] = 1
                shown = some([self.samples[index].path for index in missing])
                warnings.warn(f"{len(missing)} of the {len(part)} {split} videos do not exist: {shown}.")

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
        part = next(part for part in self.parts if index in part)
        while not self.exceeded(part):
            if not self.flags[index]:
                try:
                    with seeded(draw.seed):
                        return read(index)
                except DecodeError as error:
                    self.report(index, error, "replaced by another video")
            index = part[int(torch.randint(len(part), (), generator=order))]
        return None

    def check(self, *, at_start: bool = False) -> None:
        """Raise `DataError` with counts and the first culprits where too many videos are broken.

        Args:
            at_start: whether the run has not read anything yet, so that a path is likelier wrong than a disk gone.
        """
        part = next(filter(self.exceeded, self.parts), None)
        if part is None:
            return
        broken = [index for index in self.flags.nonzero().flatten().tolist() if index in part]
        shown = some([self.samples[index].path for index in broken])
        first = self.samples[broken[0]].path
        member = as_member(first)
        folder = split_path(first if member is None else member.shard)[0]
        is_gone = not is_url(folder) and not os.path.isdir(folder or ".")
        if is_gone and at_start:
            raise DataError(
                f"{len(broken)} of {len(part)} videos do not exist, and neither does the folder {folder}; "
                "check data.root and the paths in the list, and that the disk is mounted."
            )
        if is_gone:
            raise DataError(
                f"{len(broken)} of {len(part)} videos cannot be read, as the folder {folder} is gone; "
                "mount its disk again, and resume from the last checkpoint with --ckpt_path last."
            )
        raise DataError(
            f"{len(broken)} of {len(part)} videos cannot be read, more than max_unreadable allows "
            f"({int(self.max_count(part))}): {shown}; fix or remove them, or raise max_unreadable."
        )


class ListedItems(Dataset[Item], ABC):
    """Items read from the videos of a listing.

    In training another video, drawn at random, takes the place of an unreadable one, and items have a `seed`: indexing
    with a `Draw` of index and seed gives the same item again. Elsewhere an unreadable video becomes a placeholder.

    Attributes:
        tally: the listing, and which of it cannot be read.
        training: whether these are items to train on.
        views: clips of an item.
        first_items: int64 (n + 1,), the first training item of each video, and the number of all; None where a video
            is one item.
    """

    tally: UnreadableTally
    training: bool
    views: int = 1
    first_items: NDArray[np.int64] | None = None

    @abstractmethod
    def _read(self, number: int) -> Item:
        """The item of a video; raises `DecodeError`."""

    @abstractmethod
    def _placeholder(self, number: int) -> Item: ...

    def __len__(self) -> int:
        if self.training and self.first_items is not None:
            return int(self.first_items[-1])
        return len(self.tally.samples)

    def __getitem__(self, item: int | Draw) -> Item:
        if self.training:
            draw = Draw.of(item)
            return {**self._drawn(draw), "seed": draw.seed}
        number = number_of(item)
        try:
            return self._read(number)
        except DecodeError as error:
            self.tally.report(number, error, "left out of the evaluation")
            return self._placeholder(number)

    def __getitems__(self, items: list[int | Draw]) -> list[Item]:
        """The items; remote samples of shards are fetched while others are decoded."""
        numbers = [self.place_of(number_of(item))[0] for item in items]
        return [self[item] for item in fetched_ahead(items, [self.tally.samples[number].path for number in numbers])]

    def place_of(self, item: int) -> tuple[int, int]:
        """Number of the video that an item is made of, and of the item among those of this video."""
        if not self.training or self.first_items is None:
            return item, 0
        number = int(np.searchsorted(self.first_items, item, side="right")) - 1
        return number, item - int(self.first_items[number])

    def _drawn(self, draw: Draw) -> Item:
        return self.tally.read_or_replace(draw, self._read) or self._placeholder(draw.index)
