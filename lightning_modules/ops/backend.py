"""Which implementation of the kernels runs.

Per device there is an ordered table of backends. Each says through `why_not`, in one sentence, why it cannot take a
call, or None. Left alone ("auto"), the first that can is taken, and the log says so once. A backend asked for by name,
with `use_backend` or the environment variable ZOO_SCAN_BACKEND, runs or raises with that sentence.

To add one: a file of its name in `scan/`, `conv/` and `norm/` with the functions of the `reference.py` there (or a line
in `_STAND_INS`), and its place in the tables below.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from lightning_modules.ops.self_check import defect

__all__ = ["BackendError", "available_backends", "select", "use_backend", "why_not"]

logger = logging.getLogger(__name__)

# Fastest first. "meta" stands for shape propagation without data, which needs only an operator's fake kernel. On a CPU
# triton runs step by step in its interpreter, for tests, and is never chosen; portable is for exported programs.
_TABLE = {
    "cpu": ("numba", "reference", "triton", "portable"),
    "cuda": ("triton", "mamba_ssm", "reference"),
    "meta": ("numba", "reference", "triton"),
}
_ANY_DEVICE = ("reference",)
_NAMES = ("numba", "triton", "mamba_ssm", "reference", "portable")
_KERNELS = ("scan", "conv", "norm")
# Whose kernel runs where a backend has none of its own.
_STAND_INS = {
    ("norm", "mamba_ssm"): "reference",
    ("conv", "portable"): "reference",
    ("norm", "portable"): "reference",
}
# Compiled on the machine by others; numba's look at themselves.
_CHECKED = ("triton", "mamba_ssm")
_VARIABLE = "ZOO_SCAN_BACKEND"

_forced: ContextVar[str | None] = ContextVar("forced_backend", default=None)
_modules: dict[tuple[str, str], ModuleType] = {}


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot run; the message says why and what to do."""


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every kernel inside the block on one backend; "auto" gives the choice back to the table.

    Stronger than ZOO_SCAN_BACKEND. Holds for the thread (or async task) that enters it. A compiled or exported function
    keeps the backend that it was traced with.

    Args:
        name: "auto" or the name of a backend.

    Raises:
        BackendError: there is no backend of that name. (Whether it can take a call is decided at the call.)
    """
    token = _forced.set(_checked(name, "use_backend"))
    try:
        yield
    finally:
        _forced.reset(token)


def available_backends(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> list[str]:
    """Names of the backends that can run on a device with inputs of a dtype, the one "auto" takes first."""
    device = torch.device(device).type
    return [name for name in _TABLE.get(device, _ANY_DEVICE) if why_not(name, device, dtype) is None]


def why_not(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> str | None:
    """One sentence saying why a backend cannot run there, or None if it can.

    Raises:
        BackendError: there is no backend of that name.
    """
    device = torch.device(device).type
    if name not in _NAMES:
        raise BackendError(f"There is no scan backend {name!r}; choose one of {', '.join(_NAMES)}.")
    if name not in _TABLE.get(device, _ANY_DEVICE):
        return f"The {name} backend does not run on {device} devices."
    try:
        kernels = _kernels(name)
    except ImportError as error:
        remedy = "install triton-windows" if (name, sys.platform) == ("triton", "win32") else "install what is missing"
        return f"The {name} backend cannot be imported ({error}); {remedy} or use another backend."
    reason = kernels["scan"].why_not(device, dtype)
    if reason is not None or name not in _CHECKED or device != "cuda":
        return reason
    return defect(name, kernels, _kernels("reference"), device)


def _kernels(name: str) -> dict[str, ModuleType]:
    """Import what a backend runs for each kernel."""
    for kernel in _KERNELS:
        if (kernel, name) not in _modules:
            file = _STAND_INS.get((kernel, name), name)
            _modules[kernel, name] = import_module(f"{__package__}.{kernel}.{file}")
    return {kernel: _modules[kernel, name] for kernel in _KERNELS}


def select(kernel: str, tensor: Tensor) -> ModuleType:
    """The module that will run a kernel ("scan", "conv" or "norm") on inputs like `tensor`.

    Raises:
        BackendError: the backend asked for by name cannot run.
    """
    device = tensor.device.type
    choose = _traced_choice if torch.compiler.is_compiling() else _choice
    name = choose(device, tensor.dtype)
    return _modules[kernel, name]


def _choice(device: str, dtype: torch.dtype) -> str:
    name = _forced.get() or _checked(os.environ.get(_VARIABLE, "auto"), _VARIABLE)
    if name == "auto":
        return _automatic(device, dtype)
    reason = why_not(name, device, dtype)
    if reason is not None:
        raise BackendError(reason)
    return name


@torch.compiler.assume_constant_result
def _traced_choice(device: str, dtype: torch.dtype) -> str:
    """The choice is made while tracing and becomes part of the graph: imports and a trial run cannot be traced."""
    return _choice(device, dtype)


@cache
def _automatic(device: str, dtype: torch.dtype) -> str:
    passed_over: list[str] = []
    for name in _TABLE.get(device, _ANY_DEVICE):
        reason = why_not(name, device, dtype)
        if reason is None:
            slow = name == "reference" and device not in ("cpu", "meta")
            # Falling back costs a factor of ten and more: that has to be seen.
            level = logging.WARNING if passed_over or slow else logging.INFO
            pace = ", token by token, about 100 times slower than compiled kernels" if slow else ""
            said = f"The {name} backend runs the scans of {dtype} on {device}{pace}."
            logger.log(level, " ".join([said, *passed_over]))
            return name
        passed_over.append(reason)
    raise AssertionError("the reference backend runs everywhere")


def _checked(name: str, source: str) -> str:
    if name != "auto" and name not in _NAMES:
        raise BackendError(f"{source} names the backend {name!r}; choose one of auto, {', '.join(_NAMES)}.")
    return name
