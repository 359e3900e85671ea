"""LightningDataModules of the zoo, and the reading of video beneath them."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datamodules.activitynet import ActivityNet as ActivityNet
    from datamodules.base import ClipDataset as ClipDataset
    from datamodules.base import VideoDataModule as VideoDataModule
    from datamodules.breakfast import Breakfast as Breakfast
    from datamodules.caption_csv import CaptionCSV as CaptionCSV
    from datamodules.clips import ClipDataModule as ClipDataModule
    from datamodules.coin import COIN as COIN
    from datamodules.didemo import DiDeMo as DiDeMo
    from datamodules.epic_kitchens import EpicKitchens100 as EpicKitchens100
    from datamodules.epic_kitchens_retrieval import EpicKitchensRetrieval as EpicKitchensRetrieval
    from datamodules.errors import DataError as DataError
    from datamodules.imagenet import ImageNet as ImageNet
    from datamodules.kinetics import Kinetics as Kinetics
    from datamodules.lsmdc import LSMDC as LSMDC
    from datamodules.lvu import LVU as LVU
    from datamodules.msrvtt import MSRVTT as MSRVTT
    from datamodules.msvd import MSVD as MSVD
    from datamodules.pairs import PairCorpora as PairCorpora
    from datamodules.retrieval import CaptionDataset as CaptionDataset
    from datamodules.retrieval import RetrievalDataModule as RetrievalDataModule
    from datamodules.ssv2 import SomethingSomethingV2 as SomethingSomethingV2
    from datamodules.video.decode import VideoReader as VideoReader
    from datamodules.video.opening import DecodeError as DecodeError
    from datamodules.video.views import load_views as load_views
    from datamodules.video_csv import VideoCSV as VideoCSV
    from datamodules.video_folder import VideoFolder as VideoFolder

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
