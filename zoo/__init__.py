"""A zoo of Mamba video models: find one, build it, load its weights, use it.

Names are resolved on first use, so that ``import zoo`` and ``zoo list`` start without torch.
"""

import importlib

_HOME = {
    "Entry": "registry",
    "Weights": "registry",
    "info": "registry",
    "list_models": "registry",
    "register": "registry",
    "UnknownModelError": "errors",
    "ZooError": "errors",
    "create": "build",
    "initialise": "build",
    "load": "build",
    "convert": "share",
    "push": "share",
    "extract_features": "inference.predict",
    "predict": "inference.predict",
    "predict_value": "inference.predict",
    "Segment": "inference.long_videos",
    "Timeline": "inference.long_videos",
    "timeline": "inference.long_videos",
    "Index": "retrieval.vector_index",
    "index": "retrieval.search",
    "search": "retrieval.search",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
