"""Errors of files, folders and downloads; command lines print the sentence."""

__all__ = ["HubError", "UnreachableError"]


class HubError(RuntimeError):
    """A checkpoint or download that cannot be used; the message names it and the remedy."""


class UnreachableError(HubError):
    """A file that is not in the cache while the Hub does not answer."""
