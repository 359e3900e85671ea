"""What the modules raise for a caller's mistake; command lines print its sentence instead of a traceback."""

__all__ = ["ModelError"]


class ModelError(ValueError):
    """A configuration, checkpoint or input that does not fit the model; the message names it and the remedy."""
