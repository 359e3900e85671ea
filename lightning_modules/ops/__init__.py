"""Kernels of the Mamba block behind plain functions: the selective scan, the short causal convolution, add and norm.

Which backend runs is decided in `backend.py`; the `reference.py` of each sub-package is the definition the others are
tested against. Importing this package loads nothing; the first name used loads torch, the first call a backend.
"""

from importlib import import_module

_HOME = {
    "Linear": "dense",
    "MixerWeights": "mixer",
    "add_rms_norm": "norm.interface",
    "available_backends": "backend",
    "bidirectional_conv1d": "conv.interface",
    "bidirectional_scan": "scan.interface",
    "causal_conv1d": "conv.interface",
    "linear": "dense",
    "mix": "mixer",
    "selective_scan": "scan.interface",
    "use_backend": "backend",
    "why_not": "backend",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
