"""The version of the zoo that is installed."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("video-mamba-zoo")
