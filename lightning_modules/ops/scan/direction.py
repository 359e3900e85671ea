"""The inputs of a selective scan that belong to one direction."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Direction", "directions_of", "flat", "needs_grad"]


class Direction(NamedTuple):
    """What one direction of a scan reads; shapes as in `lightning_modules.ops.scan.interface.selective_scan`."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    delta_bias: Tensor | None = None


def flat(directions: tuple[Direction, ...]) -> list[Tensor | None]:
    """Return the tensors of both directions in a row, as an operator of torch takes them; None for a missing one."""
    one, *other = directions
    return [*one, *(other[0] if other else [None] * len(one))]


def directions_of(*tensors: Tensor | None) -> tuple[Direction, ...]:
    """Return the directions that `flat` was given."""
    count = len(Direction._fields)
    given: tuple[Any, ...] = tensors  # of a direction that is there only D and delta_bias may be None
    one, other = given[:count], given[count:]
    return (Direction(*one),) if other[0] is None else (Direction(*one), Direction(*other))


def needs_grad(directions: tuple[Direction, ...], z: Tensor | None) -> bool:
    """Whether a backward may follow, so that the forward has to keep states for it."""
    tensors = (z, *flat(directions))
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
