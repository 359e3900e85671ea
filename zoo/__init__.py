"""A zoo of Mamba video models: find one, build it, load its weights, use it.

Names are resolved on first use, so that ``import zoo`` and ``zoo list`` start without torch.
"""

import lazy_loader

from zoo.shadows import refuse_shadows

refuse_shadows()
_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("video-mamba-zoo")
    return _public(name)
