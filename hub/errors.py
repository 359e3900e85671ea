"""What the hub raises when a file, folder or download is at fault; command lines print its sentence."""

__all__ = ["HubError"]


class HubError(RuntimeError):
    """A checkpoint or download that cannot be used; the message names it and the remedy."""
