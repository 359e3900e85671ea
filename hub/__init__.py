"""Weights as files and on the Hugging Face Hub: folders, downloads, conversions.

Knows configs and files, not model names.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
