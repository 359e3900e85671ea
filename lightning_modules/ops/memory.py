"""Tensors as compiled kernels take them: float32 on the CPU, by address, the step between rows (tokens) in bytes."""

from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["FLOAT_BYTES", "address", "empty", "in_bfloat16", "readable", "rows", "zeros"]

FLOAT_BYTES = 4

Maybe = TypeVar("Maybe", Tensor, Tensor | None)


# Spelled out, since a default dtype or device that the user has set must not reach memory that the kernels write to.
def empty(*shape: int) -> Tensor:
    """A new float32 tensor on the CPU."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def zeros(*shape: int) -> Tensor:
    """A new float32 tensor of zeros on the CPU."""
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


def readable(tensor: Maybe, as_it_is: bool = False) -> Maybe:
    """float32 with a last stride of one: the tensor itself where that is so already, or `as_it_is` is set."""
    if tensor is None or as_it_is:
        return tensor
    tensor = tensor.to(torch.float32)
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def in_bfloat16(*tensors: Tensor | None) -> bool:
    """Whether kernels that take bfloat16 too can read all of these in place, None left out."""
    return all(t is None or (t.dtype == torch.bfloat16 and t.stride(-1) == 1) for t in tensors)


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
