"""The short convolution on the CPU, compiled by numba: forward and hand-written backward, as custom operators of torch.

The loops are in `numba_kernels.py`. A task is a stretch of rows (tokens) of one sequence with all its channels, in all
directions asked for; x is read where it is, slices of wider tensors included.
"""

import torch
from torch import Tensor

from lightning_modules.ops import threads
from lightning_modules.ops.conv.numba_kernels import conv_backward, conv_forward
from lightning_modules.ops.conv.operator import conv_operators, width_of
from lightning_modules.ops.memory import address, empty, in_bfloat16, readable, rows, zeros
from lightning_modules.ops.simd import LANES
from lightning_modules.ops.workspace import passing

__all__ = ["bidirectional_conv1d", "causal_conv1d"]

_ROWS_PER_TASK = 128


def _backward(
    grad: Tensor | None,
    grad_b: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    weight_b: Tensor | None,
    bias_b: Tensor | None,
    silu: bool,
) -> tuple[Tensor, list[Tensor | None]]:
    """See `lightning_modules.ops.conv.operator.conv_operators`."""
    batch, length, channels = x.shape
    width = width_of(weight, weight_b)
    x_read = readable(x)
    grads = [readable(g) for g in (grad, grad_b)]
    taps = [_to_taps(weight, bias, False), _to_taps(weight_b, bias_b, True)]
    tasks = _tasks(batch, length)
    grad_x = empty(*x.shape)
    sums = [None if t is None else zeros(len(tasks), *t.shape) for t in taps]

    def work(index: int, b: int, start: int, stop: int) -> None:
        scratch = empty(2 * (stop - start + 2 * (width - 1)), LANES)
        conv_backward(
            *rows(x_read, b), address(taps[0]), *rows(grads[0], b), address(taps[1]), *rows(grads[1], b), silu,
            *rows(grad_x, b), *(0 if s is None else address(s[index]) for s in sums),
            address(scratch), width, start, stop, length, channels,
        )  # fmt: skip

    threads.run(work, tasks)
    results: list[Tensor | None] = []
    for of_taps, mirrored in zip(sums, (False, True), strict=True):
        if of_taps is None:
            results += [None, None]
            continue
        of_taps = of_taps.sum(0).transpose(1, 2).flatten(0, 1)[:channels]
        of_weight = of_taps[:, :width]
        results += [of_weight.flip(1) if mirrored else of_weight, of_taps[:, width]]
    return grad_x.to(x.dtype), results


def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, weight_b: Tensor | None, bias_b: Tensor | None, silu: bool
) -> tuple[Tensor | None, Tensor | None]:
    batch, length, channels = x.shape
    width = width_of(weight, weight_b)
    read = readable(x, in_bfloat16(x))
    size = read.element_size()
    taps = [_to_taps(weight, bias, False), _to_taps(weight_b, bias_b, True)]
    y, y_b = (None if t is None else passing(*x.shape, dtype=read.dtype) for t in taps)

    def work(index: int, b: int, start: int, stop: int) -> None:
        conv_forward(
            *rows(read, b), address(taps[0]), rows(y, b)[0], address(taps[1]), rows(y_b, b)[0],
            channels * size, size, silu, width, start, stop, length, channels,
        )  # fmt: skip

    threads.run(work, _tasks(batch, length))
    y, y_b = (None if result is None else result.to(x.dtype) for result in (y, y_b))
    return y, y_b


def _tasks(batch: int, length: int) -> list[tuple[int, int, int, int]]:
    """(index, sequence, first row, row behind the last)."""
    size = min(max(batch * length // (4 * torch.get_num_threads()), 1), _ROWS_PER_TASK)
    pieces = [(b, start, min(start + size, length)) for b in range(batch) for start in range(0, length, size)]
    return [(index, *piece) for index, piece in enumerate(pieces)]


def _to_taps(weight: Tensor | None, bias: Tensor | None, mirrored: bool) -> Tensor | None:
    """(channels, width) and (channels,) -> (groups, width + 1, 16), "taps layout"."""
    if weight is None:
        return None
    channels, width = weight.shape
    groups = -(-channels // LANES)
    taps = zeros(groups * LANES, width + 1)
    taps[:channels, :width] = weight.flip(1) if mirrored else weight
    if bias is not None:
        taps[:channels, width] = bias
    return taps.view(groups, LANES, width + 1).transpose(1, 2).contiguous()


causal_conv1d, bidirectional_conv1d, _conv_backward = conv_operators("numba", _forward, _backward)
