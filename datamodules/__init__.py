"""LightningDataModules of the zoo, and the reading of video beneath them."""

import importlib

_HOME = {
    "ActivityNet": "activitynet",
    "Breakfast": "breakfast",
    "COIN": "coin",
    "CaptionCSV": "caption_csv",
    "CaptionDataset": "retrieval",
    "ClipDataModule": "clips",
    "ClipDataset": "base",
    "DataError": "errors",
    "DecodeError": "video.opening",
    "DiDeMo": "didemo",
    "EpicKitchens100": "epic_kitchens",
    "EpicKitchensRetrieval": "epic_kitchens_retrieval",
    "ImageNet": "imagenet",
    "Kinetics": "kinetics",
    "LSMDC": "lsmdc",
    "LVU": "lvu",
    "MSRVTT": "msrvtt",
    "MSVD": "msvd",
    "PairCorpora": "pairs",
    "RetrievalDataModule": "retrieval",
    "SomethingSomethingV2": "ssv2",
    "VideoCSV": "video_csv",
    "VideoDataModule": "base",
    "VideoFolder": "video_folder",
    "VideoReader": "video.decode",
    "load_views": "video.views",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
