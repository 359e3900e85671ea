"""Generated data sets whose answers are known; ``python -m datamodules.synthetic`` writes the clips of the demo.

`motion` draws clips of moving shapes, `writing` makes files and a data set of them, and `kitchen` long videos in the
format of EPIC-KITCHENS.
"""

import importlib

_HOME = {
    "CLASSES": "motion",
    "ClipSpec": "motion",
    "clip_spec": "motion",
    "generate": "writing",
    "generate_kitchen": "kitchen",
    "render": "motion",
    "render_clip": "motion",
    "sample_spec": "motion",
    "write_video": "writing",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
