"""Floating point operations of a forward pass, counted from shapes alone: no data, no time, no memory."""

from collections import Counter
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.ops.backend import use_backend
from lightning_modules.ops.scan.direction import directions_of

__all__ = ["count_flops", "scan_flops"]


def scan_flops(batch: int, length: int, channels: int, states: int, directions: int = 1) -> int:
    """Operations of the selective scan (Mamba, arXiv 2312.00752, section 3.3), each of exp and softplus as one.

    Per token, channel and state: dt A, exp, times h, dt u times B, plus, times C, plus: 7. Per token and channel: the
    bias and softplus of dt, dt u, D u, plus: 5.
    """
    return directions * batch * length * channels * (7 * states + 5)


def count_flops(module: nn.Module, *inputs: Tensor) -> Counter[str]:
    """Operations of ``module(*inputs)``, by the name of the submodule they happen in; "" holds all of them.

    As in torch's counter, an addition and a multiplication are two operations, and of element-wise work only the
    convolutions and scans of our kernels count. The numbers of papers are mostly multiply-adds: half of these.

    Args:
        module: stays as it is; its parameters are not touched.
        inputs: on any device, also "meta"; only shape and dtype matter.
    """
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    empty = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    # The numba operators know their shapes without data; the reference would take the sequence step by step.
    with torch.no_grad(), use_backend("numba"), torch.compiler.set_stance("force_eager"):
        import lightning_modules.ops.conv.numba
        import lightning_modules.ops.scan.numba  # noqa: F401

        ours = torch.ops.lightning_modules
        formulas = {
            ours.numba_selective_scan: _numba_scan,
            ours.numba_conv: lambda x, weight, *_, **__: 2 * prod(x) * weight[1],
            ours.numba_conv_pair: lambda x, weight, *_, **__: 2 * 2 * prod(x) * weight[1],
        }
        with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
            functional_call(module, empty, tuple(tensor.to("meta") for tensor in inputs))
    root = type(module).__name__
    counts: Counter[str] = Counter()
    for name, by_operator in counter.get_flop_counts().items():
        if name == root or name.startswith(f"{root}."):
            counts[name[len(root) + 1 :]] = sum(by_operator.values())
    return counts


def _numba_scan(*inputs: Any, **kwargs: object) -> int:
    *shapes, z = inputs[:-3]  # in place of tensors; behind them are options
    directions: tuple[Any, ...] = directions_of(*shapes)
    u, _, A, *_ = directions[0]
    batch, length, channels = u
    gate = 0 if z is None else 2 * prod(z)  # SiLU, product
    return scan_flops(batch, length, channels, A[1], len(directions)) + (len(directions) - 1) * prod(u) + gate
