"""The short convolution of the published causal-conv1d package, which mamba-ssm builds on; see `scan/mamba_ssm.py`."""

import torch
from causal_conv1d import causal_conv1d_fn
from torch import Tensor

__all__ = ["bidirectional_conv1d", "causal_conv1d"]


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """See `lightning_modules.ops.conv.interface.causal_conv1d`; the package knows widths 2 to 4."""
    if x.numel() == 0:
        return torch.zeros_like(x)
    x = x.transpose(1, 2)
    x = x.flip(2).contiguous() if reverse else x.contiguous()
    y = causal_conv1d_fn(x, weight, bias, activation="silu" if silu else None)
    return (y.flip(2) if reverse else y).transpose(1, 2)


def bidirectional_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, weight_b: Tensor, bias_b: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `lightning_modules.ops.conv.interface.bidirectional_conv1d`."""
    return causal_conv1d(x, weight, bias, True, False), causal_conv1d(x, weight_b, bias_b, True, True)
