"""Vectors of videos: a callable from paths to rows, for `zoo index` and for engines that deal out batches of rows."""

import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from datamodules.clips import ClipFormat
from datamodules.retrieval import frame_positions
from datamodules.video.frames import open_video
from datamodules.video.resize import center_crop, to_clip
from lightning_modules.base import BaseModule
from zoo.build import load
from zoo.errors import ZooError
from zoo.inference.precision import check_precision, inference
from zoo.inference.predict import to_device
from zoo.limits import BATCH, SECONDS, check_range, check_windows
from zoo.retrieval.table import COLUMNS
from zoo.tables.job import Job, Reader, Span
from zoo.tables.table import Record, lancedb_modules

__all__ = ["WINDOW_SECONDS", "VideoEmbedder", "WindowReader"]

WINDOW_SECONDS = 20.0
"""Longest stretch that one vector represents: the clips that the published models were trained on have 2 to 30 s."""


class WindowReader(Reader):
    """Reads videos, cut into windows of equal length, a clip (3, T, H, W) of each.

    Args:
        clip: what the model takes.
        window: longest stretch in seconds; `math.inf` never cuts.
    """

    def __init__(self, clip: ClipFormat, window: float, batch_size: int) -> None:
        super().__init__(batch_size)
        self.clip, self.window = clip, window

    @override
    def clips(self, path: str, span: Span) -> Iterator[tuple[Tensor, list[Record]]]:
        clip = self.clip
        with open_video(path) as reader:
            duration = reader.duration_seconds
            spans: list[tuple[float, float]]
            if span is not None:
                spans, whole = [span], False
            else:
                check_windows(path, duration, self.window)
                number = max(math.ceil(duration / self.window - 1e-6), 1)
                spans = [(k * duration / number, (k + 1) * duration / number) for k in range(number)]
                whole = number == 1
            for stretch in spans:
                positions = frame_positions(reader.pts_seconds, clip, span=None if whole else stretch)
                frames = clip.read(reader, positions)
                # Sums of frames' lengths are a bit off: 1.9999999999999998.
                record = Record(path, round(stretch[0], 6), round(stretch[1], 6))
                yield to_clip(center_crop(frames, clip.image_size)), [record]


class VideoEmbedder(Job):
    """A callable from a batch of videos to rows with their vectors, the rows of the table that `zoo index` writes.

    It keeps nothing from one call to the next, so any engine may call copies of it in any order and again. For
    example ``dataset.map(VideoEmbedder("my-muse"), batched=True, remove_columns=dataset.column_names)``.

    Args:
        model: a text-video model, with ``encode_text`` and ``forward`` that return unit vectors; a classifier, whose
            features after the final norm are scaled to unit length; or anything `zoo.load` takes.
        window: longest stretch in seconds that one vector represents; longer videos are cut into equal ones, `math.inf`
            never cuts.
        batch_size: clips that the model sees at once.
        precision: as for `zoo.predict`.
        device: where the model runs; "auto" is a GPU where there is one.

    Attributes:
        model: the model, in eval mode.
        reader: the `WindowReader` that makes its input.
        compares_texts: whether its vectors can be compared with those of texts.

    Raises:
        ZooError: the model makes no vectors of videos, or a number is out of range.
    """

    kind, columns, left_out = "index", ("vector",), "left out of the index"
    reader: WindowReader

    def __init__(
        self,
        model: BaseModule | str | os.PathLike[str],
        *,
        window: float = WINDOW_SECONDS,
        batch_size: int = 8,
        precision: str = "fp32",
        device: str = "auto",
    ) -> None:
        check_range("batch_size", batch_size, BATCH)
        if window != math.inf:
            check_range("window", window, SECONDS)
        name = os.fspath(model) if isinstance(model, str | os.PathLike) else type(model).__name__
        model = load(model) if isinstance(model, str | os.PathLike) else model
        self.compares_texts = hasattr(model, "encode_text")
        if not hasattr(model, "preprocessing") or not (self.compares_texts or hasattr(model, "forward_features")):
            raise ZooError(f"{name} makes no vectors of videos (it has neither encode_text nor forward_features); use "
                           "a text-video model or a classifier.")  # fmt: skip
        self.model, self.precision = to_device(model, device).eval(), precision
        check_precision(precision, self._device)
        self.reader = WindowReader(ClipFormat(**model.preprocessing), window, batch_size)

    @property  # the window of an index that is there is set after the constructor
    @override
    def settings(self) -> dict[str, Any]:  # type: ignore[override]  # nobody sets it
        window = None if math.isinf(self.reader.window) else self.reader.window
        return {"window": window, "precision": self.precision}

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    @override
    def order(self) -> tuple[str, ...]:
        return COLUMNS

    @property
    def dims(self) -> int:
        """Numbers of a vector."""
        clip = self.reader.clip
        if self.compares_texts:
            with torch.inference_mode():
                text: Tensor = self.model.encode_text(["a video"])
            return text.shape[-1]
        video = torch.zeros(1, 3, clip.num_frames, clip.image_size, clip.image_size, dtype=torch.uint8)
        return self.embed(video).shape[-1]

    @override
    def types(self) -> dict[str, Any]:
        _, pa = lancedb_modules()
        return {"vector": pa.list_(pa.float32(), self.dims)}

    def embed(self, video: Tensor) -> Tensor:
        """Clips uint8 (n, 3, T, H, W) -> unit vectors (n, dims), float32 on the CPU."""
        with inference(self.precision, self._device):
            video = video.to(self._device)
            if self.compares_texts:
                vectors: Tensor = self.model(video)
                return vectors.float().cpu()
            return F.normalize(self.model.forward_features(video, pool="cls").float(), dim=-1).cpu()

    @override
    def answer(self, video: Tensor) -> list[tuple[Any, ...]]:
        return [(vector,) for vector in self.embed(video).numpy()]
