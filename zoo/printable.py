"""Make text from outside (names of files and classes, answers of servers) safe to print, and format times."""

import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["acts_on_terminal", "clock", "printable", "printable_warnings"]

# Control characters, format characters such as the bidirectional overrides, lone surrogates, and separators of lines.
_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Joiners are part of the spelling of Persian, of Indic scripts and of emoji, and change nothing else on the line.
_JOINERS = "\u200c\u200d"
_FIRST_BYTE, _LAST_BYTE = "\udc80", "\udcff"  # how Python keeps the bytes of names that are not valid UTF-8


def printable(text: str) -> str:
    r"""Return `text` with what a terminal acts on, or cannot encode, as backslash escapes; it stays on one line.

    An escape character becomes ``\x1b``, a newline ``\n``, a right-to-left override ``\u202e``, and a byte of a file
    name that is not valid UTF-8 ``\xff``.
    """
    if text.isprintable():
        return text
    return "".join(_escaped(char) if acts_on_terminal(char) else char for char in text)


def clock(seconds: float, *, tenths: bool = True) -> str:
    """Return a time as players show it: 0:07.5, 12:34.0, 1:02:03.0; without `tenths` cut to 0:07, 12:34, 1:02:03."""
    minutes, rest = divmod(round(10 * seconds) if tenths else 10 * int(seconds), 600)
    hours, minutes = divmod(minutes, 60)
    shown = f"{rest // 10:02}.{rest % 10}" if tenths else f"{rest // 10:02}"
    return f"{hours}:{minutes:02}:{shown}" if hours else f"{minutes}:{shown}"


def acts_on_terminal(char: str) -> bool:
    """Whether a character changes the terminal or the characters around it, or has no encoding."""
    return unicodedata.category(char) in _CATEGORIES and char not in _JOINERS


@contextmanager
def printable_warnings() -> Iterator[None]:
    """Escape the lines of every warning that is shown while the block runs."""
    shown_by = warnings.showwarning

    def show(message: Warning | str, *rest: Any, **options: Any) -> None:
        text = str(message)
        safe = "\n".join(map(printable, text.split("\n")))
        shown_by(message if safe == text else safe, *rest, **options)

    warnings.showwarning = show
    try:
        yield
    finally:
        if warnings.showwarning is show:
            warnings.showwarning = shown_by


def _escaped(char: str) -> str:
    if _FIRST_BYTE <= char <= _LAST_BYTE:
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()
