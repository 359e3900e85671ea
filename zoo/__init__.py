"""A zoo of Mamba video models: find one, build it, load its weights, use it.

Names are resolved on first use, so that ``import zoo`` and ``zoo list`` start without torch.
"""

import lazy_loader

from zoo.shadows import refuse_shadows

refuse_shadows()
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__.remove("__version__")  # for `import *`, which takes no other name with underscores either
