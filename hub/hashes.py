"""Hashes of files, as the Hub and our own folders record them."""

import hashlib
from pathlib import Path

from hub.errors import HubError

__all__ = ["check_sha256", "matches_etag", "sha256_of"]


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str, remedy: str = "delete it and fetch it again") -> None:
    """Raise `HubError` where a file is not the one of a recorded hash."""
    found = sha256_of(path)
    if found != expected.lower():
        raise HubError(f"{path} is not the recorded file, so it is not loaded (its SHA-256 is {found[:12]}..., not "
                       f"{expected[:12].lower()}...); {remedy}.")  # fmt: skip


def matches_etag(path: Path, etag: str) -> bool:
    """Whether a file has the content that the Hub's etag names; an etag of another kind tells nothing and passes.

    The etag of a large file (LFS) is its SHA-256. That of a file in git is its blob id, the SHA-1 of a header and the
    content; mirrors that keep no git name it by the SHA-1 of the content alone.
    """
    if len(etag) == 64:
        return sha256_of(path) == etag.lower()
    if len(etag) == 40:
        content = path.read_bytes()
        blob = b"blob %d\0" % len(content) + content
        return etag.lower() in (hashlib.sha1(blob).hexdigest(), hashlib.sha1(content).hexdigest())
    return True
