"""Files that the zoo writes: targets are checked before long work, and files are written completely or not at all."""

import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from zoo.errors import ZooError

__all__ = ["PAGES", "PICTURES", "UNFINISHED", "check_folder", "check_target", "staged", "written"]

PAGES = (".html", ".htm")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".pdf", ".svg", ".svgz", ".eps", ".ps")
"""Formats that matplotlib writes; the ending chooses."""

UNFINISHED = ".unfinished"
"""Ending of the hidden file that becomes the target when it is complete."""

_KINDS = (
    (stat.S_ISREG, "a file"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def check_target(path: str | os.PathLike[str], endings: Sequence[str] = ()) -> Path:
    """Return the file that would be written for `path`, with links followed.

    Args:
        path: of a regular file, or of nothing yet; folders above it may be missing.
        endings: those that the file may have, in lower case; empty for any.

    Raises:
        ZooError: it cannot be written, or has another ending.
    """
    if endings and not os.fspath(path).lower().endswith(tuple(endings)):
        raise ZooError(f"{path} has none of the endings {', '.join(endings)}; name a file with one of them.")
    return _existing_or_new(path, stat.S_ISREG, "a file")


def check_folder(path: str | os.PathLike[str]) -> Path:
    """Return the path of a folder to write into, if it is one or can be made.

    Raises:
        ZooError: it is something else, or cannot be written.
    """
    _existing_or_new(path, stat.S_ISDIR, "a folder")
    return Path(path)


@contextmanager
def written(path: str | os.PathLike[str], endings: Sequence[str] = ()) -> Iterator[Path]:
    """Give a name to write to; it becomes `path` when the block has run, and is removed where the block fails.

    Missing folders are made, a link is followed, and a file that is replaced keeps its permissions.

    Args:
        path: see `check_target`.
        endings: see `check_target`.

    Raises:
        ZooError: the file cannot be written, for example because the disk is full; the old file is unchanged.
    """
    target = check_target(path, endings)
    beside = _hidden(target)
    try:
        with _told(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            beside.open("xb").close()
            mode = (target if target.exists() else beside).stat().st_mode
            yield beside
            beside.chmod(mode)  # some writers make files for the owner alone
            beside.replace(target)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


@contextmanager
def staged(path: str | os.PathLike[str], endings: Sequence[str] = ()) -> Iterator[Path]:
    """Give a path of the target's name in a hidden folder beside it, for a file that may have others beside it.

    When the block has run, the other files of the folder move beside the target and the file becomes `path`, last. The
    folder is removed. The others need names that no older file has, so that this one is whole at any time.

    Args:
        path: see `check_target`.
        endings: see `check_target`.

    Raises:
        ZooError: a file cannot be written, for example because the disk is full; the old file is unchanged.
    """
    target = check_target(path, endings)
    folder = _hidden(target)
    try:
        with _told(path):
            folder.mkdir(parents=True)
            file = folder / target.name
            yield file
            if target.exists():
                file.chmod(target.stat().st_mode)
            for part in sorted(folder.iterdir(), key=lambda part: part == file):
                part.replace(target.parent / part.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _hidden(target: Path) -> Path:
    """A new name beside a target; short, since that of the target may be as long as names can be."""
    return target.with_name(f".{target.name[:40]}.{uuid.uuid4().hex[:8]}{UNFINISHED}")


@contextmanager
def _told(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise `ZooError` with one sentence where writing fails."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ZooError(
            f"{path} cannot be written ({_reason(error)}); make room on that disk, or write to another place."
        ) from error


def _existing_or_new(path: str | os.PathLike[str], is_wanted: Callable[[int], bool], wanted: str) -> Path:
    """Return the target of `path`, if it is of the wanted kind or can be made."""
    try:
        target = Path(os.path.realpath(path))
        there = target
        while not there.exists() and there != there.parent:
            there = there.parent
        mode = there.stat().st_mode
    except (OSError, ValueError) as error:  # a name that is too long, a loop of links, a null character
        raise ZooError(f"{path} cannot be written ({_reason(error)}); name another place.") from error
    if there != target and not stat.S_ISDIR(mode):
        raise ZooError(f"{path} cannot be written, since {there} is no folder; name another place.")
    if there == target and not is_wanted(mode):
        kind = next((kind for is_kind, kind in _KINDS if is_kind(mode)), "something else")
        raise ZooError(f"{path} is {kind} and is not replaced; name {wanted}.")
    folder = there if stat.S_ISDIR(mode) else there.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ZooError(f"{path} cannot be written, since {folder} is write-protected; name another place.")
    return target


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
