"""Residual sum and RMS norm on the CPU, in plain torch: for the backward pass the sum is kept, and nothing else."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lightning_modules.ops.context import Context
from lightning_modules.ops.norm import reference

__all__ = ["add_rms_norm"]


def add_rms_norm(hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `lightning_modules.ops.norm.interface.add_rms_norm`."""
    if torch.compiler.is_compiling():
        return reference.add_rms_norm(hidden, residual, weight, eps)
    total = hidden.float() if residual is None else residual + hidden
    return _Normed.apply(total, weight, eps), total


class _Normed(torch.autograd.Function):
    """torch's keeps a second tensor of this size: what is multiplied by the weight."""

    @staticmethod
    def forward(ctx: Context, total: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.eps = eps
        ctx.save_for_backward(total, weight)
        return F.rms_norm(total.to(weight.dtype), weight.shape, weight, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        total, weight = ctx.saved_tensors
        channels = total.shape[-1]
        scale = torch.rsqrt(total.square().mean(-1, keepdim=True) + ctx.eps)
        unit, grad = total * scale, grad.float()
        of_weight = (grad * unit).view(-1, channels).sum(0)
        grad = grad * weight
        # The norm takes out of a token's gradient what lies along the token itself.
        along = (grad * unit).mean(-1, keepdim=True)
        return (grad - unit * along).mul_(scale), of_weight.to(weight.dtype), None
