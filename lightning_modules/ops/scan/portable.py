"""The selective scan as one loop of standard operators, for programs that are exported.

`torch.export` keeps the loop (an unrolled one would have 40,000 operators in a small model), and in an ONNX file it is
one `Scan` node for both directions. A step is six operators on the states (batch, direction, state, channels): the
channels, of which there are most, lie side by side, which decides on the time (docs/deploy.md).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.ops.scan.direction import Direction

__all__ = ["scan", "why_not"]


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """One sentence saying why it cannot run, or None: there are faster ones for everything but an export."""
    if not torch.compiler.is_exporting():
        return "The portable backend is for torch.export, which is not tracing now; use the reference backend."
    return None


def scan(directions: tuple[Direction, ...], z: Tensor | None, delta_softplus: bool, reverse: bool) -> Tensor:
    """See `lightning_modules.ops.scan.reference.scan`."""
    backwards = (reverse, True)[: len(directions)]
    u, B, C = (_stacked(directions, backwards, name) for name in ("u", "B", "C"))  # (length, batch, direction, ...)
    delta = _stacked(directions, backwards, "delta")
    bias = [direction.delta_bias for direction in directions if direction.delta_bias is not None]
    if bias:
        delta = delta + torch.stack(bias).float()
    if delta_softplus:
        delta = _softplus(delta)
    A = torch.stack([direction.A.float().t() for direction in directions])  # (direction, state, channels)

    inputs = [delta.unsqueeze(3), (delta * u).unsqueeze(3), B.unsqueeze(4), C.unsqueeze(3)]
    # The operator itself, whose public wrapper compiles the step again for each block of a model.
    _, y = torch.ops.higher_order.scan(_step, [A.new_zeros(u.shape[1], *A.shape)], inputs, (A,))
    y = y.squeeze(3)  # (length, batch, direction, channels)
    skips = [direction.D for direction in directions if direction.D is not None]
    if skips:
        y = y + torch.stack(skips).float() * u
    both = [y[:, :, k].flip(0) if backwards[k] else y[:, :, k] for k in range(len(directions))]
    total = sum(both[1:], both[0]).transpose(0, 1)
    return (total if z is None else total * F.silu(z.float())).to(directions[0].u.dtype)


def _step(state: Tensor, dt: Tensor, dtu: Tensor, b: Tensor, c: Tensor, A: Tensor) -> list[Tensor]:
    """The next state (batch, direction, state, channels), and what it gives (batch, direction, 1, channels)."""
    state = torch.exp(dt * A) * state + dtu * b
    return [state, torch.matmul(c, state)]


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) without `softplus`, which ONNX Runtime computes number by number, and accurate near 0 too."""
    e = torch.exp(-x.abs())
    w = 1 + e
    # log(w) e / (w - 1) makes up for the rounding of w; where e is lost in w, e itself is the result.
    return torch.relu(x) + torch.where(w == 1, e, torch.log(w) * e / (w - 1))


def _stacked(directions: tuple[Direction, ...], backwards: tuple[bool, ...], name: str) -> Tensor:
    """One input of all directions in the order in which they are scanned: (length, batch, direction, ...), float32."""
    parts = [getattr(direction, name).float().transpose(0, 1) for direction in directions]
    return torch.stack([part.flip(0) if back else part for part, back in zip(parts, backwards, strict=True)], dim=2)
