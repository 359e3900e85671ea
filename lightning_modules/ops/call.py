"""How a forward pass ran, for what its backward pass computes again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.ops.backend import select, use_backend
from lightning_modules.ops.dense import linear

__all__ = ["Call"]


@dataclass(frozen=True)
class Call:
    """The backend and the precision of a forward pass, for a backward pass that may run in another thread.

    Args:
        backend: what `select` gave.
        device: type of the tensors' device.
        autocast: dtype of autocast; None where it is off.
    """

    backend: ModuleType
    device: str
    autocast: torch.dtype | None

    @classmethod
    def of(cls, kind: str, tensor: Tensor) -> "Call":
        """What holds here and now for a kind of operator, see `lightning_modules.ops.backend.select`."""
        device = tensor.device.type
        autocast = torch.get_autocast_dtype(device) if _autocasts(device) else None
        return cls(select(kind, tensor), device, autocast)

    @property
    def operators(self) -> tuple[Callable, Callable] | None:
        """Those of the scan and of its backward; None where the backend has no states to keep."""
        return getattr(self.backend, "operators", None)

    @property
    def name(self) -> str:
        """The backend's, as `use_backend` takes it."""
        return self.backend.__name__.rpartition(".")[2]

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """x weight^T, without gradients. With `numba` the fastest there is, whose roundings may differ from torch's."""
        return linear(x, weight) if self.name == "numba" else F.linear(x, weight)

    def input_gradient(self, grad: Tensor, weight: Tensor) -> Tensor:
        """What a product's gradient (B, L, out) gives its input (B, L, in). Both with the digits of autograd's."""
        return self.product(grad.flatten(0, 1), weight.to(grad.dtype).t()).view(*grad.shape[:-1], weight.shape[1])

    @staticmethod
    def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """What a product's gradient (B, L, out) gives its weight (out, in)."""
        return (grad.flatten(0, 1).t() @ x.to(grad.dtype).flatten(0, 1)).to(weight.dtype)

    @contextmanager
    def again(self) -> Iterator[None]:
        """The same backend and precision. Weights cast here are not cached: a cached one would have no gradient."""
        with use_backend(self.name):
            if self.autocast is None and not _autocasts(self.device):
                yield
                return
            enabled = self.autocast is not None
            with torch.autocast(self.device, self.autocast, enabled=enabled, cache_enabled=False):
                yield


def _autocasts(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
