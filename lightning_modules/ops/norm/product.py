"""The product of a norm's result with a weight, of which training keeps the norm's input alone."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_modules.ops.call import Call
from lightning_modules.ops.context import Context
from lightning_modules.ops.norm.interface import add_rms_norm

__all__ = ["normed_product"]


def normed_product(normed: Tensor, total: Tensor, norm_weight: Tensor, eps: float, weight: Tensor) -> Tensor:
    """normed weight^T. The gradients go to `total` and `norm_weight`, from which the backward pass norms again.

    Args:
        normed: (B, L, in), the first result of `add_rms_norm` with `norm_weight` and `eps`. Gets no gradient.
        total: (B, L, in), its second result.
        norm_weight: (in,).
        eps: see `add_rms_norm`.
        weight: (out, in).

    Returns:
        (B, L, out).
    """
    return _NormedProduct.apply(Call.of("norm", norm_weight), eps, normed.detach(), total, norm_weight, weight)


class _NormedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context, call: Call, eps: float, normed: Tensor, total: Tensor, norm_weight: Tensor, weight: Tensor
    ) -> Tensor:
        ctx.call, ctx.eps = call, eps
        ctx.save_for_backward(total, norm_weight, weight)
        with call.again():
            return call.product(normed, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        total, norm_weight, weight = ctx.saved_tensors
        needs, needs_weight = ctx.needs_input_grad[3:5], ctx.needs_input_grad[5]
        given = [tensor.detach().requires_grad_(need) for tensor, need in zip((total, norm_weight), needs, strict=True)]
        wanted = [tensor for tensor in given if tensor.requires_grad]
        results: Iterator[Tensor] = iter(())
        with ctx.call.again(), torch.enable_grad():
            normed, _ = add_rms_norm(given[0], None, given[1], ctx.eps)
            if wanted:
                of_normed = ctx.call.input_gradient(grad, weight.detach()).to(normed.dtype)
                results = iter(torch.autograd.grad(normed, wanted, of_normed))
            of_weight = ctx.call.weight_gradient(grad, normed.detach(), weight) if needs_weight else None
        of_total, of_norm_weight = (next(results) if need else None for need in needs)
        return None, None, None, of_total, of_norm_weight, of_weight
