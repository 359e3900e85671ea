"""Paths in a table: relative to the folder that holds it where they lie below that, else absolute."""

import os
from collections.abc import Sequence

from datamodules.storage.files import is_url, resolve

__all__ = ["Place", "absolute", "below"]


class Place:
    """Paths as a table at some place has them.

    One that is moved together with its videos stays valid. At a URL, all are absolute.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        folder = os.fspath(folder)
        self.parent = None if is_url(folder) else os.path.dirname(os.path.abspath(folder))

    def stored(self, path: str) -> str:
        """The path as the table has it."""
        if is_url(path) or self.parent is None:
            return path
        inside = below(path, [self.parent])
        return (path[len(self.parent) :].lstrip(os.sep) if inside else path).replace(os.sep, "/")

    def source(self, path: str) -> str:
        """A path of a model, which differs from a name."""
        stored = self.stored(path)
        return stored if os.path.isabs(stored) else f"./{stored}"

    def found(self, stored: str) -> str:
        """The path that the table means."""
        return stored if is_url(stored) else os.path.normpath(os.path.join(self.parent or "", stored))


def absolute(source: str | os.PathLike[str]) -> str:
    """A path or URL in the form that listings have."""
    source = resolve(source)
    return source if is_url(source) else os.path.abspath(source)


def below(path: str, roots: Sequence[str]) -> bool:
    """Whether a path is one of the roots, lies below one, or is a member of one."""
    return any(path == root or path.startswith((root.rstrip(os.sep) + os.sep, f"{root}!")) for root in roots)
