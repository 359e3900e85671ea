"""A zoo of Mamba video models: find one, build it, load its weights, use it.

Names are resolved on first use, so that ``import zoo`` and ``zoo list`` start without torch.
"""

import importlib
import importlib.util
import os

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
    "Explanation": "inference.explain",
    "explain": "inference.explain",
    "Moment": "inference.live",
    "live": "inference.live",
    "Segment": "inference.long_videos",
    "Timeline": "inference.long_videos",
    "timeline": "inference.long_videos",
    "Index": "retrieval.table",
    "VideoEmbedder": "retrieval.embedder",
    "VideoFeatures": "inference.features",
    "VideoPredictor": "inference.predictor",
    "index": "retrieval.search",
    "search": "retrieval.search",
    "web_app": "app.page",
}
__all__ = list(_HOME)


def _refuse_shadows() -> None:
    """Raise `ImportError` where another file or folder is found under the name of one of our packages."""
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for name in ("hub", "datamodules", "lightning_modules"):
        try:
            spec = importlib.util.find_spec(name)
        except ValueError:  # put into sys.modules by hand
            continue
        # A package has folders, a module a file.
        folders = [] if spec is None else [*(spec.submodule_search_locations or ()), spec.origin]
        found = next(filter(None, folders), None)
        if found and os.path.realpath(found) != os.path.realpath(os.path.join(ours, name)):
            raise ImportError(f"{found} hides the package {name!r}, which zoo needs; rename that file or folder, or "
                              "start Python elsewhere.", name=name, path=found)  # fmt: skip


_refuse_shadows()


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("video-mamba-zoo")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
