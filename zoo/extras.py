"""Packages that an extra of this project brings: whether they are installed is asked before any work."""

import importlib.util

from zoo.errors import ZooError

__all__ = ["need"]


def need(package: str, extra: str, sentence: str) -> None:
    """Raise `ZooError` where a package is not installed; it is not imported here.

    Args:
        package: its name in Python.
        extra: the extra that brings it.
        sentence: what needs it, and its name for people: ``The page needs Gradio``.
    """
    if importlib.util.find_spec(package) is None:
        raise ZooError(f"{sentence}; install it: pip install 'video-mamba-zoo[{extra}]'.")
