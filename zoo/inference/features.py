"""Features of long videos, extracted once: a file for each video with a vector for each stretch of time.

    video     |----------------------------------|
    windows   [--------]                             `window` seconds long, a new one every `stride` seconds
                  [--------]
                      [--------]  ...

A file `<video>.safetensors` holds `features` float32 (n, width) and `seconds` float32 (n, 2), the first and last moment
that a vector was made of. `datamodules.EpicKitchens100` cuts actions out of them.
"""

import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from datamodules.clips import ClipFormat
from datamodules.video.frame_tar import open_frames
from datamodules.video.opening import DecodeError
from datamodules.video.resize import center_crop, to_clip
from datamodules.video.sampling import clip_indices, range_in
from datamodules.video.suffixes import VIDEO_SUFFIXES
from hub.checkpoint import fingerprint
from lightning_modules.base import BaseModule
from lightning_modules.nets.mambavl_joint import pool_tokens
from lightning_modules.nets.videomamba import VideoMamba
from zoo.build import load
from zoo.errors import ZooError
from zoo.files import check_folder, written
from zoo.inference.predict import UnreadableVideo, check_finite, to_device
from zoo.limits import BATCH, SECONDS, TooManyWindows, check_range, check_shard, check_windows, in_share
from zoo.printable import printable
from zoo.sources import refuse_empty

__all__ = ["KINDS", "Extracted", "extract", "find_sources"]

KINDS = ("cls", "frames")
"""One vector for a window, its class token; or one for each of its frames, the mean of its patches."""

_PICTURE = re.compile(r"\D*\d+\.(?:jpe?g|png)", re.IGNORECASE)
_PASSED_OVER = ("flow_frames",)


class Extracted(NamedTuple):
    """Summary of a run of `extract`: videos found (in this share), extracted now, unreadable, and kept from before."""

    videos: int
    extracted: int
    unreadable: int
    kept: int


def extract(
    model: BaseModule | str,
    data: str | os.PathLike,
    out: str | os.PathLike,
    *,
    tokens: str = "cls",
    window: float = 2.0,
    stride: float = 1.0,
    batch_size: int = 8,
    shard: tuple[int, int] = (1, 1),
    device: str = "auto",
    on_files: Callable[[int, int], None] | None = None,
) -> Extracted:
    """Write features of all videos below a folder.

    Features that are there already are kept, so an interrupted run resumes where it stopped.

    Args:
        model: a model with a VideoMamba for clips, or anything `zoo.load` takes.
        data: folder of videos, of folders of frames, or of tars of frames, searched at any depth; or one video.
        out: folder of the features.
        tokens: one of `KINDS`.
        window: seconds that the model sees at once.
        stride: seconds from one window to the next.
        batch_size: windows that the model sees at once.
        shard: (k, n): of n processes that share the videos out, this is number k, from 1.
        device: where the model runs; "auto" is a GPU where there is one.
        on_files: called with the number of finished videos and of all, as they change.

    Raises:
        ZooError: no videos, two of the same name, a model without a VideoMamba for clips, or features made with other
            settings in the folder; features that are not finite, or cannot be written.
    """
    if tokens not in KINDS:
        raise ZooError(f"tokens is {tokens!r}; choose one of {', '.join(KINDS)}.")
    check_range("window", window, SECONDS)
    check_range("stride", stride, SECONDS)
    check_range("batch_size", batch_size, BATCH)
    check_shard(shard)
    refuse_empty([data])
    out = check_folder(out)
    sources = find_sources(Path(data))
    name = os.fspath(model) if isinstance(model, str | os.PathLike) else type(model).__name__
    model = load(model) if isinstance(model, str | os.PathLike) else model
    net = getattr(model.net, "vision", model.net)
    if not isinstance(net, VideoMamba) or net.num_frames is None:
        raise ZooError(f"{name} has no VideoMamba for clips to extract features with; use a video classifier.")
    model = to_device(model, device).eval()
    settings = {"tokens": tokens, "window": window, "stride": stride, "preprocessing": model.preprocessing,
                "width": net.embed_dim, "weights": fingerprint(net.state_dict())}  # fmt: skip
    settings = {key: json.dumps(value, sort_keys=True) for key, value in settings.items()}
    out.mkdir(parents=True, exist_ok=True)
    mine = {key: path for key, path in sources.items() if in_share(key, shard)}
    kept = unreadable = 0
    report = on_files or (lambda done, total: None)
    for number, (key, path) in enumerate(mine.items()):
        report(number, len(mine))
        target = out / f"{key}.safetensors"
        if target.exists():
            _check_settings(target, settings)
            kept += 1
            continue
        try:
            features, seconds = _of_video(model, net, str(path), tokens, window, stride, batch_size)
        except (DecodeError, TooManyWindows) as error:
            warnings.warn(f"{str(error).rstrip('.')} (no features of it).", UnreadableVideo)
            unreadable += 1
            continue
        metadata = {**settings, "model": printable(name)}
        with written(target) as beside:
            save_file({"features": features, "seconds": seconds}, beside, metadata=metadata)
    report(len(mine), len(mine))
    return Extracted(len(mine), len(mine) - kept - unreadable, unreadable, kept)


def find_sources(data: Path) -> dict[str, Path]:
    """Videos below a folder by their names: files, folders of numbered pictures, tars; sorted.

    Where a video and its extracted frames are there (EPIC-KITCHENS' folders videos and rgb_frames), take the frames.

    Raises:
        ZooError: there are none, or two of the same name.
    """
    if data.is_file():
        return {data.stem: data}
    found: dict[str, list[Path]] = {}
    for folder, below, names in os.walk(data, followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith(".") and name not in _PASSED_OVER)
        if any(_PICTURE.fullmatch(name) for name in names):
            found.setdefault(Path(folder).name, []).append(Path(folder))
            below.clear()
            continue
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in (*VIDEO_SUFFIXES, ".tar") and not name.startswith("."):
                found.setdefault(stem, []).append(Path(folder, name))
    if not found:
        raise ZooError(f"{data} holds no videos, tars or folders of frames; name the folder they are in.")
    chosen = {}
    for name, paths in sorted(found.items()):
        frames = [path for path in paths if path.parent.name == "rgb_frames"]
        if len(paths) > 1 and len(frames) != 1:
            raise ZooError(f"{paths[0]} and {paths[1]} have the same name, by which their features are told apart; "
                           "extract them into different folders.")  # fmt: skip
        chosen[name] = (frames or paths)[0]
    return chosen


def _windows(end: float, window: float, stride: float) -> list[tuple[float, float]]:
    """Spans in seconds that cover a video whose last frame is at `end`; the last one ends there."""
    count = max(0, math.floor((end - window) / stride + 1e-6)) + 1
    spans = [(k * stride, k * stride + window) for k in range(count)]
    if spans[-1][1] < end - 1e-6:
        spans.append((max(end - window, 0.0), end))
    return spans


def _of_video(
    model: BaseModule, net: VideoMamba, path: str, tokens: str, window: float, stride: float, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Features (n, width) and seconds (n, 2) of one video."""
    vectors, seconds = [], []
    with torch.inference_mode():
        for clips, times in _batches(model, path, window, stride, batch_size):
            hidden = check_finite(net.forward_tokens(model.normalise(clips)))
            if tokens == "cls":
                vectors.append(hidden[:, 0])
                seconds.append(torch.stack([times[:, 0], times[:, -1]], dim=1))
                continue
            frames = pool_tokens(hidden, net.grid_size**2, "frames")[:, 1:]
            vectors.append(frames.flatten(0, 1))
            spans = times.unflatten(1, (frames.shape[1], -1))
            seconds.append(torch.stack([spans[..., 0], spans[..., -1]], dim=-1).flatten(0, 1))
    found, spans = torch.cat(vectors).float().cpu(), torch.cat(seconds).float()
    order = torch.argsort(spans.mean(dim=1), stable=True)  # frames of windows that overlap
    return found[order].contiguous(), spans[order].contiguous()


def _batches(
    model: BaseModule, path: str, window: float, stride: float, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Clips uint8 (B, 3, T, H, W) of the windows, and the times of their frames (B, T)."""
    clip = ClipFormat(**model.preprocessing)
    clips, times = [], []
    with open_frames(path) as reader:
        shown = reader.pts_seconds
        check_windows(path, float(shown[-1]), stride)
        spans = _windows(float(shown[-1]), window, stride)
        for number, span in enumerate(spans):
            first, last = range_in(shown, span, displayed=False) or (0, 0)
            options = {"sampling": clip.sampling, "frame_stride": clip.frame_stride, "mode": "val"}
            positions = first + clip_indices(last - first + 1, clip.num_frames, **options)
            frames = clip.read(reader, positions)
            clips.append(to_clip(center_crop(frames, clip.image_size)))
            times.append(torch.from_numpy(shown[positions].copy()))
            if len(clips) == batch_size or number == len(spans) - 1:
                yield torch.stack(clips), torch.stack(times)
                clips, times = [], []


def _check_settings(target: Path, settings: dict[str, str]) -> None:
    try:
        with safe_open(target, "pt") as file:
            there = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ZooError(f"{target} cannot be read as features; remove it, and it is made again.") from error
    other = [key for key, value in settings.items() if there.get(key) != value]
    if other:
        old = ", ".join(f"{key} {there.get(key)}" for key in other)
        raise ZooError(f"{target} was made with other settings ({old}); choose another folder.")
