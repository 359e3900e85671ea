"""Plain networks, each readable beside its paper; importable without Lightning."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_modules.nets.avion import AvionTower as AvionTower
    from lightning_modules.nets.bimamba import BiMamba as BiMamba
    from lightning_modules.nets.clip_teacher import ClipTeacher as ClipTeacher
    from lightning_modules.nets.mambavl import MambaVL as MambaVL
    from lightning_modules.nets.mambavl_joint import JointMambaVL as JointMambaVL
    from lightning_modules.nets.masked_videomamba import MaskedVideoMamba as MaskedVideoMamba
    from lightning_modules.nets.muse import Muse as Muse
    from lightning_modules.nets.timemamba import TimeMamba as TimeMamba
    from lightning_modules.nets.video_text import VideoTextNet as VideoTextNet
    from lightning_modules.nets.videomamba import VideoMamba as VideoMamba
    from lightning_modules.nets.vivim import ViViM as ViViM

_HOME = {
    "VideoMamba": "videomamba",
    "MaskedVideoMamba": "masked_videomamba",
    "BiMamba": "bimamba",
    "ClipTeacher": "clip_teacher",
    "AvionTower": "avion",
    "JointMambaVL": "mambavl_joint",
    "MambaVL": "mambavl",
    "Muse": "muse",
    "TimeMamba": "timemamba",
    "ViViM": "vivim",
    "VideoTextNet": "video_text",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
