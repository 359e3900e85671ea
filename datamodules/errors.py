"""The error of the data side."""

from collections.abc import Sequence

__all__ = ["DataError", "some"]


class DataError(ValueError):
    """A data set that cannot be used as it is; the message names the file or folder at fault and the remedy."""


def some(names: Sequence[str]) -> str:
    """The first three, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
