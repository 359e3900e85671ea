"""Features of long videos, extracted once: a row of a table for each stretch of time, with a vector of a VideoMamba.

    video     |----------------------------------|
    windows   [--------]                             `window` seconds long, a new one every `stride` seconds
                  [--------]
                      [--------]  ...

A row has `path`, `start` and `end` (the first and last moment in seconds that the vector was made of), `features`
(float32), and the file's state. `datamodules.EpicKitchens100` cuts actions out of them.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import override

from datamodules.clips import ClipFormat
from datamodules.storage.files import is_url
from datamodules.video.frame_tar import open_frames
from datamodules.video.frames import NUMBERED
from datamodules.video.resize import center_crop, to_clip
from datamodules.video.sampling import clip_indices, range_in
from datamodules.video.suffixes import VIDEO_SUFFIXES
from lightning_modules.base import BaseModule
from lightning_modules.nets.mambavl_joint import pool_tokens
from lightning_modules.nets.videomamba import VideoMamba
from zoo.build import load
from zoo.errors import ZooError
from zoo.inference.precision import check_precision, inference
from zoo.inference.predict import check_finite, to_device
from zoo.limits import BATCH, SECONDS, check_range, check_shard, check_windows
from zoo.sources import find_videos
from zoo.tables.fill import Done, fill
from zoo.tables.job import Job, Reader, Span
from zoo.tables.listing import list_videos
from zoo.tables.output import Output, check_output
from zoo.tables.table import Record

__all__ = ["KINDS", "StrideReader", "VideoFeatures", "extract", "find_sources"]

KINDS = ("cls", "frames")
"""One vector for a window, its class token; or one for each of its frames, the mean of its patches."""


class StrideReader(Reader):
    """Reads long videos, folders and tars of frames, a clip (3, T, H, W) of each window.

    Args:
        clip: what the model takes.
        window: seconds of a window.
        stride: seconds from one to the next.
        spans: stretches of a clip that have a vector each; None is the whole clip.
    """

    def __init__(self, clip: ClipFormat, window: float, stride: float, spans: int | None, batch_size: int) -> None:
        super().__init__(batch_size)
        self.clip, self.window, self.stride, self.spans = clip, window, stride, spans

    @override
    def clips(self, path: str, span: Span) -> Iterator[tuple[Tensor, list[Record]]]:
        clip = self.clip
        with open_frames(path) as reader:
            shown = reader.pts_seconds
            first, end = (0.0, float(shown[-1])) if span is None else span
            check_windows(path, end - first, self.stride)
            for start, stop in _windows(end - first, self.window, self.stride):
                low, high = range_in(shown, (first + start, first + stop), displayed=False) or (0, 0)
                positions = low + clip_indices(
                    high - low + 1, clip.num_frames, sampling=clip.sampling, mode="val", frame_stride=clip.frame_stride
                )
                frames = clip.read(reader, positions)
                times = shown[positions].reshape(self.spans or 1, -1)
                records = [Record(path, round(float(some[0]), 6), round(float(some[-1]), 6)) for some in times]
                yield to_clip(center_crop(frames, clip.image_size)), records


class VideoFeatures(Job):
    """A callable from a batch of videos to rows with features over time, the rows that `zoo extract` writes.

    They are raw, as the network's final norm gives them; `zoo.VideoEmbedder` gives one unit vector a stretch.

    Args:
        model: a model with a VideoMamba for clips, or anything `zoo.load` takes.
        tokens: one of `KINDS`.
        window: seconds that the model sees at once.
        stride: seconds from one window to the next.
        batch_size: windows that the model sees at once.
        precision: as for `zoo.predict`.
        device: where the model runs; "auto" is a GPU where there is one.

    Raises:
        ZooError: a model without a VideoMamba for clips, or a number is out of range.
    """

    kind, columns, left_out = "features", ("features",), "no features of it"

    def __init__(
        self,
        model: BaseModule | str | os.PathLike[str],
        *,
        tokens: str = "cls",
        window: float = 2.0,
        stride: float = 1.0,
        batch_size: int = 8,
        precision: str = "fp32",
        device: str = "auto",
    ) -> None:
        if tokens not in KINDS:
            raise ZooError(f"tokens is {tokens!r}; choose one of {', '.join(KINDS)}.")
        check_range("window", window, SECONDS)
        check_range("stride", stride, SECONDS)
        check_range("batch_size", batch_size, BATCH)
        name = os.fspath(model) if isinstance(model, str | os.PathLike) else type(model).__name__
        model = load(model) if isinstance(model, str | os.PathLike) else model
        net = getattr(model, "net", None)
        net = getattr(net, "vision", net)
        if not isinstance(net, VideoMamba) or net.num_frames is None:
            raise ZooError(f"{name} has no VideoMamba for clips to extract features with; use a video classifier.")
        self.model, self._net, self.tokens = to_device(model, device).eval(), net, tokens
        check_precision(precision, self.model.device)
        clip = ClipFormat(**model.preprocessing)
        spans = None if tokens == "cls" else clip.num_frames // (net.patch_embed.tubelet_size or 1)
        self.reader = StrideReader(clip, window, stride, spans, batch_size)
        self.settings = {"tokens": tokens, "window": window, "stride": stride, "precision": precision}

    @override
    def types(self) -> dict[str, Any]:
        import pyarrow as pa

        return {"features": pa.list_(pa.float32(), self._net.embed_dim)}

    @override
    def answer(self, video: Tensor) -> list[tuple[Any, ...]]:
        net = self._net
        with inference(self.settings["precision"], self.model.device):
            hidden = check_finite(net.forward_tokens(self.model.normalise(video.to(self.model.device))))
            if self.tokens == "cls":
                found = hidden[:, 0]
            else:
                found = pool_tokens(hidden, net.grid_size**2, "frames")[:, 1:].flatten(0, 1)
            return [(vector,) for vector in found.float().cpu().numpy()]


def extract(
    model: BaseModule | str,
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    tokens: str = "cls",
    window: float = 2.0,
    stride: float = 1.0,
    batch_size: int = 8,
    precision: str = "fp32",
    num_workers: int | None = None,
    ray: str | None = None,
    shard: tuple[int, int] = (1, 1),
    device: str = "auto",
    on_files: Callable[[int, int], None] | None = None,
) -> Done:
    """Write features of all videos of the sources into a table, or continue one, see `zoo.tables.fill.fill`.

    Args:
        model: a model with a VideoMamba for clips, or anything `zoo.load` takes.
        sources: folders of videos, of folders of frames, or of tars of frames, searched at any depth; videos; lists of
            them and tar shards, see `zoo.tables.listing.list_videos`.
        out: the table, a file .parquet or a folder or URL .lance.
        tokens: as for `VideoFeatures`, and so are the next four, and device.
        num_workers: as for `fill`, and so are the rest; shard is for .lance alone.

    Raises:
        ZooError: no videos, a model without a VideoMamba for clips, or a table made with other weights or settings;
            features that are not finite, or cannot be written.
    """
    check_shard(shard)
    out = check_output(out, shard)
    listing, roots = list_videos([sources] if isinstance(sources, str | os.PathLike) else sources, _found)
    job = VideoFeatures(model, tokens=tokens, window=window, stride=stride, batch_size=batch_size, precision=precision,
                        device=device)  # fmt: skip
    return fill(job, Output(out, job, model), listing, roots, num_workers=num_workers, ray=ray, shard=shard,
                on_files=on_files)  # fmt: skip


def _found(paths: list[str]) -> list[str]:
    remote = [path for path in paths if is_url(path)]
    found = find_videos(remote, urls=True) if remote else []
    return found + [str(video) for path in paths if not is_url(path) for video in find_sources(Path(path))]


def find_sources(data: Path) -> list[Path]:
    """Videos below a folder: files, folders of numbered pictures, tars of such; sorted by name.

    Where a video and its extracted frames are there (EPIC-KITCHENS' folders videos and rgb_frames), take the frames.

    Raises:
        ZooError: there are none.
    """
    if data.is_file():
        return [data]
    found: dict[str, list[Path]] = {}
    for folder, below, names in os.walk(data, followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith(".") and name != "flow_frames")
        if any(map(NUMBERED.fullmatch, names)):
            found.setdefault(Path(folder).name, []).append(Path(folder))
            below.clear()
            continue
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in (*VIDEO_SUFFIXES, ".tar") and not name.startswith("."):
                found.setdefault(stem, []).append(Path(folder, name))
    if not found:
        raise ZooError(f"{data} holds no videos, tars or folders of frames; name the folder they are in.")
    chosen = []
    for _, paths in sorted(found.items()):
        frames = [path for path in paths if path.parent.name == "rgb_frames"]
        chosen += frames if len(frames) == 1 else paths
    return chosen


def _windows(end: float, window: float, stride: float) -> list[tuple[float, float]]:
    """Spans in seconds that cover a video whose last frame is at `end`; the last one ends there."""
    count = max(0, math.floor((end - window) / stride + 1e-6)) + 1
    spans = [(k * stride, k * stride + window) for k in range(count)]
    if spans[-1][1] < end - 1e-6:
        spans.append((max(end - window, 0.0), end))
    return spans
