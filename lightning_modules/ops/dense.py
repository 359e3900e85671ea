"""Linear layers, on oneDNN where torch's own choice for float32 on the CPU is slow.

On x86 torch multiplies float32 matrices with MKL, which takes a generic path on CPUs that are not Intel's; oneDNN,
which torch brings along and TorchInductor calls, is about twice as fast there (`benchmarks/NOTES.md`).
"""

import math
import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

__all__ = ["Linear", "linear", "only_multiplies"]


class Linear(nn.Linear):
    """`torch.nn.Linear`, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in features) -> (..., out features)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias, as `torch.nn.functional.linear`, to the rounding of another order of summation.

    Args:
        x: (..., in features).
        weight: (out features, in features).
        bias: (out features,).

    Returns:
        (..., out features).
    """
    if _plain_inference(x, weight, bias) and _onednn_is_faster():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def only_multiplies(layer: nn.Module) -> bool:
    """Whether a layer is x weight^T and nothing else, so that its weight can stand for it.

    Adapters, quantisation and the like put another class in its place; hooks want the call.
    """
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return type(layer) is Linear and layer.bias is None and not any(hooks)


def _plain_inference(*tensors: Tensor | None) -> bool:
    """Whether oneDNN's operator, which knows neither gradients nor autocast, can take a call: float32 on the CPU.

    A compiler chooses for itself.
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    given = [tensor for tensor in tensors if tensor is not None]
    # Exact types: a subclass (quantised, sharded, traced weights) brings its own linear.
    return all(
        type(tensor) in (Tensor, nn.Parameter) and tensor.dtype == torch.float32 and tensor.device.type == "cpu"
        for tensor in given
    ) and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given))


@cache
def _onednn_is_faster() -> bool:
    """By the CPU's maker, not by a stopwatch: equal calls have to give equal digits in every process."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()) or _maker() != "AuthenticAMD":
        return False
    x = torch.ones(2, 3, dtype=torch.float32, device="cpu")
    try:
        return torch.ops.mkldnn._linear_pointwise(x, x, None, "none", [], "").tolist() == [[3, 3], [3, 3]]
    except (AttributeError, RuntimeError, TypeError):  # the operator is not part of torch's public interface
        return False


def _operations(x_shape: Sequence[int], weight_shape: Sequence[int], *_: object, **__: object) -> int:
    """Two for each multiplication with its addition."""
    return 2 * math.prod(x_shape) * weight_shape[0]


# Torch's counter of operations knows its public operators only.
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_operations)


def _maker() -> str:
    """The CPU's vendor as it names itself, for example "AuthenticAMD"; empty where that is not known."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return next((maker for maker in ("AuthenticAMD", "GenuineIntel") if maker in platform.processor()), "")
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
