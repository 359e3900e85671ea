"""The short convolution on NVIDIA GPUs, compiled by triton: forward and hand-written backward, as custom operators.

The kernels are in `triton_kernels.py`. x is read where it is, slices of wider tensors included.
"""

import torch
from torch import Tensor

from lightning_modules.ops.conv.operator import conv_operators, width_of
from lightning_modules.ops.conv.triton_kernels import conv_backward, conv_forward
from lightning_modules.ops.launch import launch, strided

__all__ = ["bidirectional_conv1d", "causal_conv1d"]

_ROWS, _BLOCK = 16, 128
# Tokens of a program of the backward; its margins of width - 1 tokens on both sides are computed twice.
_SEGMENT = 64


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
    segments = -(-length // _SEGMENT)
    dx = x.new_empty(x.shape)
    sums = [
        None if w is None else x.new_empty(batch * segments, width + 1, channels, dtype=torch.float32)
        for w in (weight, weight_b)
    ]
    launch(
        conv_backward, (-(-channels // _BLOCK), segments, batch), x,
        *strided(grad), *strided(grad_b), *strided(x), *map(_packed, (weight, bias, weight_b, bias_b)),
        dx, *sums, length, channels, _SEGMENT, SILU=silu, WIDTH=width, BLOCK=_BLOCK,
    )  # fmt: skip
    results: list[Tensor | None] = []
    for partial in sums:
        partial = None if partial is None else partial.sum(0)
        results += [None, None] if partial is None else [partial[:width].t(), partial[width]]
    return dx, results


def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, weight_b: Tensor | None, bias_b: Tensor | None, silu: bool
) -> tuple[Tensor | None, Tensor | None]:
    batch, length, channels = x.shape
    y, y_b = (None if w is None else x.new_empty(x.shape) for w in (weight, weight_b))
    launch(
        conv_forward, (-(-channels // _BLOCK), -(-length // _ROWS), batch), x,
        *strided(x), *map(_packed, (weight, bias, weight_b, bias_b)), y, y_b, length, channels,
        SILU=silu, WIDTH=width_of(weight, weight_b), ROWS=_ROWS, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
    return y, y_b


def _packed(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


causal_conv1d, bidirectional_conv1d, _conv_backward = conv_operators("triton", _forward, _backward)
