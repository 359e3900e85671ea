"""LightningModules of the zoo: a network plus its loss, metrics and optimiser."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
