"""The selective scan of the published mamba-ssm package (`pip install mamba-ssm`), an optional extra for comparison.

Used as the official VideoMamba block does: (batch, channels, length) tensors, one call per direction, the scan from the
last token on flipped copies, each direction gated by itself. Its operators are plain autograd functions: torch.compile
breaks the graph at them.
"""

import torch
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from torch import Tensor

from lightning_modules.ops.scan.direction import Direction

__all__ = ["scan", "why_not"]


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """One sentence saying why the backend cannot run on a device with inputs of a dtype, or None."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"The mamba_ssm backend has no kernels for {dtype} inputs; use the reference backend."
    return None


def scan(directions: tuple[Direction, ...], z: Tensor | None, delta_softplus: bool, reverse: bool) -> Tensor:
    """See `lightning_modules.ops.scan.reference.scan`."""
    y = _one_way(directions[0], z, delta_softplus, reverse)
    for direction in directions[1:]:
        y = y + _one_way(direction, z, delta_softplus, reverse=True)
    return y


def _one_way(direction: Direction, z: Tensor | None, delta_softplus: bool, reverse: bool) -> Tensor:
    u, delta, A, B, C, D, delta_bias = direction
    if u.numel() == 0:
        return torch.zeros_like(u)
    z = None if z is None else _channels_first(z, u.dtype, reverse)
    u, delta, B, C = (_channels_first(tensor, u.dtype, reverse) for tensor in (u, delta, B, C))
    D, delta_bias = (None if tensor is None else tensor.float() for tensor in (D, delta_bias))
    y = selective_scan_fn(u, delta, A.float(), B, C, D, z, delta_bias, delta_softplus)
    return (y.flip(2) if reverse else y).transpose(1, 2)


def _channels_first(tensor: Tensor, dtype: torch.dtype, reverse: bool) -> Tensor:
    """(batch, length, channels) -> (batch, channels, length), contiguous, flipped if asked for."""
    tensor = tensor.to(dtype).transpose(1, 2)
    return tensor.flip(2).contiguous() if reverse else tensor.contiguous()
