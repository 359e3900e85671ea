"""What the zoo raises for a caller's mistake; the command line prints its sentence instead of a traceback."""

import difflib
from collections.abc import Iterable

__all__ = ["UnknownModelError", "ZooError", "hint"]


class ZooError(Exception):
    """A request the zoo cannot serve; the message names what is wrong and how to fix it."""


class UnknownModelError(ZooError, KeyError):
    """No model of that name; the message suggests the nearest ones."""

    def __str__(self) -> str:
        # KeyError would print the repr of its argument: a sentence in quotation marks.
        return str(self.args[0])


def hint(name: str, known: Iterable[str], otherwise: str) -> str:
    """The end of a sentence about an unknown name: the nearest known one, or `otherwise` where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else otherwise
