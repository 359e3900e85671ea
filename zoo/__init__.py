"""A zoo of Mamba video models: find one, build it, load its weights, use it.

Names are resolved on first use, so that ``import zoo`` and ``zoo list`` start without torch.
"""

import importlib
import importlib.util
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.app.page import web_app as web_app
    from zoo.build import create as create
    from zoo.build import initialise as initialise
    from zoo.build import load as load
    from zoo.deploy.export import Exported as Exported
    from zoo.deploy.export import export as export
    from zoo.errors import UnknownModelError as UnknownModelError
    from zoo.errors import ZooError as ZooError
    from zoo.inference.explain import Explanation as Explanation
    from zoo.inference.explain import explain as explain
    from zoo.inference.features import VideoFeatures as VideoFeatures
    from zoo.inference.live import Moment as Moment
    from zoo.inference.live import live as live
    from zoo.inference.long_videos import Segment as Segment
    from zoo.inference.long_videos import Timeline as Timeline
    from zoo.inference.long_videos import timeline as timeline
    from zoo.inference.predict import extract_features as extract_features
    from zoo.inference.predict import predict as predict
    from zoo.inference.predict import predict_value as predict_value
    from zoo.inference.predictor import VideoPredictor as VideoPredictor
    from zoo.registry import Entry as Entry
    from zoo.registry import Weights as Weights
    from zoo.registry import info as info
    from zoo.registry import list_models as list_models
    from zoo.registry import register as register
    from zoo.retrieval.embedder import VideoEmbedder as VideoEmbedder
    from zoo.retrieval.search import index as index
    from zoo.retrieval.search import search as search
    from zoo.retrieval.table import Index as Index
    from zoo.share import convert as convert
    from zoo.share import push as push

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
    "Exported": "deploy.export",
    "export": "deploy.export",
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
