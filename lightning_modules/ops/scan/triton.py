"""The selective scan on NVIDIA GPUs, compiled by triton: forward and hand-written backward, as custom operators.

The kernels are in `triton_kernels.py`; `docs/kernels.md` explains how the work is divided and the arithmetic behind it.
Inputs are read where they are, slices of wider tensors included, and a scan from the last token copies nothing. Equal
calls give equal results, bit for bit. Nothing waits for the GPU, so that calls can be captured in a CUDA graph.

Shapes are those of `interface.py`; N is `state` rounded up to a power of two, "state buffer" as in `triton_kernels.py`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.ops.launch import INTERPRETED, launch, multiprocessors, strided
from lightning_modules.ops.scan.direction import Direction, flat, needs_grad
from lightning_modules.ops.scan.operator import scan_operators
from lightning_modules.ops.scan.triton_kernels import combine, gate_backward, pack, scan_backward, scan_forward, walk

__all__ = ["scan", "why_not"]

# Tokens between two states that the forward keeps for the backward.
_CHUNK = 64
# Segments are multiples of so many tokens: fewer would be spent on their beginnings.
_SHORTEST = 32
# What a thread can hold in registers: states of a direction in the forward, states and tokens of them in the backward.
_FORWARD_STATES, _BACKWARD_STATES, _BACKWARD_TOKENS = 16, 8, 4
# Tokens that the forward asks for at once, and registers a thread may use for that: above 168 and up to
# 255 two warps fit on a scheduler.
_AHEAD, _REGISTERS = 2, 192
# Channels side by side in the backward, see `scan_backward`.
_LANES = 8
# A scheduler with one warp waits about half of the time, with three hardly ever.
_FEW_WARPS, _ENOUGH_WARPS, _SCHEDULERS = 1, 3, 4


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """One sentence saying why the backend cannot run on a device with inputs of a dtype, or None."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"The triton backend computes in float32, too coarse for {dtype} inputs; use the reference backend."
    if device == "cpu" and not INTERPRETED:
        return "The triton backend runs on GPUs; to step through it on the CPU, start Python with TRITON_INTERPRET=1."
    if device == "cuda" and INTERPRETED:
        return "The triton backend is being interpreted (TRITON_INTERPRET=1); unset that to run on the GPU."
    if device == "cuda" and not torch.cuda.is_available():
        return "The triton backend finds no NVIDIA GPU; use a CPU backend."
    return None


def scan(directions: tuple[Direction, ...], z: Tensor | None, delta_softplus: bool, reverse: bool) -> Tensor:
    """See `lightning_modules.ops.scan.reference.scan`."""
    return _scan(*flat(directions), z, delta_softplus, reverse, needs_grad(directions, z))[0]


@dataclass(frozen=True)
class _Operands:
    """One direction's inputs as the kernels read them."""

    u: tuple[Tensor | None, int, int]
    delta: tuple[Tensor | None, int, int]
    A: Tensor | None
    D: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(cls, direction: Direction) -> "_Operands":
        u, delta, A, _, _, D, bias = direction
        D, bias = (None if tensor is None else tensor.contiguous() for tensor in (D, bias))
        return cls(strided(u), strided(delta), A.t().contiguous(), D, bias)


_ABSENT = _Operands((None, 0, 0), (None, 0, 0), None, None, None)


def _forward(
    directions: tuple[Direction, ...], z: Tensor | None, softplus: bool, reverse: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y; y before the gate; the states before the chunks. See `lightning_modules.ops.scan.operator.scan_operators`."""
    u, A = directions[0].u, directions[0].A
    batch, length, channels = u.shape
    states, N = A.shape[1], _padded(A.shape[1])
    two = len(directions) == 2
    one, other = _Operands.of(directions[0]), _Operands.of(directions[1]) if two else _ABSENT
    BC = _pack(directions)
    segment = _segment(u, N, two)
    segments = _pieces(length, segment)
    y = u.new_empty(u.shape)
    kept = u.new_empty(math.prod(u.shape) if save and z is not None else 0)
    size = math.prod(_state_shape(u, A, len(directions), _chunks(u))) if save else 0
    # What lies behind the last channel is not written, and results of an operator should not depend on the allocator.
    checkpoints = (u.new_zeros if channels % 32 else u.new_empty)(size, dtype=torch.float32)
    scratch = u.new_empty(u.shape, dtype=torch.float32) if two else None
    entry = _entries(one, other, None, BC, u, A, segment, softplus, reverse) if segments > 1 else None
    launch(
        scan_forward, (_pieces(channels, _block(N)) * batch * segments,), u,
        *one.u, *one.delta, one.A, one.D, one.bias, *other.u, *other.delta, other.A, other.D, other.bias,
        *strided(z), BC, entry, checkpoints if save else None, scratch, kept if kept.numel() else None, y,
        batch, length, channels, states, 1, segment, segments, _chunks(u),
        TWO=two, REVERSE=reverse, SOFTPLUS=softplus, CHUNK=_CHUNK, AHEAD=_AHEAD, N=N, BLOCK=_block(N),
        maxnreg=_REGISTERS,
    )  # fmt: skip
    return y, kept, checkpoints


def _backward(
    grad: Tensor,
    saved: tuple[Tensor, Tensor],
    directions: tuple[Direction, ...],
    z: Tensor | None,
    softplus: bool,
    reverse: bool,
    result: bool = False,
) -> list[Tensor]:
    kept, checkpoints = saved
    u, A = directions[0].u, directions[0].A
    batch, length, channels = u.shape
    states, N = A.shape[1], _padded(A.shape[1])
    two = len(directions) == 2
    count = len(directions)
    one, other = _Operands.of(directions[0]), _Operands.of(directions[1]) if two else _ABSENT
    BC = _pack(directions)
    dy, grad_z = grad, None
    y = u.new_empty(u.shape) if result else None
    if z is not None:
        dy, grad_z = grad.new_empty(grad.shape), z.new_empty(z.shape)
        launch(
            gate_backward, (_pieces(channels, 128), _pieces(length, 16), batch), u,
            *strided(grad), *strided(z), kept, grad_z, dy, y, length, channels, ROWS=16, BLOCK=128, num_warps=4,
        )  # fmt: skip

    tile = max(_BACKWARD_TOKENS * 32 // max(N, 32), 1)
    chunks, tiles = _chunks(u), _pieces(length, tile)
    dts = u.new_empty(count, *u.shape, dtype=torch.float32)
    inner = u.new_empty(_state_shape(u, A, count, tiles), dtype=torch.float32)
    launch(
        walk, (_pieces(channels, _block(N)) * batch * chunks, count), u,
        *one.u, *one.delta, one.A, one.bias, *other.u, *other.delta, other.A, other.bias,
        None, 0, 0, BC, checkpoints, None, None, inner, dts,
        batch, length, channels, states, 1, _CHUNK, chunks, tiles,
        TWO=two, REVERSE=reverse, SOFTPLUS=softplus, ADJOINT=False, TILE=tile, N=N, BLOCK=_block(N),
    )  # fmt: skip

    groups = max(_BACKWARD_STATES * 32 // (max(N, 16) * _LANES), 1)
    blocks = _pieces(channels, groups * _LANES)
    segment = _segment(u, N, two, per_direction=True)
    segments = _pieces(length, segment)
    entry = _entries(one, other, dy, BC, u, A, segment, softplus, reverse) if segments > 1 else None
    dBC = u.new_empty(blocks, count, batch, length, 2, N, dtype=torch.float32)
    dA = u.new_empty(_state_shape(u, A, count, segments), dtype=torch.float32)
    dchannels = u.new_empty(count, batch, segments, 2, channels, dtype=torch.float32)
    grads = [(d.u.new_empty(d.u.shape), d.delta.new_empty(d.delta.shape)) for d in directions]
    skips = [one.D, other.D]
    if two and (one.D is None) != (other.D is None):  # the kernel takes both or none
        skips = [A.new_zeros(channels) if D is None else D for D in skips]
    launch(
        scan_backward, (blocks * batch * segments, count), u,
        u.contiguous(), one.A, skips[0], *grads[0],
        *((directions[1].u.contiguous(), other.A, skips[1], *grads[1]) if two else [None] * 5),
        dy.contiguous(), BC, dts, inner, entry, dBC, dA, dchannels,
        batch, length, channels, states, 1, segment, segments, tiles,
        TWO=two, REVERSE=reverse, SOFTPLUS=softplus, TILE=tile, GROUPS=groups, N=N, LANES=_LANES,
        EVEN=channels % (groups * _LANES) == 0,
    )  # fmt: skip
    dBC, dA, dchannels = dBC.sum(0), dA.sum((1, 2)).transpose(2, 3).flatten(1, 2), dchannels.sum((1, 2))
    results: list[Tensor] = []
    for index, ((_, _, A, B, C, D, bias), own) in enumerate(zip(directions, grads, strict=True)):
        results += own
        of_A = dA[index, :channels, :states]
        of_B, of_C = dBC[index, :, :, 0, :states], dBC[index, :, :, 1, :states]
        sums = ((A, of_A), (B, of_B), (C, of_C), (D, dchannels[index, 0]), (bias, dchannels[index, 1]))
        results += [_own(value, tensor.dtype) for tensor, value in sums if tensor is not None]
    return [*results, *(tensor for tensor in (grad_z, y) if tensor is not None)]


def _entries(
    one: _Operands, other: _Operands, dy: Tensor | None, BC: Tensor, u: Tensor, A: Tensor, segment: int,
    softplus: bool, reverse: bool,
) -> Tensor:  # fmt: skip
    """The state before every segment of the scan, or, given dy, of its adjoint: a state buffer."""
    batch, length, channels = u.shape
    states, N = A.shape[1], _padded(A.shape[1])
    two = other is not _ABSENT
    count = 2 if two else 1
    segments = _pieces(length, segment)
    ends = u.new_empty(_state_shape(u, A, count, segments), dtype=torch.float32)
    totals = u.new_empty(count, batch, segments, channels, dtype=torch.float32)
    launch(
        walk, (_pieces(channels, _block(N)) * batch * segments, count), u,
        *one.u, *one.delta, one.A, one.bias, *other.u, *other.delta, other.A, other.bias,
        *strided(dy), BC, None, ends, totals, None, None,
        batch, length, channels, states, 1, segment, segments, 0,
        TWO=two, REVERSE=reverse, SOFTPLUS=softplus, ADJOINT=dy is not None, TILE=1, N=N, BLOCK=_block(N),
    )  # fmt: skip
    launch(
        combine, (_pieces(channels, _block(N)), batch, count), u,
        one.A, other.A, ends, totals, batch, channels, states, 1, segments,
        TWO=two, REVERSE=reverse, ADJOINT=dy is not None, N=N, BLOCK=_block(N),
    )  # fmt: skip
    return ends


def _pack(directions: tuple[Direction, ...]) -> Tensor:
    """B and C (batch, length, state) of every direction -> float32 (direction, batch, length, 2, N)."""
    B = directions[0].B
    batch, length, states = B.shape
    BC = B.new_empty(len(directions), batch, length, 2, _padded(states), dtype=torch.float32)
    inputs = [part for direction in directions for tensor in (direction.B, direction.C) for part in strided(tensor)]
    inputs += [None, 0, 0, None, 0, 0] if len(directions) == 1 else []
    launch(
        pack, (_pieces(length, 64), batch, len(directions)), B, *inputs, BC, length, states,
        N=_padded(states), ROWS=64, num_warps=2,
    )  # fmt: skip
    return BC


def _segment(u: Tensor, N: int, two: bool, per_direction: bool = False) -> int:
    """Tokens per segment: all of them if that makes enough programs, else a multiple of `_SHORTEST`.

    Segments cost a second pass over the exponentials, so they have to win more than a factor of two: fewer programs
    than schedulers, or one per scheduler, which then waits half of its time.
    """
    batch, length, channels = u.shape
    warps = batch * _pieces(channels, _block(N)) * (2 if two and per_direction else 1)
    schedulers = _SCHEDULERS * multiprocessors(u.device)
    if warps == 0 or warps > _FEW_WARPS * schedulers:
        return max(length, 1)
    wanted = -(-_ENOUGH_WARPS * schedulers // warps)
    return min(max(length // wanted // _SHORTEST, 1) * _SHORTEST, max(length, 1))


def _chunks(u: Tensor) -> int:
    return _pieces(u.shape[1], _CHUNK)


def _pieces(length: int, size: int) -> int:
    return -(-length // size)


def _block(N: int) -> int:
    """Channels of a program that walks states: one per thread, fewer where a thread cannot hold all states of one."""
    return max(32 * _FORWARD_STATES // max(N, _FORWARD_STATES), 1)


def _padded(states: int) -> int:
    return max(1 << (states - 1).bit_length(), 4)


def _state_shape(u: Tensor, A: Tensor, directions: int, pieces: int) -> tuple[int, ...]:
    """That of a state buffer."""
    return (directions, u.shape[0], pieces, _pieces(u.shape[2], 32), _padded(A.shape[1]), 32)


def _own(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy: the results of an operator may not share memory."""
    return tensor.to(dtype).clone(memory_format=torch.contiguous_format)


operators = _scan, _scan_backward = scan_operators(
    "triton", _forward, _backward, ("kept", "checkpoints"),
    lambda u, A, directions, gated: [
        (tuple(u.shape) if gated else (0,), u.dtype),
        (_state_shape(u, A, directions, _chunks(u)), torch.float32),
    ],
)  # fmt: skip
