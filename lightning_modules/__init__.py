"""LightningModules of the zoo: a network plus its loss, metrics and optimiser."""

import importlib

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


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
