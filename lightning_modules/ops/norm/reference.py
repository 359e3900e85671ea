"""Residual sum and RMS norm in plain torch: the definition that the fast backends are tested against."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["add_rms_norm"]


def add_rms_norm(hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `lightning_modules.ops.norm.interface.add_rms_norm`."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    residual = hidden.to(wide) if residual is None else residual + hidden
    # As if the norm were one operator: the view adds up the gradients of its parts before the stream's own joins them.
    normed = F.rms_norm(residual.view_as(residual).to(weight.dtype), weight.shape, weight, eps)
    return normed, residual
