"""Write folders completely or not at all."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["written"]


@contextmanager
def written(folder: Path) -> Iterator[Path]:
    """Give a new folder to write to; it takes the place of `folder` when the block has run.

    Folders above it are made. Where the block fails, the new folder is removed and `folder` stays as it was.

    Args:
        folder: absolute, with links followed; a folder, or nothing yet. The caller makes sure it may be replaced.

    Raises:
        OSError: the system refuses; `folder` is as before.
    """
    beside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    try:
        beside.mkdir(parents=True)
        yield beside
        _take_place(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _take_place(beside: Path, target: Path) -> None:
    """Rename `beside` to `target`, which keeps its old content if that fails."""
    if not target.exists():
        beside.rename(target)
        return
    old = target.with_name(f"{beside.name}-old")
    target.rename(old)
    try:
        beside.rename(target)
    finally:
        if not target.exists():
            old.rename(target)
    shutil.rmtree(old, ignore_errors=True)
