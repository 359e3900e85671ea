"""Errors for a caller's mistake; the command line prints the sentence instead of a traceback."""

import difflib
from collections.abc import Iterable, Mapping

__all__ = ["UnknownModelError", "UnreadableVideo", "ZooError", "cut", "hint", "shown"]


class ZooError(Exception):
    """A request the zoo cannot serve; the message names what is wrong and how to fix it."""


class UnknownModelError(ZooError, KeyError):
    """No model of that name; the message suggests the nearest ones."""

    def __str__(self) -> str:
        """Return the message: KeyError would give its repr, a sentence in quotation marks."""
        return str(self.args[0])


class UnreadableVideo(UserWarning):
    """One of several files cannot be read and is skipped."""


def hint(name: str, known: Iterable[str], otherwise: str, written: Mapping[str, str] | None = None) -> str:
    """The end of a sentence about an unknown name: the nearest known one, or `otherwise` where none is near.

    `written` says how known names are written where that differs.
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {(written or {}).get(near[0], near[0])!r}?" if near else otherwise


def shown(value: object) -> str:
    """A value as messages quote it."""
    try:
        return cut(repr(value))
    except ValueError:  # an integer of more digits than Python prints
        return "a number of thousands of digits"


def cut(text: str, length: int = 300) -> str:
    """A text of at most `length` characters."""
    return text if len(text) <= length else f"{text[:length]} ..."
