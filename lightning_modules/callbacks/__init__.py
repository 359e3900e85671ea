"""Callbacks and plugins of a training run; they take any LightningModule unless they say otherwise."""

import importlib

_HOME = {
    "AtomicCheckpointIO": "checkpoints",
    "Curves": "curves",
    "EMA": "ema",
    "EpicSubmission": "submission",
    "FiniteLoss": "finite",
    "LastCheckpoint": "last",
    "LogInterval": "interval",
    "ModelCheckpoint": "best",
    "Report": "report",
    "RichProgressBar": "progress",
    "Summary": "summary",
    "Throughput": "throughput",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
