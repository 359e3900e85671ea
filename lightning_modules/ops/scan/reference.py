"""The selective scan step by step in plain torch: the definition the fast backends are tested against.

Mamba (arXiv 2312.00752), equations 2a-2b, discretised as `lightning_modules.ops.scan.interface.selective_scan` says.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.ops.scan.direction import Direction

__all__ = ["scan", "why_not"]


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """None: it runs everywhere."""
    return None


def scan(directions: tuple[Direction, ...], z: Tensor | None, delta_softplus: bool, reverse: bool) -> Tensor:
    """Scan along the first direction (`reverse`: from the last token) plus, if given, a second one from the last token.

    Shapes, result and arguments as in `lightning_modules.ops.scan.interface`.
    """
    y = _scan(*directions[0], delta_softplus, reverse)
    for direction in directions[1:]:
        y = y + _scan(*direction, delta_softplus, reverse=True)
    y = y if z is None else y * F.silu(z.to(y.dtype))
    return y.to(directions[0].u.dtype)


def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
) -> Tensor:
    """One direction before the gate: (batch, length, channels) in float32, or in float64 where u is."""
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    u, delta, A, B, C = (tensor.to(dtype) for tensor in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)
    if delta_softplus:
        delta = F.softplus(delta)
    batch, length, channels = u.shape
    # Written out as products and sums: autocast would turn einsum and matmul into bfloat16.
    state = u.new_zeros(batch, channels, A.shape[1])
    steps: list[Tensor] = []
    for t in reversed(range(length)) if reverse else range(length):
        dt = delta[:, t, :, None]
        state = torch.exp(dt * A) * state + dt * B[:, t, None, :] * u[:, t, :, None]
        steps.append((state * C[:, t, None, :]).sum(-1))
    # Where it is empty it is still a result of all inputs, which then have gradients.
    y = torch.stack(steps[::-1] if reverse else steps, dim=1) if length else u * delta * (A.sum() + B.sum() + C.sum())
    return y if D is None else y + D.to(dtype) * u
