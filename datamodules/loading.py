"""Order and random numbers of training samples, and loaders that resume.

What a training item looks like depends on the run's seed, the epoch and the item's place in it, and on nothing else:
not on the number of loader workers, not on how the places are dealt out to processes, not on whether the run was
interrupted.
"""

import ctypes
import multiprocessing
import re
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader
from typing_extensions import override

from datamodules.errors import DataError
from datamodules.storage.processes import usable_cores

__all__ = ["Batch", "ClipLoader", "Draw", "EvaluationLoader", "Item", "TrainSampler",
           "ignore_interrupts", "number_of", "seeded", "worker_context", "worker_death"]  # fmt: skip

Item: TypeAlias = dict[str, Any]
"""An item of a data set: tensors, numbers and texts by name. Which they are, its class says."""
Batch: TypeAlias = dict[str, Any]
"""What the items of a batch have, by name (docs/batches.md): tensors (B, ...), or lists of B texts."""


class Draw(NamedTuple):
    """An item of the data set and the seed of its augmentation."""

    index: int  # type: ignore[assignment]  # a field, and no longer the method of tuples
    seed: int

    @classmethod
    def of(cls, item: "int | Draw") -> "Draw":
        """Return the draw itself; an index gets a random seed."""
        return item if isinstance(item, Draw) else cls(item, int(torch.randint(2**32, ())))


def number_of(item: int | Draw) -> int:
    """Return the number of an item that is given with or without a seed."""
    return item.index if isinstance(item, Draw) else item


class TrainSampler(DistributedSampler[Draw]):
    """Deals the items of an epoch out to the processes in turn, in random order, each with a seed.

    With `repeats` each item is drawn so often in a row (repeated augmentation):

        order drawn        c   a   d   b   ...
        repeated           c c c   a a a   d d d   b b b   ...
        process 0 of 2     c   c     a   d   d     b
        process 1 of 2       c   a   a     d   b   b

    An epoch is then as long as without repeats, so that it sees only some of the items: floor(N / 256) * 256 draws
    divided by the number of processes, as in the published image recipes (all N where N < 256). Without repeats an
    epoch has all N items, and the first ones again where the processes would get unequal numbers.

    Args:
        dataset: anything with a length N.
        repeats: how often each item is drawn, at least 1.
        num_replicas: number of processes.
        rank: this process, from 0.
        seed: an epoch depends on seed + epoch (`set_epoch`) and nothing else.
        order: makes the order of an epoch, int64 (N,), from a `generator`; None shuffles.
        multiple: leave out the last draws of each process that do not fill so many; an epoch shorter than that is kept.
    """

    def __init__(
        self,
        dataset: Sized,
        repeats: int = 1,
        *,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
        order: Callable[..., Tensor] | None = None,
        multiple: int = 1,
    ) -> None:
        super().__init__(cast(Any, dataset), num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed)
        self.repeats = repeats
        self.order = order or partial(torch.randperm, len(dataset))
        if repeats > 1:
            self.num_samples = (len(dataset) // 256 * 256 or len(dataset)) // num_replicas
        self.num_samples = self.num_samples // multiple * multiple or self.num_samples
        self.total_size = self.num_samples * num_replicas

    @override
    def __iter__(self) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = self.order(generator=generator)
        if self.repeats > 1:
            # No more items than needed; the last one possibly cut.
            order = order[: -(-self.total_size // self.repeats)].repeat_interleave(self.repeats)
        places = torch.arange(self.rank, self.total_size, self.num_replicas)
        seeds = torch.randint(2**32, (self.total_size,), generator=generator)
        return map(Draw, order[places % len(order)].tolist(), seeds[places].tolist())


class ClipLoader(StatefulDataLoader[Batch]):
    """A loader over a `TrainSampler` that resumes in the middle of an epoch and measures the time spent waiting for it.

    Nothing is read, and the sampler's epoch not settled, before the first batch is asked for.

    Attributes:
        waited: seconds spent waiting for batches so far.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'set_vital' is deprecated")  # torchdata calls it
            super().__init__(*args, **kwargs)
        self.waited = 0.0
        self.loaded_epoch: int | None = None

    @property
    def _epoch(self) -> int:
        return cast(TrainSampler, self.sampler).epoch

    @override
    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch names its own iterator
        if self.loaded_epoch != self._epoch:
            self.next_iter_state = None  # that epoch was over
        batches = super().__iter__()
        while True:
            start = time.perf_counter()
            try:
                with _deaths_told(self.num_workers):
                    batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - start
            yield batch

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the position in the current epoch."""
        return {**super().state_dict(), "epoch": self._epoch, "num_workers": self.num_workers}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume where the loader with this state stood, if the next epoch asked for is that one.

        Raises:
            DataError: that loader had another number of workers.
        """
        state = dict(state_dict)
        self.loaded_epoch, workers = state.pop("epoch"), state.pop("num_workers")
        if workers != self.num_workers:
            raise DataError(
                f"The interrupted epoch was read with {workers} workers, and this run has {self.num_workers}; "
                f"set data.num_workers to {workers} to resume."
            )
        super().load_state_dict(state)


class EvaluationLoader(DataLoader[Batch]):
    """A loader in the order of the listing."""

    @override
    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch names its own iterator
        with _deaths_told(self.num_workers):
            yield from super().__iter__()


class _Flag:
    """An event that is only ever set and asked for, without a lock."""

    def __init__(self) -> None:
        self._value = multiprocessing.RawValue(ctypes.c_bool, False)

    def set(self) -> None:
        self._value.value = True

    def is_set(self) -> bool:
        return bool(self._value.value)


def suitable_workers(num_processes: int = 1) -> int:
    """Loader processes for each of the training processes of a machine, 1 to 4.

    They are its share of the cores that this process may use, without one for itself.
    """
    return min(max(usable_cores() // num_processes - 1, 1), 4)


def worker_context(start_method: str | None) -> BaseContext:
    """Return `multiprocessing.get_context(start_method)`, made safe against killed loader processes.

    torch tells its loader processes by an event to end, and multiprocessing's events have a lock. A process killed at
    the moment it asks never opens that lock again, and the main process waits forever instead of failing.
    """
    base = type(multiprocessing.get_context(start_method))
    context: BaseContext = type(base.__name__, (base,), {"Event": _Flag})()
    return context


def ignore_interrupts(worker_id: int) -> None:
    """Leave Ctrl-C to the main process: a terminal sends it to all, and a training that stops ends its step first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _deaths_told(num_workers: int) -> Iterator[None]:
    """Turn the error that torch raises for a dead loader process into a `DataError`."""
    try:
        try:
            yield
        except (EOFError, ConnectionError):
            if num_workers:
                time.sleep(0.5)  # torch's signal is on its way, and knows more than this error
            raise
    except (RuntimeError, EOFError, ConnectionError) as error:
        death = worker_death(error) if num_workers else None
        if death is None:
            raise
        raise death from error


def worker_death(error: Exception) -> DataError | None:
    """Return the error to raise if torch found a dead loader process; None for other errors.

    A process that dies while it hands over a batch is visible only as a broken pipe.
    """
    # Errors of the data set in a loader process arrive with a text that starts so.
    pipe_broke = isinstance(error, EOFError | ConnectionError) and not str(error).startswith("Caught ")
    if not pipe_broke and not re.match(r"DataLoader worker .*(killed by signal|exited unexpectedly)", str(error)):
        return None
    signal_name = re.search(r"killed by signal: (\w[\w ]*)", str(error))
    how = f" ({signal_name[1].strip()})" if signal_name else ""
    return DataError(
        f"A loader process died{how}, most often because memory ran out; lower data.num_workers or data.batch_size, "
        "and resume from the last checkpoint with --ckpt_path last."
    )


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Run the block with torch's generators, of the CPU and of `device`, at `seed`, and restore them after it."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the generators of every device
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
