"""Callbacks and plugins of a training run; they take any LightningModule unless they say otherwise."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
