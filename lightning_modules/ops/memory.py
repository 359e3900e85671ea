"""Tensors as compiled kernels take them: float32 on the CPU, by address, the step between rows (tokens) in bytes."""

from typing import Protocol, TypeVar

import torch
from torch import Tensor

__all__ = ["FLOAT_BYTES", "Reading", "address", "empty", "readable", "readable_numbers", "rows", "zeros"]

FLOAT_BYTES = 4

Maybe = TypeVar("Maybe", Tensor, Tensor | None)


class Reading(Protocol):
    """What makes a tensor readable, and of None None."""

    def __call__(self, tensor: Maybe) -> Maybe:
        """Return float32, or bfloat16 where the kernel takes it, with a last stride of one."""


# Spelled out, since a default dtype or device that the user has set must not reach memory that the kernels write to.
def empty(*shape: int) -> Tensor:
    """A new float32 tensor on the CPU."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def zeros(*shape: int) -> Tensor:
    """A new float32 tensor of zeros on the CPU."""
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


def readable(tensor: Maybe) -> Maybe:
    """float32 with a last stride of one: the tensor itself where that is so already."""
    if tensor is None:
        return None
    tensor = tensor.to(torch.float32)
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def readable_numbers(*tensors: Tensor | None) -> Reading:
    """What makes a tensor readable for kernels that take bfloat16 too: if all of these are, they are read in place."""
    there = [tensor for tensor in tensors if tensor is not None]
    if all(tensor.dtype == torch.bfloat16 and tensor.stride(-1) == 1 for tensor in there):
        return _as_it_is
    return readable


def _as_it_is(tensor: Maybe) -> Maybe:
    return tensor


def address(tensor: Tensor | None) -> int:
    """Where a tensor starts; 0 if there is none."""
    return 0 if tensor is None else tensor.data_ptr()


def rows(tensor: Tensor | None, b: int, channel: int = 0, reverse: bool = False) -> tuple[int, int]:
    """Address of a sequence's first row at a channel, and the step to the next row; (0, 0) if there is no tensor.

    Args:
        tensor: float32 or bfloat16 (batch, length, channels), last stride one.
        b: which sequence of the batch.
        reverse: start from the last row and step backwards.
    """
    if tensor is None:
        return 0, 0
    size, step = tensor.element_size(), tensor.stride(1)
    start = b * tensor.stride(0) + channel
    if reverse:
        return tensor.data_ptr() + (start + (tensor.shape[1] - 1) * step) * size, -step * size
    return tensor.data_ptr() + start * size, step * size
