"""Memory on the CPU that is used again by one call after the other."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import ref

import torch
from torch import Tensor

from lightning_modules.ops.memory import empty

__all__ = ["Workspace", "passing"]


class Workspace:
    """Memory for what lives no longer than a call, lent to one call after the other.

    The blocks of a network ask for the same sizes in the same order. Freed and asked for again, these would leave holes
    in the heap into which smaller tensors fall that stay, and which then fit nothing: a third of what training held.
    """

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._next = 0
        self._lock = threading.Lock()

    @classmethod
    def of_thread(cls) -> "Workspace":
        """That of this thread, while somebody keeps it; a graph does until its backward pass is over."""
        known = getattr(_here, "known", None)
        found = None if known is None else known()
        if found is None:
            found = cls()
            _here.known = ref(found)
        return found

    @contextmanager
    def lent(self) -> Iterator[None]:
        """`passing` takes from this memory, from its start. Where another thread has it, memory is as always."""
        if not self._lock.acquire(blocking=False):
            yield
            return
        before, _here.lent, self._next = getattr(_here, "lent", None), self, 0
        try:
            yield
        finally:
            _here.lent = before
            self._lock.release()

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """A float32 tensor of what the last call took here, if that had as many numbers."""
        size, index = math.prod(shape), self._next
        if index == len(self._tensors) or self._tensors[index].numel() != size:
            self._tensors[index : index + 1] = [empty(size)]
        self._next += 1
        return self._tensors[index].detach().view(shape)


_here = threading.local()


def passing(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A new tensor on the CPU, for what nobody reads any more when the call that was lent a `Workspace` is over."""
    lent = getattr(_here, "lent", None)
    if lent is None or dtype != torch.float32:
        return torch.empty(shape, dtype=dtype, device="cpu")
    return lent.take(shape)
