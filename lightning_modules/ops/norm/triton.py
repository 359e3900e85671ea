"""Residual sum and RMS norm on NVIDIA GPUs, compiled by triton: one pass over memory, as custom operators of torch."""

from typing import Any

import torch
from torch import Tensor

from lightning_modules.ops.context import Context
from lightning_modules.ops.launch import launch, multiprocessors
from lightning_modules.ops.norm.triton_kernels import norm_backward, norm_forward

__all__ = ["add_rms_norm"]

# Numbers that a program of the forward holds, a power of two.
_TILE = 4096
# Programs of the backward per multiprocessor; each sums up its own part of weight's gradient.
_PROGRAMS = 8


def add_rms_norm(hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `lightning_modules.ops.norm.interface.add_rms_norm`."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return _add_rms_norm(hidden, residual, weight, eps, dtype)[:2]


@torch.library.custom_op("lightning_modules::triton_add_rms_norm", mutates_args=())
def _add_rms_norm(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The normalised sum in `dtype`, the sum, and per row 1 / rms."""
    channels = hidden.shape[-1]
    rows = hidden.numel() // max(channels, 1)
    normed, total, scales = _add_rms_norm_shapes(hidden, residual, weight, eps, dtype)
    block = _block(channels)
    size = max(_TILE // block, 1)
    launch(
        norm_forward, (-(-rows // size),), hidden,
        hidden.contiguous(), None if residual is None else residual.contiguous(), weight.contiguous(),
        normed, total, scales, rows, channels, eps, BLOCK=block, ROWS=size, num_warps=4,
    )  # fmt: skip
    return normed, total, scales


@_add_rms_norm.register_fake
def _add_rms_norm_shapes(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    normed, total = hidden.new_empty(hidden.shape, dtype=dtype), hidden.new_empty(hidden.shape, dtype=torch.float32)
    return normed, total, total.new_empty(hidden.shape[:-1])


@torch.library.custom_op("lightning_modules::triton_add_rms_norm_backward", mutates_args=())
def _add_rms_norm_backward(
    grad_normed: Tensor, grad_total: Tensor, total: Tensor, scales: Tensor, weight: Tensor, hidden_dtype: torch.dtype,
    with_residual: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of hidden, weight and, if there is one, the residual."""
    channels = total.shape[-1]
    rows = total.numel() // max(channels, 1)
    programs = min(_PROGRAMS * multiprocessors(total.device), rows)
    grad_hidden = total.new_empty(total.shape, dtype=hidden_dtype)
    grad_residual = torch.empty_like(total) if with_residual else None
    sums = total.new_empty(programs, channels)
    block = _block(channels)
    each = -(-rows // max(programs, 1))
    launch(
        norm_backward, (programs,), total,
        grad_normed.contiguous(), grad_total.contiguous(), total, scales, weight.contiguous(),
        grad_hidden, grad_residual, sums, rows, channels, each, BLOCK=block, num_warps=1 if block <= 512 else 4,
    )  # fmt: skip
    results = [grad_hidden, sums.sum(0).to(weight.dtype)]
    return results if grad_residual is None else [*results, grad_residual]


@_add_rms_norm_backward.register_fake
def _add_rms_norm_backward_shapes(
    grad_normed: Tensor, grad_total: Tensor, total: Tensor, scales: Tensor, weight: Tensor, hidden_dtype: torch.dtype,
    with_residual: bool,
) -> list[Tensor]:  # fmt: skip
    results = [total.new_empty(total.shape, dtype=hidden_dtype), weight.new_empty(weight.shape)]
    return [*results, total.new_empty(total.shape)] if with_residual else results


def _remember(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, residual, weight, _, _ = inputs
    ctx.hidden_dtype, ctx.with_residual = hidden.dtype, residual is not None
    ctx.save_for_backward(output[1], output[2], weight)
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Context, grad_normed: Tensor | None, grad_total: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad_normed is None:  # see `lightning_modules.ops.norm.product`
        if grad_total is None:
            return None, None, None, None, None
        return grad_total.to(ctx.hidden_dtype), grad_total if ctx.with_residual else None, None, None, None
    if grad_total is None:
        grad_total = torch.zeros_like(ctx.saved_tensors[0])
    results = _add_rms_norm_backward(grad_normed, grad_total, *ctx.saved_tensors, ctx.hidden_dtype, ctx.with_residual)
    grad_hidden, grad_weight, *grad_residual = results
    return grad_hidden, grad_residual[0] if grad_residual else None, grad_weight, None, None


_add_rms_norm.register_autograd(_differentiate, setup_context=_remember)


def _block(channels: int) -> int:
    return max(1 << (channels - 1).bit_length(), 32)
