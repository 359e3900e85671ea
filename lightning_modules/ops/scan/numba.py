"""The selective scan on the CPU, compiled by numba: forward and hand-written backward, as custom operators of torch.

The loops are in `numba_kernels.py`. A task is one block of channels of one sequence, in all its directions; inputs are
read where they are, slices of wider tensors included, and a scan from the last token copies nothing. Equal calls give
equal results, bit for bit; another number of threads may change the last digits of the gradients of B and C.

Legend of shapes: (batch, length, channels) for sequences, state for the states of each channel, "lanes layout" as in
`numba_kernels.py`.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from lightning_modules.ops import threads
from lightning_modules.ops.memory import FLOAT_BYTES, address, empty, readable, rows, zeros
from lightning_modules.ops.scan.numba_kernels import scan_backward, scan_forward
from lightning_modules.ops.simd import LANES, LOG2_E

__all__ = ["bidirectional_scan", "selective_scan", "why_not"]

# Rows between two checkpoints of the state, from which the backward recomputes the states between them.
_CHUNK = 32
# Groups of sixteen channels per task: more win nothing and leave less to share among threads.
_MOST_GROUPS = 12


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """One sentence saying why the backend cannot run on a device with inputs of a dtype, or None."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"The numba backend computes in float32, too coarse for {dtype} inputs; use the reference backend."
    if device not in ("cpu", "meta"):
        return f"The numba backend runs on the CPU, not on {device}; use the reference backend."
    return _defect()


@cache
def _defect() -> str | None:
    """Compiles the forward, or finds it in the cache, and runs it once on two steps of one channel with one state.

    On numpy's memory, since torch may be tracing while the choice is made.
    """
    u, delta, B, C, y = (np.array(row, dtype=np.float32) for row in ([3, 5], [1, 2], [1, 2], [1, 3], [0, 0]))
    A = np.full(LANES, -1, dtype=np.float32)  # times log2(e): a unit of delta halves the state
    state, scratch = np.zeros(LANES, dtype=np.float32), np.zeros(4 * LANES, dtype=np.float32)
    at = [array.ctypes.data for array in (u, delta, A, B, C, y, state, scratch)]
    row = FLOAT_BYTES
    try:
        scan_forward(
            at[0], row, at[1], row, at[2], at[3], row, at[4], row, 0, 0, False, 0, 0, at[5], row, False, at[6], at[7],
            0, 0, 2, 2, 1, 1,
        )  # fmt: skip
    except Exception as error:  # whatever a compiler may raise
        first_line = f"{type(error).__name__}: {error}".partition("\n")[0]
        return f"The numba backend fails on this machine ({first_line}); use the reference backend."
    # h = 1 * 1 * 3 = 3, then 2 ** -2 * 3 + 2 * 2 * 5 = 20.75
    if not np.allclose(y, [3, 3 * 20.75], rtol=1e-5):
        return f"The numba backend gives {y.tolist()} for [3.0, 62.25] on this machine; use the reference backend."
    return None


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
) -> Tensor:
    """See `lightning_modules.ops.scan.interface.selective_scan`."""
    one = (u, delta, A, B, C, D, delta_bias)
    other = (None,) * len(one)
    return _scan(*one, *other, z, delta_softplus, reverse, _needs_grad(*one, z))[0]


def bidirectional_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    u_b: Tensor,
    delta_b: Tensor,
    A_b: Tensor,
    B_b: Tensor,
    C_b: Tensor,
    D_b: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_bias_b: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """See `lightning_modules.ops.scan.interface.bidirectional_scan`."""
    one = (u, delta, A, B, C, D, delta_bias)
    other = (u_b, delta_b, A_b, B_b, C_b, D_b, delta_bias_b)
    return _scan(*one, *other, z, delta_softplus, False, _needs_grad(*one, *other, z))[0]


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


@torch.library.custom_op("lightning_modules::numba_scan", mutates_args=())
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    u_b: Tensor | None,
    delta_b: Tensor | None,
    A_b: Tensor | None,
    B_b: Tensor | None,
    C_b: Tensor | None,
    D_b: Tensor | None,
    delta_bias_b: Tensor | None,
    z: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """y, and the checkpoints, flat, if they are to be saved, else an empty tensor.

    `reverse` belongs to the first direction; the second, if there is one, runs from the last token.
    """
    directions = [_Direction.prepare(u, delta, A, B, C, D, delta_bias, reverse)]
    if u_b is not None:
        directions.append(_Direction.prepare(u_b, delta_b, A_b, B_b, C_b, D_b, delta_bias_b, True))
    batch, length, channels = u.shape
    states = A.shape[1]
    groups = _groups(channels)
    gate = readable(z)
    y = empty(*u.shape)
    state = zeros(len(directions), batch, groups, states, LANES)
    chunks = -(-length // _CHUNK)
    checkpoints = empty(*_checkpoint_shape(u, A, u_b)) if save else empty(0)
    last = len(directions) - 1

    def work(b: int, first: int, count: int) -> None:
        channel = first * LANES
        scratch = empty(2 * _CHUNK, LANES)
        for index, d in enumerate(directions):
            gated = gate if index == last else None
            scan_forward(
                *d.inputs(b, channel), delta_softplus,
                *d.place(gated, b, channel), *d.place(y, b, channel), index > 0,
                address(state[index, b, first]), address(scratch),
                address(checkpoints[index, b, 0, first]) if save and chunks else 0,
                groups * states * LANES * FLOAT_BYTES, _CHUNK, length, min(count * LANES, channels - channel), states,
            )  # fmt: skip

    threads.run(work, _tasks(batch, groups))
    return y.to(u.dtype), checkpoints.view(-1)


@_scan.register_fake
def _scan_shapes(
    u, delta, A, B, C, D, delta_bias, u_b, delta_b, A_b, B_b, C_b, D_b, delta_bias_b, z, delta_softplus, reverse, save
):  # fmt: skip
    # Flat, since tracing with an unknown length would take a number of chunks of one for a promise.
    size = math.prod(_checkpoint_shape(u, A, u_b)) if save else 0
    checkpoints = torch.empty(size, dtype=torch.float32, device=u.device)
    return torch.empty(u.shape, dtype=u.dtype, device=u.device), checkpoints


@torch.library.custom_op("lightning_modules::numba_scan_backward", mutates_args=())
def _scan_backward(
    grad: Tensor,
    checkpoints: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    u_b: Tensor | None,
    delta_b: Tensor | None,
    A_b: Tensor | None,
    B_b: Tensor | None,
    C_b: Tensor | None,
    D_b: Tensor | None,
    delta_bias_b: Tensor | None,
    z: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
) -> list[Tensor]:
    """Gradients of the tensors given, in the order of `_scan`'s arguments, each in its tensor's dtype."""
    given = [(u, delta, A, B, C, D, delta_bias)]
    directions = [_Direction.prepare(*given[0], reverse)]
    if u_b is not None:
        given.append((u_b, delta_b, A_b, B_b, C_b, D_b, delta_bias_b))
        directions.append(_Direction.prepare(*given[1], True))
    batch, length, channels = u.shape
    states = A.shape[1]
    groups = _groups(channels)
    checkpoints = checkpoints.view(_checkpoint_shape(u, A, u_b))
    tasks = _tasks(batch, groups)
    blocks = max(len(tasks) // max(batch, 1), 1)
    gate = readable(z)
    grad = readable(grad)
    # Holds the ungated result until the last direction turns it, row by row, into the gate's gradient.
    grad_z = None if z is None else empty(*u.shape)
    sums = [_Sums(batch, length, channels, states, groups, blocks) for _ in directions]
    room = (4 * _CHUNK + 1) * states + 5 * _CHUNK
    last = len(directions) - 1

    def work(b: int, first: int, count: int) -> None:
        scratch = empty(room, LANES)
        channel = first * LANES
        block = first // count_of_first
        for index, (d, s) in enumerate(zip(directions, sums, strict=True)):
            scan_backward(
                *d.inputs(b, channel), delta_softplus,
                *d.place(gate, b, channel), *d.place(grad, b, channel), *d.place(grad_z, b, channel), index > 0,
                d.place(grad_z, b, channel)[0] if index == last else 0,
                *d.place(s.u, b, channel)[:1], *d.place(s.delta, b, channel),
                address(s.A[b, first]), address(s.D[b, first]), address(s.bias[b, first]),
                *d.place(s.B[block], b, 0)[:1], *d.place(s.C[block], b, 0),
                address(s.adjoint[b, first]), address(scratch),
                address(checkpoints[index, b, 0, first]) if length else 0,
                groups * states * LANES * FLOAT_BYTES, _CHUNK, length, min(count * LANES, channels - channel), states,
            )  # fmt: skip

    count_of_first = tasks[0][2] if tasks else 1
    threads.run(work, tasks)
    results = [grad_ for tensors, s in zip(given, sums, strict=True) for grad_ in s.finish(tensors)]
    return results if z is None else [*results, grad_z.to(z.dtype)]


@_scan_backward.register_fake
def _scan_backward_shapes(
    grad, checkpoints, u, delta, A, B, C, D, delta_bias, u_b, delta_b, A_b, B_b, C_b, D_b, delta_bias_b, z,
    delta_softplus, reverse,
):  # fmt: skip
    tensors = (u, delta, A, B, C, D, delta_bias, u_b, delta_b, A_b, B_b, C_b, D_b, delta_bias_b, z)
    return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in tensors if t is not None]


def _remember(ctx, inputs, output) -> None:
    *tensors, ctx.delta_softplus, ctx.reverse, ctx.saved = inputs
    ctx.save_for_backward(output[1], *tensors)


def _differentiate(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    checkpoints, *tensors = ctx.saved_tensors
    results = iter(_scan_backward(grad, checkpoints, *tensors, ctx.delta_softplus, ctx.reverse))
    return *(None if tensor is None else next(results) for tensor in tensors), None, None, None


_scan.register_autograd(_differentiate, setup_context=_remember)


@dataclass(frozen=True)
class _Direction:
    """One direction's inputs as the kernels read them: float32, neighbouring channels and states side by side."""

    u: Tensor
    delta: Tensor
    A: Tensor  # lanes layout, times log2(e)
    B: Tensor
    C: Tensor
    D: Tensor | None
    bias: Tensor | None
    reverse: bool

    @classmethod
    def prepare(cls, u, delta, A, B, C, D, bias, reverse: bool) -> "_Direction":
        u, delta, B, C, D, bias = (readable(tensor) for tensor in (u, delta, B, C, D, bias))
        return cls(u, delta, _to_lanes(A.float() * float(LOG2_E)), B, C, D, bias, reverse)

    def place(self, tensor: Tensor | None, b: int, channel: int) -> tuple[int, int]:
        """A tensor's address and step between rows as this direction walks it."""
        return rows(tensor, b, channel, self.reverse)

    def inputs(self, b: int, channel: int) -> tuple[int, ...]:
        """The kernels' arguments from u to bias for the channels from one on."""
        D, bias = (0 if t is None else t.data_ptr() + channel * FLOAT_BYTES for t in (self.D, self.bias))
        return (
            *self.place(self.u, b, channel), *self.place(self.delta, b, channel), address(self.A[channel // LANES]),
            *self.place(self.B, b, 0), *self.place(self.C, b, 0), D, bias,
        )  # fmt: skip


class _Sums:
    """One direction's gradients while they are being summed: per sequence, those of B and C per block of channels."""

    def __init__(self, batch: int, length: int, channels: int, states: int, groups: int, blocks: int) -> None:
        self.u = empty(batch, length, channels)
        self.delta = empty(batch, length, channels)
        self.A = zeros(batch, groups, states, LANES)
        self.D = zeros(batch, groups, LANES)
        self.bias = zeros(batch, groups, LANES)
        self.B = empty(blocks, batch, length, states)
        self.C = empty(blocks, batch, length, states)
        self.adjoint = zeros(batch, groups, states, LANES)

    def finish(self, tensors: tuple[Tensor | None, ...]) -> list[Tensor]:
        """The gradients of u, delta, A, B, C, D and delta_bias, those that were given."""
        channels = self.u.shape[2]
        results = (
            self.u, self.delta, self.A.sum(0).transpose(1, 2).flatten(0, 1)[:channels], self.B.sum(0), self.C.sum(0),
            self.D.sum(0).flatten()[:channels], self.bias.sum(0).flatten()[:channels],
        )  # fmt: skip
        return [r.to(t.dtype).contiguous() for t, r in zip(tensors, results, strict=True) if t is not None]


def _groups(channels: int) -> int:
    return -(-channels // LANES)


def _checkpoint_shape(u: Tensor, A: Tensor, u_b: Tensor | None) -> tuple[int, ...]:
    """(direction, batch, chunk, group, state, 16)."""
    batch, length, channels = u.shape
    return (1 if u_b is None else 2, batch, -(-length // _CHUNK), _groups(channels), A.shape[1], LANES)


def _tasks(batch: int, groups: int) -> list[tuple[int, int, int]]:
    """(sequence, first group, number of groups), small enough for every thread to get several."""
    count = min(max(batch * groups // (4 * torch.get_num_threads()), 1), _MOST_GROUPS)
    return [(b, first, min(count, groups - first)) for b in range(batch) for first in range(0, groups, count)]


def _to_lanes(A: Tensor) -> Tensor:
    """(channels, state) -> (groups, state, 16), zeros behind the last channel."""
    groups = _groups(A.shape[0])
    padded = zeros(groups * LANES, A.shape[1])
    padded[: A.shape[0]] = A
    return padded.view(groups, LANES, -1).transpose(1, 2).contiguous()
