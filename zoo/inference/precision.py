"""The numbers that a model computes with: float32, or bfloat16 in its products, which is faster on some processors."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from zoo.errors import ZooError

if TYPE_CHECKING:
    import torch

__all__ = ["PRECISIONS", "check_precision", "inference", "multiplies_bfloat16"]

PRECISIONS = ("fp32", "bf16")
"""float32; or bfloat16 for the products of matrices, while scans, norms and sums stay in float32."""

_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}


def check_precision(precision: str, device: "torch.device") -> None:
    """Refuse what is none of `PRECISIONS`, with a `ZooError`; warn where a known one is slow on the model's device."""
    from datamodules.storage.processes import cpu_info

    if precision not in PRECISIONS:
        raise ZooError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}.")
    if precision == "bf16" and device.type == "cpu" and not multiplies_bfloat16(cpu_info()):
        warnings.warn("This CPU has no instructions for bfloat16 (avx512_bf16, AMX), so bf16 is slower here than fp32; "
                      "omit it.", stacklevel=3)  # fmt: skip


@contextmanager
def inference(precision: str, device: "torch.device") -> Iterator[None]:
    """Inside the block a model on a device computes in a precision, without gradients."""
    import torch

    with torch.inference_mode():
        if precision == "fp32":  # leaves alone what a caller may have chosen
            yield
            return
        with torch.autocast(device.type, torch.bfloat16):
            yield


def multiplies_bfloat16(about_cpu: str) -> bool:
    """Whether the content of /proc/cpuinfo names instructions that do; elsewhere torch uses none."""
    lines = (line.split() for line in about_cpu.splitlines() if line.startswith(("flags", "Features")))
    return not _INSTRUCTIONS.isdisjoint(next(lines, []))
