"""Locate the videos that annotation files name."""

import os
import warnings
from collections.abc import Collection, Sequence

from datamodules.errors import DataError, some
from datamodules.storage.files import Folders, join
from datamodules.video.suffixes import VIDEO_SUFFIXES

__all__ = ["find_videos", "locate_videos", "plain_name"]

_DEPTH = 3
"""Folders below the one of the videos that are searched: LSMDC has one per film, the original MSR-VTT one per split."""


def plain_name(name: str) -> str:
    """The name without the suffix of a video, if it has one; ids may contain dots."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in VIDEO_SUFFIXES else name


def find_videos(folders: Folders, top: str, names: Collection[str]) -> dict[str, list[str]]:
    """Find videos of these names under `top`; names may lack the suffix, and folders of frames have none.

    The nearest to `top` come first, up to three folders deep.
    """
    wanted = set(names)
    found: dict[str, list[str]] = {}
    level = [top]
    for _ in range(_DEPTH + 1):
        below = []
        for folder in level:
            for name, is_folder in sorted(folders.entries(folder).items()):
                plain = name if is_folder else plain_name(name)
                if name in wanted:
                    found.setdefault(name, []).append(join(folder, name))
                elif is_folder and not name.startswith("."):
                    below.append(join(folder, name))
                elif plain in wanted and plain != name:
                    found.setdefault(plain, []).append(join(folder, name))
        level = below
    return found


def locate_videos(
    folders: Folders,
    root: str,
    names: Sequence[str],
    *,
    candidates: Sequence[Sequence[str]] | None = None,
    videos: str | None = None,
    suffix: str = ".mp4",
    search: bool = True,
    what: str,
    source: str,
) -> list[str]:
    """Return the paths of videos; for missing ones, where they are expected.

    Args:
        folders: the file system.
        root: folder of the data set.
        names: one for each video, with or without suffix.
        candidates: possible names of each video's file, with or without suffix, most likely first; None is `names`.
        videos: folder that is searched, see `find_videos`; None is root/videos, or root without such a folder.
        suffix: of files that are not there.
        search: False takes the files to be right in that folder, None being root.
        what: the videos, for errors.
        source: where to get them, for errors.

    Raises:
        DataError: all of them are missing.
    """
    top = join(root, "videos" if videos is None else videos)
    if videos is None and not (search and folders.is_folder(top)):
        top = root
    expected = [join(top, name if plain_name(name) != name else f"{name}{suffix}") for name in names]
    if not search:
        return expected
    candidates = [(name,) for name in names] if candidates is None else candidates
    found = find_videos(folders, top, {name for group in candidates for name in group})
    places = [next((found[name] for name in group if name in found), []) for group in candidates]
    for number, path in enumerate(expected):
        if not places[number] and folders.has(path):  # given with folders
            places[number] = [path]
    doubles = [" and ".join(paths) for paths in places if len(paths) > 1]
    if doubles:
        warnings.warn(
            f"{len(doubles)} of the {len(names)} {what} are in several places, of which the first is taken: "
            f"{some(doubles)}; name the right folder with data.videos."
        )
    if not any(places):
        raise DataError(
            f"None of the {len(names)} {what} is in {top} or up to {_DEPTH} folders below it ({some(expected)}); name "
            f"their folder with data.videos, or get them from {source}."
        )
    return [paths[0] if paths else path for paths, path in zip(places, expected, strict=True)]
