"""A page with search results that play: one file, which refers to the videos and needs nothing else."""

import base64
import os
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from datamodules.storage.files import is_url, split
from datamodules.video.frames import open_video
from datamodules.video.opening import DecodeError
from lightning_modules.report.clips import webp
from zoo.files import PAGES, check_target, written
from zoo.printable import clock
from zoo.retrieval.search import made_with
from zoo.retrieval.table import Hit, Index

__all__ = ["data_address", "moving_picture", "write_gallery"]

FRAMES, HEIGHT_PX = 8, 160


def write_gallery(page: str | os.PathLike[str], index: Index, results: Sequence[tuple[str, Sequence[Hit]]]) -> Path:
    """Write the page; a file that is there is replaced when the page is complete.

    A result is a ``<video>`` of the file with the stretch as media fragment, ``a.mp4#t=12.5,20``, or an ``<img>`` of a
    GIF. A frame of the stretch is its poster; an animated WebP inside the page plays in its place what a browser does
    not play, and what it cannot fetch, such as ``s3://``.

    Args:
        page: the .html file.
        index: what was searched.
        results: texts or clips with what was found for them; paths absolute or relative to the current folder.

    Raises:
        ZooError: the page cannot be written.
    """
    page = Path(page)
    check_target(page, PAGES)
    folders = _folders([hit.path for _, hits in results for hit in hits])
    model = made_with(index)
    values = {
        "index": _shown(index.folder),
        "stretches": len(index),
        "model": _shown(model["source"] or (model["config"] or {}).get("class_path", "")),
        "queries": [
            {"text": _shown(query), "hits": [_values(hit, folders[hit.path], page.absolute().parent) for hit in hits]}
            for query, hits in results
        ],
        "count": _count,
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("gallery.html").read_text(encoding="utf-8"))
    with written(page, PAGES) as beside:
        beside.write_text(template.render(values), encoding="utf-8")
    return page


def moving_picture(hit: Hit) -> bytes:
    """Frames of the stretch, evenly spaced, as animated WebP.

    Raises:
        DecodeError: the file cannot be read any more.
    """
    return webp(_pictures(hit))


def _values(hit: Hit, folder: str, page_folder: Path) -> dict[str, Any]:
    """What the template says of a result."""
    try:
        pictures = _pictures(hit)
    except DecodeError:
        pictures = []
    address = _address(hit.path, page_folder)
    is_elsewhere = is_url(hit.path) and not hit.path.startswith(("http://", "https://"))
    is_gif = hit.path.lower().endswith(".gif") and not is_elsewhere
    return {
        "kind": "elsewhere" if is_elsewhere else "gif" if is_gif else "video",
        "name": _shown(split(hit.path)[1]),
        "folder": folder,
        "address": address if is_gif else f"{address}#t={hit.start:.3f},{hit.end:.3f}",
        "start": f"{hit.start:.3f}",
        "end": f"{hit.end:.3f}",
        "times": f"{clock(hit.start)} – {clock(hit.end)}",  # noqa: RUF001
        "score": f"{hit.score:.3f}",
        "still": data_address(webp(pictures[len(pictures) // 2 :][:1])) if pictures else None,
        "moving": data_address(webp(pictures)) if pictures and not is_gif else None,
    }


def _folders(paths: Sequence[str]) -> dict[str, str]:
    """For each path what tells its file from others of that name: the folders below those that all of them are in."""
    alike: dict[str, list[str]] = {}
    for path in dict.fromkeys(paths):
        alike.setdefault(split(path)[1], []).append(path)
    found = dict.fromkeys(paths, "")
    for same in alike.values():
        if len(same) > 1:
            parts = [PurePosixPath(Path(split(path)[0]).as_posix()).parts for path in same]
            levels = zip(*parts, strict=False)
            common = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
            common -= common > 0 and any(len(own) == common for own in parts)
            found |= {path: _shown("/".join(own[common:])) for path, own in zip(same, parts, strict=True)}
    return found


def _count(number: int, name: str) -> str:
    plural = f"{name}es" if name.endswith("ch") else f"{name}s"
    return f"{number:,} {name if number == 1 else plural}"


def _shown(text: str) -> str:
    """Valid Unicode; bytes of a file name that are not become question marks."""
    return os.fsencode(text).decode(errors="replace")


def _address(path: str, folder: Path) -> str:
    """Relative to the page's folder, so that the page can be moved together with the videos; URLs stay."""
    if is_url(path):
        return _shown(path)
    try:
        return quote(os.fsencode(Path(os.path.relpath(path, folder)).as_posix()))
    except ValueError:  # another drive
        return Path(path).absolute().as_uri()


def _pictures(hit: Hit) -> list[Image.Image]:
    with open_video(hit.path) as reader:
        times = hit.start + (np.arange(FRAMES) + 0.5) * (hit.end - hit.start) / FRAMES
        positions = np.unique(np.searchsorted(reader.pts_seconds, times, side="right") - 1).clip(0)
        frames = reader.read(positions, short_side=HEIGHT_PX)
    return [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]


def data_address(picture: bytes) -> str:
    """Address of a WebP that holds the picture itself."""
    return f"data:image/webp;base64,{base64.b64encode(picture).decode()}"
