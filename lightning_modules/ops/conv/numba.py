"""The short convolution on the CPU, compiled by numba: forward and hand-written backward, as custom operators of torch.

The loops are in `numba_kernels.py`. A task is a stretch of rows (tokens) of one sequence with all its channels, in all
directions asked for; x is read where it is, slices of wider tensors included.
"""

import torch
from torch import Tensor

from lightning_modules.ops import threads
from lightning_modules.ops.conv.numba_kernels import conv_backward, conv_forward
from lightning_modules.ops.memory import FLOAT_BYTES, address, empty, readable, rows, zeros
from lightning_modules.ops.simd import LANES

__all__ = ["bidirectional_conv1d", "causal_conv1d"]

_ROWS_PER_TASK = 128


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """See `lightning_modules.ops.conv.interface.causal_conv1d`; weight is (channels, width) here."""
    return _conv(x, weight, bias, silu, reverse)


def bidirectional_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, weight_b: Tensor, bias_b: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `lightning_modules.ops.conv.interface.bidirectional_conv1d`."""
    return _conv_pair(x, weight, bias, weight_b, bias_b)


@torch.library.custom_op("lightning_modules::numba_conv", mutates_args=())
def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """One direction."""
    pair = [None, (weight, bias)] if reverse else [(weight, bias), None]
    (y,) = (y for y in _forward(x, *pair, silu) if y is not None)
    return y


@_conv.register_fake
def _conv_shapes(x, weight, bias, silu, reverse):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op("lightning_modules::numba_conv_pair", mutates_args=())
def _conv_pair(
    x: Tensor, weight: Tensor, bias: Tensor | None, weight_b: Tensor, bias_b: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Both directions with SiLU."""
    return _forward(x, (weight, bias), (weight_b, bias_b), True)


@_conv_pair.register_fake
def _conv_pair_shapes(x, weight, bias, weight_b, bias_b):
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))


@torch.library.custom_op("lightning_modules::numba_conv_backward", mutates_args=())
def _conv_backward(
    grad: Tensor | None,
    grad_b: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    weight_b: Tensor | None,
    bias_b: Tensor | None,
    silu: bool,
) -> list[Tensor]:
    """Gradients of the tensors given, from x to bias_b, each in its tensor's dtype."""
    batch, length, channels = x.shape
    width = (weight_b if weight is None else weight).shape[1]
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
    results = [grad_x.to(x.dtype)]
    for of_taps, w, c, mirrored in ((sums[0], weight, bias, False), (sums[1], weight_b, bias_b, True)):
        if w is None:
            continue
        of_taps = of_taps.sum(0).transpose(1, 2).flatten(0, 1)[:channels]
        of_weight = of_taps[:, :width]
        results.append(_own(of_weight.flip(1) if mirrored else of_weight, w.dtype))
        if c is not None:
            results.append(_own(of_taps[:, width], c.dtype))
    return results


@_conv_backward.register_fake
def _conv_backward_shapes(grad, grad_b, x, weight, bias, weight_b, bias_b, silu):
    tensors = (x, weight, bias, weight_b, bias_b)
    return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in tensors if t is not None]


def _remember_conv(ctx, inputs, output) -> None:
    *tensors, ctx.silu, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_conv(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    one, none = (weight, bias), (None, None)
    if ctx.reverse:
        results = _conv_backward(None, grad, x, *none, *one, ctx.silu)
    else:
        results = _conv_backward(grad, None, x, *one, *none, ctx.silu)
    return results[0], results[1], None if bias is None else results[2], None, None


def _remember_pair(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_pair(ctx, grad: Tensor, grad_b: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    results = iter(_conv_backward(grad, grad_b, *tensors, True))
    return tuple(None if tensor is None else next(results) for tensor in tensors)


_conv.register_autograd(_differentiate_conv, setup_context=_remember_conv)
_conv_pair.register_autograd(_differentiate_pair, setup_context=_remember_pair)


def _forward(x: Tensor, causal: tuple | None, future: tuple | None, silu: bool) -> tuple[Tensor | None, Tensor | None]:
    """Each direction is (weight, bias) or None."""
    batch, length, channels = x.shape
    width = (causal or future)[0].shape[1]
    read = readable(x)
    taps = [_to_taps(*(causal or (None, None)), False), _to_taps(*(future or (None, None)), True)]
    y, y_b = (None if t is None else empty(*x.shape) for t in taps)

    def work(index: int, b: int, start: int, stop: int) -> None:
        conv_forward(
            *rows(read, b), address(taps[0]), rows(y, b)[0], address(taps[1]), rows(y_b, b)[0],
            channels * FLOAT_BYTES, silu, width, start, stop, length, channels,
        )  # fmt: skip

    threads.run(work, _tasks(batch, length))
    return tuple(None if result is None else result.to(x.dtype) for result in (y, y_b))


def _own(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy: the results of an operator may not share memory."""
    return tensor.to(dtype).clone(memory_format=torch.contiguous_format)


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
