"""Residual sum and RMS norm in plain torch: the definition that the fast backends are tested against."""

from torch import Tensor
from torch.nn import functional as F

__all__ = ["add_rms_norm"]


def add_rms_norm(hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `lightning_modules.ops.norm.interface.add_rms_norm`."""
    residual = hidden.float() if residual is None else residual + hidden
    return F.rms_norm(residual.to(weight.dtype), weight.shape, weight, eps), residual
