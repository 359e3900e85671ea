"""Find the videos behind paths from the command line or from arguments of functions."""

import os
from collections.abc import Sequence

from zoo.errors import ZooError

__all__ = ["find_videos", "refuse_empty"]


_DEEPEST = 32
"""Folders inside each other behind a URL; a server could make up more for ever."""


def refuse_empty(paths: Sequence[str | os.PathLike[str]]) -> None:
    """Refuse empty paths, which come from unset variables of scripts and would mean the current folder.

    Raises:
        ZooError: one is empty.
    """
    if not all(map(os.fspath, paths)):
        raise ZooError("A path is empty; name a video or a folder.")


def find_videos(paths: Sequence[str], *, urls: bool = False) -> list[str]:
    """Return files as they are, and for each folder its videos at any depth, sorted; each path once.

    Hidden files and folders are skipped, links are followed.

    Args:
        paths: files of any kind, and folders.
        urls: take those behind URLs too, beside local ones.

    Raises:
        ZooError: a path does not exist, or none of the folders holds a video.
    """
    from datamodules.video.suffixes import VIDEO_SUFFIXES

    found: dict[str, None] = {}
    for path in paths:
        if urls and "://" in path:
            found |= dict.fromkeys(_behind(path, VIDEO_SUFFIXES))
            continue
        if "://" in path or not (os.path.isfile(path) or os.path.isdir(path)):
            raise ZooError(f"There is no file or folder {path}; name local videos, or folders that hold some.")
        found |= dict.fromkeys([path] if os.path.isfile(path) else _below(path, VIDEO_SUFFIXES))
    if not found:
        raise ZooError(f"{', '.join(paths)} holds no videos (files ending in {', '.join(VIDEO_SUFFIXES)}).")
    return list(found)


def _behind(url: str, suffixes: Sequence[str]) -> list[str]:
    """The file behind a URL, or the videos of a folder there."""
    from datamodules.errors import DataError
    from datamodules.storage.files import Folders, join, status

    folders, found = Folders(), []
    is_video = url.partition("?")[0].lower().endswith(tuple(suffixes))  # signed addresses end in a query
    if not is_video:
        waiting = [url]
        try:
            while waiting:
                folder = waiting.pop()
                with folders.kept():
                    found += [join(folder, name) for name in folders.files(folder, suffixes)]
                    if folder.count("/") < url.count("/") + _DEEPEST:
                        waiting += [join(folder, name) for name in folders.subfolders(folder)]
        except DataError as error:
            reason = getattr(error.__cause__, "strerror", None) or "no reason given"
            raise ZooError(f"{url} cannot be listed ({reason}); check the address and your access.") from error
    if found:
        return sorted(found)
    try:
        status(url)
    except OSError as error:
        reason = error.strerror or "there is none"
        raise ZooError(f"There is no file or folder {url} ({reason}); check the address and your access.") from error
    return [url] if is_video else []


def _below(root: str, suffixes: Sequence[str]) -> list[str]:
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above would never end
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        videos = (n for n in names if not n.startswith(".") and os.path.splitext(n)[1].lower() in suffixes)
        found += [os.path.join(folder, name) for name in videos]
    return sorted(found)
