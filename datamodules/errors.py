"""The error of the data side."""

__all__ = ["DataError"]


class DataError(ValueError):
    """A data set that cannot be used as it is; the message names the file or folder at fault and the remedy."""
