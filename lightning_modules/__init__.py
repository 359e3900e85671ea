"""LightningModules of the zoo: a network plus its loss, metrics and optimiser."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_modules.base import BaseModule as BaseModule
    from lightning_modules.tasks.action_classifier import ActionClassifier as ActionClassifier
    from lightning_modules.tasks.classification import VideoClassifier as VideoClassifier
    from lightning_modules.tasks.dual_encoder import DualEncoder as DualEncoder
    from lightning_modules.tasks.mambavl import ActionRecognition as ActionRecognition
    from lightning_modules.tasks.masked_pretraining import MaskedPretraining as MaskedPretraining
    from lightning_modules.tasks.regression import VideoRegressor as VideoRegressor
    from lightning_modules.tasks.retrieval import TextVideoRetrieval as TextVideoRetrieval
    from lightning_modules.tasks.self_distillation import SelfDistillation as SelfDistillation
    from lightning_modules.tasks.video_text import VideoTextPretraining as VideoTextPretraining
    from lightning_modules.training.optim import Optim as Optim

_HOME = {
    "ActionClassifier": "tasks.action_classifier",
    "ActionRecognition": "tasks.mambavl",
    "BaseModule": "base",
    "DualEncoder": "tasks.dual_encoder",
    "MaskedPretraining": "tasks.masked_pretraining",
    "Optim": "training.optim",
    "SelfDistillation": "tasks.self_distillation",
    "TextVideoRetrieval": "tasks.retrieval",
    "VideoClassifier": "tasks.classification",
    "VideoRegressor": "tasks.regression",
    "VideoTextPretraining": "tasks.video_text",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
