"""Plain networks, each readable beside its paper; importable without Lightning."""

import importlib

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


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
