"""Vectors of videos: a callable from paths to rows, for `zoo index` and for engines that deal out batches of rows.

Videos are read in chunks of a listing. Batches end where what they belong to is saved, so what a vector is made of,
and with it every bit of it, does not depend on where an earlier run was killed:

    files      a b c d | e f g h | ...         chunks of as many files as a batch has clips
    windows    aabbccc   ddd               batches of up to 4; saved at the end of a file that completes 4 or more
               [  ][ ]   [ ]               windows since the last saving, and at the end of the chunk
                     ^     ^
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.clips import ClipFormat
from datamodules.retrieval import frame_positions
from datamodules.storage.files import status
from datamodules.video.frames import open_video
from datamodules.video.opening import DecodeError
from datamodules.video.resize import center_crop, to_clip
from zoo.build import load
from zoo.errors import ZooError
from zoo.inference.predict import to_device
from zoo.limits import BATCH, SECONDS, TooManyWindows, check_range, check_windows
from zoo.retrieval.table import COLUMNS, File, Record

__all__ = ["WINDOW_SECONDS", "Batch", "VideoEmbedder", "WindowReader"]

WINDOW_SECONDS = 20.0
"""Longest stretch that one vector represents: the clips that the published models were trained on have 2 to 30 s."""


class Batch(NamedTuple):
    """Windows of videos.

    Attributes:
        video: uint8 (n, 3, T, H, W), or None.
        records: what they are.
        files: those that were finished.
        is_last: what came since the last such batch can be saved.
    """

    video: Tensor | None
    records: list[Record]
    files: list[File]
    is_last: bool


class WindowReader:
    """Reads videos, cut into windows, as `Batch`; see the head of this module.

    Args:
        clip: what the model takes.
        window: longest stretch in seconds; `math.inf` never cuts.
        batch_size: clips of a batch, at most.
    """

    def __init__(self, clip: ClipFormat, window: float, batch_size: int) -> None:
        self.clip, self.window, self.batch_size = clip, window, batch_size

    def read(self, paths: Sequence[str], spans: Sequence[tuple[float, float] | None] | None = None) -> Iterator[Batch]:
        """Yield the windows of a chunk of videos; a file that cannot be read is a `File` with its error.

        Args:
            paths: local files or URLs.
            spans: for each of them the only stretch to read, in seconds, or None for all of it.
        """
        clips, records, files, unsaved = [], [], [], 0

        def batch(is_last: bool) -> Batch:
            made = Batch(torch.stack(clips) if clips else None, records[:], files[:], is_last)
            clips.clear(), records.clear(), files.clear()
            return made

        for number, path in enumerate(paths):
            state = File(path)
            try:
                with suppress(OSError):  # opening it says more
                    state = File(path, *status(path))
                for clip, record in self._windows(path, None if spans is None else spans[number]):
                    clips.append(clip)
                    records.append(record)
                    unsaved += 1
                    if len(clips) == self.batch_size:
                        yield batch(is_last=False)
            except (DecodeError, OSError, TooManyWindows) as error:
                state = state._replace(error=" ".join(str(error).split()))
            files.append(state)
            if unsaved >= self.batch_size or number == len(paths) - 1:
                yield batch(is_last=True)
                unsaved = 0

    def _windows(self, path: str, span: tuple[float, float] | None) -> Iterator[tuple[Tensor, Record]]:
        clip = self.clip
        with open_video(path) as reader:
            duration = reader.duration_seconds
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
                record = Record(path, *(round(seconds, 6) for seconds in stretch))
                yield to_clip(center_crop(frames, clip.image_size)), record


class VideoEmbedder:
    """A callable from a batch of videos to rows with their vectors, the rows of the table that `zoo index` writes.

    It keeps nothing from one call to the next, so any engine may call copies of it in any order and again. For
    example ``dataset.map(VideoEmbedder("my-muse"), batched=True, remove_columns=dataset.column_names)``.

    Args:
        model: a text-video model, with ``encode_text`` and ``forward`` that return unit vectors; a classifier, whose
            features after the final norm are scaled to unit length; or anything `zoo.load` takes.
        window: longest stretch in seconds that one vector represents; longer videos are cut into equal ones, `math.inf`
            never cuts.
        batch_size: clips that the model sees at once.
        device: where the model runs; "auto" is a GPU where there is one.

    Attributes:
        model: the model, in eval mode.
        reader: the `WindowReader` that makes its input.
        compares_texts: whether its vectors can be compared with those of texts.

    Raises:
        ZooError: the model makes no vectors of videos, or a number is out of range.
    """

    def __init__(
        self,
        model: nn.Module | str | os.PathLike,
        *,
        window: float = WINDOW_SECONDS,
        batch_size: int = 8,
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
        self.model = to_device(model, device).eval()
        self.reader = WindowReader(ClipFormat(**model.preprocessing), window, batch_size)

    @property
    def dims(self) -> int:
        """Numbers of a vector."""
        clip = self.reader.clip
        if self.compares_texts:
            with torch.inference_mode():
                return self.model.encode_text(["a video"]).shape[-1]
        return self.embed(
            torch.zeros(1, 3, clip.num_frames, clip.image_size, clip.image_size, dtype=torch.uint8)
        ).shape[-1]

    def embed(self, video: Tensor) -> Tensor:
        """Clips uint8 (n, 3, T, H, W) -> unit vectors (n, dims), float32 on the CPU."""
        with torch.inference_mode():
            video = video.to(next(self.model.parameters()).device)
            if self.compares_texts:
                return self.model(video).float().cpu()
            return F.normalize(self.model.forward_features(video, pool="cls").float(), dim=-1).cpu()

    def __call__(self, batch: Mapping[str, Sequence] | Sequence[str]) -> dict[str, list[Any]]:
        """Return columns of equal length: vector (float32 array), path, start, end (seconds), size (bytes), mtime
        (nanoseconds since 1970), and error, with which all but path, size and mtime are None.

        Args:
            batch: columns ``path``, files or URLs, and, if only stretches of them are wanted, ``start`` and ``end``
                in seconds; or just the paths.
        """
        batch = batch if isinstance(batch, Mapping) else {"path": batch}
        paths, spans = [str(path) for path in batch["path"]], None
        if "start" in batch:
            pairs = zip(batch["start"], batch["end"], strict=True)
            spans = [(float(start), float(end)) for start, end in pairs]
        rows: list[tuple] = []
        records: list[tuple[Record, Any]] = []
        for part in self.reader.read(paths, spans):
            if part.video is not None:
                records += zip(part.records, self.embed(part.video).numpy(), strict=True)
            for file in part.files:
                mine = [] if file.error is not None else [pair for pair in records if pair[0].path == file.path]
                rows += [(vector, *record, file.size, file.mtime_ns, None) for record, vector in mine]
                if file.error is not None:
                    rows.append((None, file.path, None, None, *file[1:]))
                records = [pair for pair in records if pair[0].path != file.path]
        columns = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
        return {name: list(values) for name, values in zip(COLUMNS, columns, strict=True)}
