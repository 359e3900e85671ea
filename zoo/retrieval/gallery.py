"""A page with search results as pictures that play: one file, which refers to the videos and needs nothing else."""

import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from datamodules.storage.files import is_url
from datamodules.video.frames import open_video
from datamodules.video.opening import DecodeError
from zoo.files import PAGES, check_target, written
from zoo.printable import clock
from zoo.retrieval.table import Hit

__all__ = ["write_gallery"]

FRAMES, HEIGHT_PX, FRAME_MS = 8, 160, 250

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; color: #1d2733; background: #fff; margin: 2rem; }}
h2 {{ font-size: 1.15rem; margin: 2rem 0 .6rem; }}
.hits {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: 1rem; }}
figure {{ margin: 0; }}
video, .gone {{ display: block; width: 100%; aspect-ratio: 4/3; background: #eef1f5; border-radius: 4px; }}
figcaption {{ overflow-wrap: anywhere; font-size: .85rem; color: #6b7785; padding-top: .25rem; }}
a {{ color: #2f6fb2; }}
</style>
</head>
<body>
{sections}
<script>
// Hovering plays the stretch. A file that the browser cannot play keeps its picture, which moves by itself.
for (const video of document.querySelectorAll("video")) {{
  const start = Number(video.dataset.start);
  video.addEventListener("mouseenter", () => video.play().catch(() => video.load()));
  video.addEventListener("mouseleave", () => {{ video.pause(); video.currentTime = start; }});
}}
</script>
</body>
</html>
"""


def write_gallery(page: str | os.PathLike, results: Sequence[tuple[str, Sequence[Hit]]]) -> Path:
    """Write the page; a file that is there is replaced when the page is complete.

    A result is a ``<video>`` of the file with the stretch as media fragment, ``a.mp4#t=12.5,20``. Its poster is an
    animated WebP of the stretch inside the page, so that formats which a browser does not play are seen too.

    Args:
        page: the .html file.
        results: texts with what was found for them; paths absolute or relative to the current folder.

    Raises:
        ZooError: the page cannot be written.
    """
    page = Path(page)
    check_target(page, PAGES)
    sections = "\n".join(_section(query, hits, page.absolute().parent) for query, hits in results)
    title = html.escape(", ".join(query for query, _ in results))
    with written(page, PAGES) as beside:
        beside.write_text(_PAGE.format(title=title, sections=sections), encoding="utf-8", errors="replace")
    return page


def _section(query: str, hits: Sequence[Hit], folder: Path) -> str:
    figures = "\n".join(_figure(hit, folder) for hit in hits)
    return f'<section>\n<h2>{html.escape(query)}</h2>\n<div class="hits">\n{figures}\n</div>\n</section>'


def _figure(hit: Hit, folder: Path) -> str:
    name = html.escape(os.fsencode(os.path.basename(hit.path)).decode(errors="replace"))
    address = html.escape(f"{_address(hit.path, folder)}#t={hit.start:.3f},{hit.end:.3f}")
    times = f"{clock(hit.start)} – {clock(hit.end)}"  # noqa: RUF001
    caption = f'<figcaption><a href="{address}">{name}</a><br>{times}, score {hit.score:.3f}</figcaption>'
    try:
        poster = base64.b64encode(_moving_picture(hit)).decode()
    except DecodeError:
        return f'<figure>\n<div class="gone">This file cannot be read any more.</div>\n{caption}\n</figure>'
    return (
        f'<figure>\n<video controls muted playsinline preload="none" data-start="{hit.start:.3f}" src="{address}" '
        f'poster="data:image/webp;base64,{poster}"></video>\n{caption}\n</figure>'
    )


def _address(path: str, folder: Path) -> str:
    """Relative to the page's folder, so that the page can be moved together with the videos; URLs stay."""
    if is_url(path):
        return path
    try:
        return quote(os.fsencode(Path(os.path.relpath(path, folder)).as_posix()))
    except ValueError:  # another drive
        return Path(path).absolute().as_uri()


def _moving_picture(hit: Hit) -> bytes:
    """Frames of the stretch, evenly spaced, as animated WebP."""
    with open_video(hit.path) as reader:
        times = hit.start + (np.arange(FRAMES) + 0.5) * (hit.end - hit.start) / FRAMES
        positions = np.unique(np.searchsorted(reader.pts_seconds, times, side="right") - 1).clip(0)
        frames = reader.read(positions, short_side=HEIGHT_PX)
    pictures = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]
    file = io.BytesIO()
    pictures[0].save(
        file, "WEBP", save_all=True, append_images=pictures[1:], duration=FRAME_MS, loop=0, quality=60, method=4
    )
    return file.getvalue()
