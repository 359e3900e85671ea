"""Generated data sets whose answers are known; ``python -m datamodules.synthetic`` writes the clips of the demo.

`motion` draws clips of moving shapes, `writing` makes files and a data set of them, and `kitchen` long videos in the
format of EPIC-KITCHENS.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datamodules.synthetic.kitchen import generate_kitchen as generate_kitchen
    from datamodules.synthetic.motion import CLASSES as CLASSES
    from datamodules.synthetic.motion import ClipSpec as ClipSpec
    from datamodules.synthetic.motion import clip_spec as clip_spec
    from datamodules.synthetic.motion import render as render
    from datamodules.synthetic.motion import render_clip as render_clip
    from datamodules.synthetic.motion import sample_spec as sample_spec
    from datamodules.synthetic.writing import generate as generate
    from datamodules.synthetic.writing import write_video as write_video

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
