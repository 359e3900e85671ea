"""Generated data sets whose answers are known; ``python -m datamodules.synthetic`` writes the clips of the demo.

`motion` draws clips of moving shapes, `writing` makes files and a data set of them, and `kitchen` long videos in the
format of EPIC-KITCHENS.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
