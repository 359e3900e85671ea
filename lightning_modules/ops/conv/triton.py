"""The short convolution on NVIDIA GPUs, compiled by triton: forward and hand-written backward, as custom operators.

The kernels are in `triton_kernels.py`. x is read where it is, slices of wider tensors included.
"""

import torch
from torch import Tensor

from lightning_modules.ops.conv.triton_kernels import conv_backward, conv_forward
from lightning_modules.ops.launch import launch, strided

__all__ = ["bidirectional_conv1d", "causal_conv1d"]

_ROWS, _BLOCK = 16, 128
# Tokens of a program of the backward; its margins of width - 1 tokens on both sides are computed twice.
_SEGMENT = 64


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """See `lightning_modules.ops.conv.interface.causal_conv1d`; weight is (channels, width) here."""
    return _conv(x, weight, bias, silu, reverse)


def bidirectional_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, weight_b: Tensor, bias_b: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `lightning_modules.ops.conv.interface.bidirectional_conv1d`."""
    return _conv_pair(x, weight, bias, weight_b, bias_b)


@torch.library.custom_op("lightning_modules::triton_conv", mutates_args=())
def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """One direction."""
    one, none = (weight, bias), (None, None)
    y, y_b = _forward(x, *(none if reverse else one), *(one if reverse else none), silu)
    return y_b if reverse else y


@_conv.register_fake
def _conv_shapes(x, weight, bias, silu, reverse):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op("lightning_modules::triton_conv_pair", mutates_args=())
def _conv_pair(
    x: Tensor, weight: Tensor, bias: Tensor | None, weight_b: Tensor, bias_b: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Both directions with SiLU."""
    return _forward(x, weight, bias, weight_b, bias_b, True)


@_conv_pair.register_fake
def _conv_pair_shapes(x, weight, bias, weight_b, bias_b):
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))


@torch.library.custom_op("lightning_modules::triton_conv_backward", mutates_args=())
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
    segments = -(-length // _SEGMENT)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sums = [
        None if w is None else x.new_empty(batch * segments, width + 1, channels, dtype=torch.float32)
        for w in (weight, weight_b)
    ]
    launch(
        conv_backward, (-(-channels // _BLOCK), segments, batch), x,
        *strided(grad), *strided(grad_b), *strided(x), *map(_packed, (weight, bias, weight_b, bias_b)),
        dx, *sums, length, channels, _SEGMENT, SILU=silu, WIDTH=width, BLOCK=_BLOCK,
    )  # fmt: skip
    results = [dx]
    for partial, w, c in ((sums[0], weight, bias), (sums[1], weight_b, bias_b)):
        if w is not None:
            partial = partial.sum(0)
            results.append(_own(partial[:width].t(), w.dtype))
            if c is not None:
                results.append(_own(partial[width], c.dtype))
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


def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, weight_b: Tensor | None, bias_b: Tensor | None, silu: bool
) -> tuple[Tensor | None, Tensor | None]:
    batch, length, channels = x.shape
    y, y_b = (None if w is None else torch.empty(x.shape, dtype=x.dtype, device=x.device) for w in (weight, weight_b))
    launch(
        conv_forward, (-(-channels // _BLOCK), -(-length // _ROWS), batch), x,
        *strided(x), *map(_packed, (weight, bias, weight_b, bias_b)), y, y_b, length, channels,
        SILU=silu, WIDTH=(weight_b if weight is None else weight).shape[1], ROWS=_ROWS, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
    return y, y_b


def _packed(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _own(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy: the results of an operator may not share memory."""
    return tensor.to(dtype).clone(memory_format=torch.contiguous_format)
