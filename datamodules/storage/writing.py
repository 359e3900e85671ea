"""Files and folders that are written completely or not at all: made beside their place, and moved to it at the end."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["written", "written_folder"]


@contextmanager
def written(path: Path, *, locked: bool = False) -> Iterator[Path]:
    """Give a name to write to; that file becomes `path` when the block has run, and is removed where the block fails.

    What was at `path` before is replaced then. A block that writes no file, or removes it, changes nothing.

    Args:
        path: in a folder that exists.
        locked: no other process writes the same file, so the remains of a killed one are overwritten.
    """
    beside = path.with_name(f".{path.name}.part" if locked else f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        if beside.exists():
            beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes `path` when the block has run, and is removed where the block fails.

    Missing folders above it are made. What was at `path` before is replaced then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}.unfinished-", dir=path.parent))
    try:
        beside.chmod(0o777 & ~_umask())  # mkdtemp's folders are private
        yield beside
        _move_into_place(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _move_into_place(beside: Path, path: Path) -> None:
    if not path.exists() or not any(path.iterdir()):
        os.replace(beside, path)  # an empty folder gives way
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent))
    os.replace(path, old)
    os.replace(beside, path)
    shutil.rmtree(old)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
