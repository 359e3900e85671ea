"""Indexing tar shards that others wrote, and checking shards against their index."""

import hashlib
import itertools
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datamodules.annotations.captions import are_texts
from datamodules.annotations.lists import is_number, parse_json
from datamodules.errors import DataError
from datamodules.shards.reading import FORMAT, INDEX_SUFFIX, read_index
from datamodules.shards.writing import Written, summary, write_index
from datamodules.storage.members import open_tar
from datamodules.video.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES

__all__ = ["check_shards", "index_shards"]

_MEDIA = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)

_LONGEST_TEXT = 2**24
"""Bytes of a sample's class or captions."""


def index_shards(
    paths: Sequence[str | os.PathLike[str]],
    split: str,
    *,
    class_names: list[str] | None = None,
    on_files: Callable[[int, int], None] | None = None,
) -> Written:
    """Write the index of shards that others made, in their folder.

    A sample's class is its member .cls, its captions are its .txt, or else "caption" or "captions" in its .json.

    Args:
        paths: the tars, local and in one folder.
        split: the split that they are.
        class_names: where they have classes.
        on_files: called with the number of finished shards and of all.

    Raises:
        DataError: a tar cannot be read or has no samples, or samples with neither class nor captions, or both pictures
            and videos; or there is an index already.
    """
    folders = {Path(path).parent for path in paths}
    if len(folders) != 1:
        raise DataError("An index is for the shards of one folder; name some, and all in the same.")
    index = folders.pop() / f"{split}{INDEX_SUFFIX}"
    if index.exists():
        raise DataError(f"{index} exists; remove it first to make it anew.")
    shards, left_out, kinds = [], 0, set()
    for number, path in enumerate(map(Path, paths)):
        if on_files is not None:
            on_files(number, len(paths))
        line, strange, found = _line_of(path)
        shards.append(line)
        left_out += strange
        kinds |= found
    fields = [{key for key in ("label", "captions") if key in shard} for shard in shards]
    if any(found != fields[0] for found in fields) or not fields[0]:
        raise DataError(f"{paths[0]}: the samples need a class each (.cls), or captions (.txt, or caption in .json).")
    if len(kinds) != 1:
        raise DataError(f"{paths[0]}: the shards hold both pictures and videos; make an index for each kind.")
    about = {"fields": sorted(fields[0]), "media": kinds.pop(), "class_names": class_names}
    write_index(index, {**FORMAT, "split": split, **about, "left_out": left_out}, shards)
    if on_files is not None:
        on_files(len(paths), len(paths))
    return summary(index, kept=0)


def _line_of(path: Path) -> tuple[dict[str, Any], int, set[str]]:
    """Return a shard's line, the number of its samples without media or without label, and the kinds of the others."""
    from webdataset.tariterators import base_plus_ext

    line: dict[str, Any] = {"shard": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path),
                            "offset": [], "size": [], "name": []}  # fmt: skip
    strange, kinds = 0, set()
    try:
        with open(path, "rb") as file, open_tar(file) as tar:
            # Links and devices hold nothing, and the parts of a sparse file are not as long as it.
            plain = (info for info in tar if info.isreg() and not info.issparse())
            infos = (info for info in plain if base_plus_ext(info.name)[0] is not None)
            for key, members in itertools.groupby(infos, lambda info: base_plus_ext(info.name)[0]):
                parts = {str(base_plus_ext(info.name)[1]).lower(): info for info in members}
                media = next((info for part, info in parts.items() if f".{part}" in _MEDIA), None)
                said = _said(path, tar, parts)
                if media is None or not said:
                    strange += 1
                    continue
                suffix = os.path.splitext(media.name)[1].lower()
                kinds.add("image" if suffix in IMAGE_SUFFIXES else "video")
                values = {"offset": media.offset_data, "size": media.size, "name": f"{key}{suffix}", **said}
                for field, value in values.items():
                    line.setdefault(field, []).append(value)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path} cannot be read as a tar shard ({error}); copy or download it again.") from error
    lengths = {len(value) for value in line.values() if isinstance(value, list)}
    if lengths == {0} or len(lengths) != 1:
        raise DataError(f"{path}: its samples do not all have a class, or all captions; write it again.")
    return line, strange, kinds


def _said(path: Path, tar: tarfile.TarFile, parts: dict[str, tarfile.TarInfo]) -> dict[str, Any]:
    """The class or the captions of a sample."""
    text = {}
    for part in ("cls", "txt", "json"):
        if part in parts:
            if parts[part].size > _LONGEST_TEXT:
                raise tarfile.ReadError(f"{parts[part].name} is {parts[part].size} bytes long")
            content = tar.extractfile(parts[part])
            assert content is not None  # a regular file, as all of the parts are
            text[part] = content.read().decode()
    if "cls" in text:
        if not is_number(text["cls"].strip()):
            raise tarfile.ReadError(f"{parts['cls'].name} is {text['cls'][:80]!r}, not a number")
        return {"label": int(text["cls"])}
    if "txt" in text:
        return {"captions": [line for line in text["txt"].splitlines() if line.strip()] or [""]}
    values = parse_json(text["json"], f"{path}: {parts['json'].name}") if "json" in text else None
    captions = values.get("captions", values.get("caption")) if isinstance(values, dict) else None
    captions = [captions] if isinstance(captions, str) else captions
    return {"captions": captions} if are_texts(captions) else {}


def check_shards(root: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """Read all shards of a folder, and compare them with the digests in its indices.

    Returns:
        Names of the shards that are as they should be, and of those that are missing or damaged.

    Raises:
        DataError: there is no index.
    """
    indices = sorted(Path(root).glob(f"*{INDEX_SUFFIX}"))
    if not indices:
        raise DataError(f"{root} has no index of shards; is it the folder that zoo shard wrote?")
    good: list[str] = []
    bad: list[str] = []
    for index in indices:
        folder = read_index(str(index))
        for name, digest in zip(folder.names, folder.digests, strict=True):
            path = index.parent / name
            (good if path.is_file() and _sha256(path) == digest else bad).append(path.name)
    return good, bad


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
