"""The short depthwise convolution in plain torch: the definition that the fast backends are tested against."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["bidirectional_conv1d", "causal_conv1d"]


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """See `lightning_modules.ops.conv.interface.causal_conv1d`; weight is (channels, width) here."""
    length, width = x.shape[1], weight.shape[1]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    padded = F.pad(x.to(dtype), (0, 0, 0, width - 1) if reverse else (0, 0, width - 1, 0))
    y = torch.zeros_like(x, dtype=dtype) if bias is None else bias.to(dtype).expand(x.shape)
    for tap in range(width):
        # The last tap meets the token itself; reversed, tap k meets the token width-1-k places later.
        start = width - 1 - tap if reverse else tap
        y = y + padded[:, start : start + length] * weight[:, tap].to(dtype)
    return (F.silu(y) if silu else y).to(x.dtype)


def bidirectional_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, weight_b: Tensor, bias_b: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `lightning_modules.ops.conv.interface.bidirectional_conv1d`."""
    return (
        causal_conv1d(x, weight, bias, silu=True, reverse=False),
        causal_conv1d(x, weight_b, bias_b, silu=True, reverse=True),
    )
