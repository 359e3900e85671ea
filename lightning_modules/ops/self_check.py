"""Whether the kernels of a backend that is compiled on the machine are right there: compared with `reference`.

Once per machine and version: what was found right or wrong is kept in the user's cache, under the names of the GPU and
its driver, of torch and the package with the kernels, and a hash of this package's own. Failures to run are not kept,
since installing a compiler fixes them; running out of memory, and a CUDA graph that is being captured, say nothing.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from lightning_modules.files import written
from lightning_modules.ops.compiler import CACHE, provide_compiler, what_is_missing
from lightning_modules.ops.scan.direction import Direction

__all__ = ["defect"]

# More than two chunks of the scan, and channels and a length that fill no block.
_BATCH, _LENGTH, _CHANNELS, _STATES, _WIDTH = 2, 70, 40, 16, 4
# Of each tensor's largest number; kernels in float32 differ from float64 by 1e-6 and less.
_LIMIT = 1e-4

_Modules = Mapping[str, ModuleType]  # by the names of the kernels: scan, conv and norm

_verdicts: dict[tuple[str, str], str | None] = {}


def defect(name: str, kernels: _Modules, reference: _Modules, device: str) -> str | None:
    """One sentence saying what is wrong with a backend on this machine, or None.

    Args:
        name: that of the backend.
        kernels: its modules.
        reference: those that define what is right.
        device: "cuda"; tests have others.
    """
    if (name, device) not in _verdicts:
        if device == "cuda":
            provide_compiler()
        if device == "cuda" and torch.cuda.is_current_stream_capturing():
            return None
        key = _key(name, device)
        kept = _read()
        if key not in kept:
            try:
                with _disable_current_modes(), torch.inference_mode(False), torch.enable_grad():
                    kept[key] = _compare(kernels, reference, device)
            except torch.OutOfMemoryError:
                return None
            except Exception as error:  # whatever a compiler or a driver may raise
                reason = what_is_missing(error) or f"{type(error).__name__}: {error}".partition("\n")[0]
                _verdicts[name, device] = f"The {name} backend fails on this machine ({reason}); use another backend."
                return _verdicts[name, device]
            _write(key, kept[key])
        wrong = kept[key]
        _verdicts[name, device] = wrong and (
            f"The {name} backend gives wrong results on this machine ({wrong}); use another backend."
        )
    return _verdicts[name, device]


def _compare(kernels: _Modules, reference: _Modules, device: str) -> str | None:
    """Run every kernel forwards and backwards; name the first result that is not the definition's in float64."""
    for kernel, (function, inputs) in _cases().items():
        results = [
            _run(function, modules[kernel], {k: v.to(on, dtype) for k, v in inputs.items()})
            for modules, on, dtype in ((kernels, device, torch.float32), (reference, "cpu", torch.float64))
        ]
        for what, got in results[0].items():
            wanted = results[1][what]
            distance = (got.double().cpu() - wanted).abs().max() / wanted.abs().max()
            if not distance <= _LIMIT:  # NaN is none
                return f"{what} of the {kernel} is off by {distance:.1e} of its largest number"
    return None


def _run(function: Callable, module: ModuleType, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    inputs = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    results = function(module, **inputs)
    weights = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape) for y in results]
    gradients = torch.autograd.grad(results, list(inputs.values()), weights)
    found = {f"result {number}": y.detach() for number, y in enumerate(results, start=1)}
    return found | {f"the gradient of {name}": g for name, g in zip(inputs, gradients, strict=True)}


def _cases() -> dict[str, tuple[Callable, dict[str, Tensor]]]:
    """A function of each kernel with its inputs, of the sizes that a trained model has."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, device="cpu")

    one, two = (
        {
            "u": normal(_BATCH, _LENGTH, _CHANNELS),
            "delta": normal(_BATCH, _LENGTH, _CHANNELS) - 2,
            "A": -normal(_CHANNELS, _STATES).abs() * 4,
            "B": normal(_BATCH, _LENGTH, _STATES),
            "C": normal(_BATCH, _LENGTH, _STATES),
            "D": normal(_CHANNELS),
            "delta_bias": normal(_CHANNELS),
        }
        for _ in range(2)
    )
    x = normal(_BATCH, _LENGTH, _CHANNELS)
    return {
        "scan": (_scan, one | {f"{name}_b": tensor for name, tensor in two.items()} | {"z": x}),
        "conv": (
            lambda module, **tensors: module.bidirectional_conv1d(**tensors),
            {"x": x, "weight": normal(_CHANNELS, _WIDTH), "bias": normal(_CHANNELS),
             "weight_b": normal(_CHANNELS, _WIDTH), "bias_b": normal(_CHANNELS)},
        ),
        "norm": (
            lambda module, **tensors: module.add_rms_norm(**tensors, eps=1e-5),
            {"hidden": x, "residual": normal(*x.shape), "weight": normal(_CHANNELS)},
        ),
    }  # fmt: skip


def _scan(module: ModuleType, *, z: Tensor, **tensors: Tensor) -> tuple[Tensor]:
    directions = tuple(Direction(*(tensors[f"{field}{end}"] for field in Direction._fields)) for end in ("", "_b"))
    return (module.scan(directions, z, True, False),)


def _key(name: str, device: str) -> str:
    """What the verdict depends on."""
    gpu = [torch.cuda.get_device_name(), _driver()] if device == "cuda" else [device]
    release = getattr(sys.modules.get(name), "__version__", "unknown")
    return ", ".join([*gpu, f"torch {torch.__version__}", f"{name} {release}", f"kernels {_hash()}"])


def _driver() -> str:
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").partition("\n")[0]
    except OSError:
        return f"CUDA {torch.version.cuda}"


@cache
def _hash() -> str:
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _file() -> Path:
    return CACHE / "kernels.json"


def _read() -> dict[str, str | None]:
    try:
        content = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(key: str, verdict: str | None) -> None:
    with suppress(OSError):  # next time it is found again
        _file().parent.mkdir(parents=True, exist_ok=True)
        with written(_file()) as beside:
            beside.write_text(json.dumps(_read() | {key: verdict}, indent=1), encoding="utf-8")
