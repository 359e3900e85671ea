"""Kernels of the Mamba block behind plain functions: the selective scan, the short causal convolution, add and norm.

Which backend runs is decided in `backend.py`; the `reference.py` of each sub-package is the definition the others are
tested against. Importing this package loads nothing; the first name used loads torch, the first call a backend.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_modules.ops.backend import available_backends as available_backends
    from lightning_modules.ops.backend import use_backend as use_backend
    from lightning_modules.ops.backend import why_not as why_not
    from lightning_modules.ops.conv.interface import bidirectional_conv1d as bidirectional_conv1d
    from lightning_modules.ops.conv.interface import causal_conv1d as causal_conv1d
    from lightning_modules.ops.dense import Linear as Linear
    from lightning_modules.ops.dense import linear as linear
    from lightning_modules.ops.mixer import MixerWeights as MixerWeights
    from lightning_modules.ops.mixer import mix as mix
    from lightning_modules.ops.norm.interface import add_rms_norm as add_rms_norm
    from lightning_modules.ops.scan.interface import bidirectional_scan as bidirectional_scan
    from lightning_modules.ops.scan.interface import selective_scan as selective_scan

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


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
