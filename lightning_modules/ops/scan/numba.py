"""The selective scan on the CPU, compiled by numba: forward and hand-written backward, as custom operators of torch.

The loops are in `numba_kernels.py`. A task is one block of channels of one sequence, in all its directions; inputs are
read where they are, slices of wider tensors included, and a scan from the last token copies nothing. Equal calls give
equal results, bit for bit; another number of threads may change the last digits of the gradients of B and C.

Shapes are those of `interface.py`, "lanes layout" as in `numba_kernels.py`.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_modules.ops import threads
from lightning_modules.ops.memory import FLOAT_BYTES, address, empty, in_bfloat16, readable, rows, zeros
from lightning_modules.ops.scan.direction import Direction, flat, needs_grad
from lightning_modules.ops.scan.numba_kernels import scan_backward, scan_forward
from lightning_modules.ops.scan.operator import scan_operators
from lightning_modules.ops.simd import LANES, LOG2_E
from lightning_modules.ops.workspace import passing

__all__ = ["scan", "why_not"]


# Rows between two checkpoints of the state, from which the backward recomputes the states between them. What it holds
# for a chunk, 49 vectors a row for 16 states, takes two fifths of a second cache of 1 MiB.
_CHUNK = 128
# The kernels take states in fours.
_STATES = 4
# Groups of sixteen channels per task: more win nothing in the forward, and leave less to share among threads.
_MOST_GROUPS = 12
# The backward has sums of its own for B and C in every task: few and large ones.
_MOST_GROUPS_BACK = 36


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """One sentence saying why the backend cannot run on a device with inputs of a dtype, or None."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"The numba backend computes in float32, too coarse for {dtype} inputs; use the reference backend."
    return _defect()


@cache
def _defect() -> str | None:
    """Compile the forward, or find it in the cache, and run it once on two steps of one channel with one state.

    On numpy's memory, since torch may be tracing while the choice is made.
    """
    u, delta, B, C, y = (np.array(row, dtype=np.float32) for row in ([3, 5], [1, 2], [1, 2], [1, 3], [0, 0]))
    A = np.full(LANES, -1, dtype=np.float32)  # times log2(e): a unit of delta halves the state
    state, scratch = np.zeros(LANES, dtype=np.float32), np.zeros(4 * LANES, dtype=np.float32)
    at = [array.ctypes.data for array in (u, delta, A, B, C, y, state, scratch)]
    row = FLOAT_BYTES
    try:
        scan_forward(
            at[0], row, at[1], row, at[2], at[3], row, at[4], row, 0, 0, False, 0, 0, row, at[5], row, False,
            at[6], at[7], 0, 0, 2, 2, 1, 1,
        )  # fmt: skip
    except Exception as error:  # whatever a compiler may raise
        first_line = f"{type(error).__name__}: {error}".partition("\n")[0]
        return f"The numba backend fails on this machine ({first_line}); use the reference backend."
    # h = 1 * 1 * 3 = 3, then 2 ** -2 * 3 + 2 * 2 * 5 = 20.75
    if not np.allclose(y, [3, 3 * 20.75], rtol=1e-5):
        return f"The numba backend gives {y.tolist()} for [3.0, 62.25] on this machine; use the reference backend."
    return None


def scan(directions: tuple[Direction, ...], z: Tensor | None, delta_softplus: bool, reverse: bool) -> Tensor:
    """See `lightning_modules.ops.scan.reference.scan`."""
    return _scan(*flat(directions), z, delta_softplus, reverse, needs_grad(directions, z))[0]


def _forward(
    given: tuple[Direction, ...], z: Tensor | None, delta_softplus: bool, reverse: bool, save: bool
) -> tuple[Tensor, Tensor]:
    """y and the checkpoints, see `lightning_modules.ops.scan.operator.scan_operators`."""
    u, A = given[0].u, given[0].A
    as_it_is = in_bfloat16(z, *(tensor for d in given for tensor in (d.u, d.delta)))
    directions = _Rows.of_each(given, reverse, as_it_is)
    batch, length, channels = u.shape
    states = _padded(A.shape[1])
    groups = _groups(channels)
    gate = readable(z, as_it_is)
    number_bytes = directions[0].u.element_size()
    y = passing(*u.shape)
    state = zeros(len(directions), batch, groups, states, LANES)
    chunks = -(-length // _CHUNK)
    checkpoints = empty(*_checkpoint_shape(u, A, len(given))) if save else empty(0)
    last = len(directions) - 1

    def work(b: int, first: int, count: int) -> None:
        channel = first * LANES
        scratch = empty(2 * _CHUNK, LANES)
        for index, d in enumerate(directions):
            gated = gate if index == last else None
            scan_forward(
                *d.inputs(b, channel), delta_softplus,
                *d.place(gated, b, channel), number_bytes, *d.place(y, b, channel), index > 0,
                address(state[index, b, first]), address(scratch),
                address(checkpoints[index, b, 0, first]) if save and chunks else 0,
                groups * states * LANES * FLOAT_BYTES, _CHUNK, length, min(count * LANES, channels - channel), states,
            )  # fmt: skip

    # Small enough for every thread to get several.
    size = min(max(batch * groups // (4 * torch.get_num_threads()), 1), _MOST_GROUPS)
    threads.run(work, _share(batch, groups, size))
    return y.to(u.dtype), checkpoints.view(-1)


def _backward(
    grad: Tensor,
    saved: tuple[Tensor],
    given: tuple[Direction, ...],
    z: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    result: bool = False,
) -> list[Tensor]:
    u, A = given[0].u, given[0].A
    directions = _Rows.of_each(given, reverse)
    batch, length, channels = u.shape
    states = _padded(A.shape[1])
    groups = _groups(channels)
    checkpoints = saved[0].view(_checkpoint_shape(u, A, len(given)))
    size = _block_size(batch, groups)
    tasks = _share(batch, groups, size)
    blocks = -(-groups // size)
    gate = readable(z)
    grad = readable(grad)
    # Holds the ungated result until the last direction turns it, row by row, into the gate's gradient.
    grad_z = None if z is None else empty(*u.shape)
    y = passing(*u.shape) if result else None
    sums = _Sums(len(directions), batch, length, channels, states, blocks)
    room = (2 * states + 17) * _CHUNK
    last = len(directions) - 1

    def work(b: int, first: int, count: int) -> None:
        scratch = empty(room, LANES)
        channel = first * LANES
        block = first // size
        for index, d in enumerate(directions):
            scan_backward(
                *d.inputs(b, channel), delta_softplus,
                *d.place(gate, b, channel), *d.place(grad, b, channel), *d.place(grad_z, b, channel), index > 0,
                *(d.place(tensor, b, channel)[0] if index == last else 0 for tensor in (y, grad_z)),
                *d.place(sums.u[index], b, channel)[:1], *d.place(sums.delta[index], b, channel),
                address(sums.A[index, b, first]), address(sums.D[index, b, first]), address(sums.bias[index, b, first]),
                *d.place(sums.B[block, index], b, 0)[:1], *d.place(sums.C[block, index], b, 0),
                address(sums.adjoint[index, b, first]), address(scratch),
                address(checkpoints[index, b, 0, first]) if length else 0,
                groups * states * LANES * FLOAT_BYTES, _CHUNK, length, min(count * LANES, channels - channel), states,
            )  # fmt: skip

    threads.run(work, tasks)
    results = sums.finish(given)
    if z is not None and grad_z is not None:
        results.append(grad_z.to(z.dtype))
    return results if y is None else [*results, y.to(u.dtype)]


@dataclass(frozen=True)
class _Rows:
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
    def of_each(cls, directions: tuple[Direction, ...], reverse: bool, as_it_is: bool = False) -> list["_Rows"]:
        """`as_it_is`: u and delta in the dtype that they have."""
        found: list[_Rows] = []
        for u, delta, A, B, C, D, bias in directions:
            missing = _padded(A.shape[1]) - A.shape[1]
            if missing:  # states that stay zero
                A, B, C = (pad(tensor, (0, missing)) for tensor in (A, B, C))
            u, delta = readable(u, as_it_is), readable(delta, as_it_is)
            rates = _to_lanes(A.float() * float(LOG2_E))
            others = readable(B), readable(C), readable(D), readable(bias)
            found.append(cls(u, delta, rates, *others, reverse or bool(found)))
        return found

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
    """The gradients while they are being summed: per direction and sequence, those of B and C per block of channels.

    Those of one kind lie in one tensor, since each fill and each sum of torch's costs more than these numbers do.
    """

    def __init__(self, directions: int, batch: int, length: int, channels: int, states: int, blocks: int) -> None:
        groups = _groups(channels)
        self.u = [empty(batch, length, channels) for _ in range(directions)]  # torch adds x_proj's to them in place
        self.delta = [passing(batch, length, channels) for _ in range(directions)]
        self.weights = empty(blocks, directions, batch, length, 2 * states)
        self.B, self.C = self.weights.chunk(2, dim=-1)
        self.A, self.adjoint = zeros(2, directions, batch, groups, states, LANES).unbind()
        self.D, self.bias = zeros(2, directions, batch, groups, LANES).unbind()

    def finish(self, given: tuple[Direction, ...]) -> list[Tensor]:
        """The gradients of u, delta, A, B, C, D and delta_bias of each direction, those that were given."""
        channels, states = given[0].A.shape
        lanes = torch.cat([self.A, self.D.unsqueeze(3), self.bias.unsqueeze(3)], dim=3).sum(1)
        lanes = lanes.transpose(2, 3).flatten(1, 2)[:, :channels]  # (direction, channel, states, D, bias)
        weights = self.weights.sum(0)
        width = weights.shape[-1] // 2
        results = []
        for index, tensors in enumerate(given):
            rates, (skip, bias) = lanes[index, :, :states], lanes[index, :, -2:].unbind(-1)
            b, c = weights[index, ..., :states], weights[index, ..., width : width + states]
            # An operator's results must not share memory.
            small = (part.clone(memory_format=torch.contiguous_format) for part in (rates, b, c, skip, bias))
            grads = zip(tensors, (self.u[index], self.delta[index], *small), strict=True)
            results += [grad.to(tensor.dtype) for tensor, grad in grads if tensor is not None]
        return results


def _groups(channels: int) -> int:
    return -(-channels // LANES)


def _padded(states: int) -> int:
    return -(-states // _STATES) * _STATES


def _checkpoint_shape(u: Tensor, A: Tensor, directions: int) -> tuple[int, ...]:
    """(direction, batch, chunk, group, state, 16)."""
    batch, length, channels = u.shape
    return (directions, batch, -(-length // _CHUNK), _groups(channels), _padded(A.shape[1]), LANES)


def _block_size(batch: int, groups: int) -> int:
    """Groups per task of the backward: the fewest blocks of a sequence that give every thread as many as the others."""
    count = torch.get_num_threads()
    least = max(-(-groups // _MOST_GROUPS_BACK), 1)
    blocks = next(blocks for blocks in range(least, least + count) if batch * blocks % count == 0)
    return max(-(-groups // blocks), 1)


def _share(batch: int, groups: int, size: int) -> list[tuple[int, int, int]]:
    """(sequence, first group, number of groups) of every task."""
    return [(b, first, min(size, groups - first)) for b in range(batch) for first in range(0, groups, size)]


def _to_lanes(A: Tensor) -> Tensor:
    """(channels, state) -> (groups, state, 16), zeros behind the last channel."""
    groups = _groups(A.shape[0])
    padded = zeros(groups * LANES, A.shape[1])
    padded[: A.shape[0]] = A
    return padded.view(groups, LANES, -1).transpose(1, 2).contiguous()


operators = _scan, _scan_backward = scan_operators(
    "numba", _forward, _backward, ("checkpoints",),
    lambda u, A, directions, gated: [(_checkpoint_shape(u, A, directions), torch.float32)],
)  # fmt: skip
