"""Kernels of the Mamba block behind plain functions: the selective scan, the short causal convolution, add and norm.

Which backend runs is decided in `backend.py`; the `reference.py` of each sub-package is the definition the others are
tested against. Importing this package loads nothing; the first name used loads torch, the first call a backend.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
