"""What the zoo raises for a caller's mistake; the command line prints its sentence instead of a traceback."""

__all__ = ["UnknownModelError", "ZooError"]


class ZooError(Exception):
    """A request the zoo cannot serve; the message names what is wrong and what would mend it."""


class UnknownModelError(ZooError, KeyError):
    """No model of that name; the message suggests the nearest ones."""

    def __str__(self) -> str:
        # KeyError would print the repr of its argument: a sentence in quotation marks.
        return str(self.args[0])
