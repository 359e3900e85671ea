"""Matrix products on CPUs for which MKL has no fast path."""

import platform
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["linear"]

MIN_WORK = 2**24
"""Multiply-adds from which repacking the operands pays."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, through oneDNN where that is the faster library.

    torch's float32 products run on MKL, which gives processors of other makers than Intel its generic code: about half
    the speed of oneDNN, which the same torch contains (benchmarks/NOTES.md). The operands are repacked on each call, so
    there is no copy of the weights that could grow old. With gradients, under autocast, in compiled code and for small
    products it is torch's own function.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,).

    Returns:
        (..., out), equal to torch's up to the order of additions.
    """
    if not _is_for_onednn(x, weight):
        return F.linear(x, weight, bias)
    bias = None if bias is None else bias.detach().to_mkldnn()
    return F.linear(x.detach().to_mkldnn(), weight.detach().to_mkldnn(), bias).to_dense()


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and type(x) is Tensor
        and x.numel() * weight.shape[0] >= MIN_WORK
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and _mkl_is_slow()
    )


@cache
def _mkl_is_slow() -> bool:
    """Whether this is an x86 processor that is not Intel's, and torch has both libraries."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
