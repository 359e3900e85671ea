"""Repeated augmentation by sampling: several augmented copies of an image in one step, spread over the processes."""

from collections.abc import Iterator

import torch
from torch.utils.data import Dataset, DistributedSampler

__all__ = ["RepeatedSampler"]


class RepeatedSampler(DistributedSampler):
    """Draws each item `repeats` times in a row, in random order of items, and deals them out to the processes in turn.

        order drawn        c   a   d   b   ...
        repeated           c c c   a a a   d d d   b b b   ...
        process 0 of 2     c   c     a   d   d     b
        process 1 of 2       c   a   a     d   b   b

    An epoch is as long as without repeats, so that it sees only some of the items: floor(N / 256) * 256 draws divided
    by the number of processes, as in the published image recipes (all N where N < 256).

    Args:
        dataset: anything with a length N.
        repeats: how often each item is drawn, at least 1.
        num_replicas: number of processes.
        rank: this process, from 0.
        seed: the order of an epoch depends on seed + epoch (`set_epoch`) and nothing else.
    """

    def __init__(self, dataset: Dataset, repeats: int, *, num_replicas: int = 1, rank: int = 0, seed: int = 0) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed)
        self.repeats = repeats
        total = len(dataset) // 256 * 256 or len(dataset)
        self.num_samples = total // num_replicas
        self.total_size = self.num_samples * num_replicas

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.dataset), generator=generator)
        # No more items than needed: total_size / repeats of them, the last one possibly cut.
        drawn = order[: -(-self.total_size // self.repeats)].repeat_interleave(self.repeats)[: self.total_size]
        return iter(drawn[self.rank :: self.num_replicas].tolist())
