"""Callbacks and plugins of a training run; they take any LightningModule unless they say otherwise."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_modules.callbacks.best import ModelCheckpoint as ModelCheckpoint
    from lightning_modules.callbacks.checkpoints import AtomicCheckpointIO as AtomicCheckpointIO
    from lightning_modules.callbacks.curves import Curves as Curves
    from lightning_modules.callbacks.ema import EMA as EMA
    from lightning_modules.callbacks.finite import FiniteLoss as FiniteLoss
    from lightning_modules.callbacks.interval import LogInterval as LogInterval
    from lightning_modules.callbacks.last import LastCheckpoint as LastCheckpoint
    from lightning_modules.callbacks.progress import RichProgressBar as RichProgressBar
    from lightning_modules.callbacks.report import Report as Report
    from lightning_modules.callbacks.submission import EpicSubmission as EpicSubmission
    from lightning_modules.callbacks.summary import Summary as Summary
    from lightning_modules.callbacks.throughput import Throughput as Throughput

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


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
