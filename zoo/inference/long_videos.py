"""Labels over time in a video of any length: a classifier on sliding windows."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.video.streaming import FrameStream, stream_windows
from lightning_modules.base import BaseModule
from zoo.datasets import datasets
from zoo.inference.precision import check_precision
from zoo.inference.predict import Prediction, check_finite, classifier, evaluating
from zoo.limits import check_window_and_step, check_windows
from zoo.registry import class_labels

__all__ = ["STILLS", "Segment", "Timeline", "default_window", "timeline", "window_options"]

STILLS = 48
"""Pictures that a timeline keeps of its video at most."""

_FRAMES_AT_ONCE = 64
_FPS_OF_CLIPS = 4.0  # where nothing else is known


class Segment(NamedTuple):
    """A stretch of time with one label.

    Attributes:
        start: in seconds.
        end: in seconds.
        label: the class.
        probability: its mean over the stretch, in [0, 1].
        index: the label's position in the logits.
    """

    start: float
    end: float
    label: str
    probability: float
    index: int  # type: ignore[assignment]  # it hides tuple.index, which nobody needs of a segment


@dataclass(frozen=True)
class Timeline:
    """Predictions of a classifier for each window of a video, n windows and K classes.

    Attributes:
        path: the file.
        duration: length of the video in seconds.
        seconds: float64 (n, 2), start and end of each window, ascending.
        probabilities: float32 (n, K) on the CPU, softmax of each window.
        labels: K names.
        stills: uint8 (k, 3, H, W), pictures of the video at equal distances, at most `STILLS`.
        still_seconds: float64 (k,), when they are shown.
    """

    path: str
    duration: float
    seconds: np.ndarray = field(repr=False)
    probabilities: Tensor = field(repr=False)
    labels: list[str] = field(repr=False)
    stills: Tensor = field(repr=False)
    still_seconds: np.ndarray = field(repr=False)

    def pieces(self) -> tuple[np.ndarray, Tensor]:
        """The video cut wherever a window begins or ends, and the mean over the windows that cover each piece.

        Returns:
            Edges in seconds, float64 (m + 1,), and probabilities, float32 (m, K).
        """
        edges = np.unique(self.seconds)
        middles = (edges[1:] + edges[:-1]) / 2
        # Starts and ends both ascend, so the windows over a piece are neighbours: a difference of running sums.
        first = np.searchsorted(self.seconds[:, 1], middles)
        last = np.searchsorted(self.seconds[:, 0], middles)
        sums = torch.cat([torch.zeros(1, len(self.labels)).double(), self.probabilities.double().cumsum(0)])
        means = (sums[last] - sums[first]) / torch.from_numpy(last - first)[:, None]
        return edges, means.float()

    def segments(self) -> list[Segment]:
        """The most probable label of each piece, equal neighbours joined; together they cover the video."""
        edges, scores = self.pieces()
        best, lengths, found = scores.argmax(1).tolist(), np.diff(edges), []
        for index, neighbours in groupby(range(len(best)), key=best.__getitem__):
            places = list(neighbours)
            probability = np.average(scores[places, index].numpy(), weights=lengths[places])
            start, end = edges[places[0]], edges[places[-1] + 1]
            found.append(Segment(float(start), float(end), self.labels[index], float(probability), index))
        return found

    def predictions(self, topk: int = 5) -> list[list[Prediction]]:
        """The most probable classes of each window, best first."""
        best = self.probabilities.topk(min(topk, len(self.labels)))
        rows = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [[Prediction(self.labels[k], p, k) for p, k in zip(*row, strict=True)] for row in rows]


def default_window(model: BaseModule, fps: float) -> float:
    """Seconds that a classifier should see at once; see `timeline`. `fps` is that of the video."""
    frames: int = model.preprocessing["num_frames"]
    if model.preprocessing["sampling"] == "dense":
        stride: int = model.preprocessing["frame_stride"]
        return frames * stride / fps
    for name, dataset in datasets().items():
        if dataset.clip_seconds is not None and tuple(model.class_names or ()) == class_labels(name):
            return dataset.clip_seconds
    return frames / _FPS_OF_CLIPS


def window_options(model: BaseModule, fps: float, window: float | None, step: float | None) -> dict[str, Any]:
    """Arguments of `stream_windows`, and of `LiveStream.windows`, for a classifier; window and step as for `timeline`.

    Raises:
        ZooError: the step is longer than the window.
    """
    frames = model.preprocessing["num_frames"]
    window = default_window(model, fps) if window is None else window
    step = window / 2 if step is None else step
    check_window_and_step(window, step)
    size = {key: model.preprocessing[key] for key in ("image_size", "short_side", "interpolation")}
    return {"num_frames": frames, "period": window / frames, "step": max(1, round(step / window * frames)), **size}


def timeline(
    model: BaseModule | str,
    path: str | os.PathLike[str],
    *,
    window: float | None = None,
    step: float | None = None,
    batch_size: int | None = None,
    precision: str = "fp32",
    on_seconds: Callable[[float, float | None], None] | None = None,
) -> Timeline:
    """Labels over time of a video of any length, read once from start to end.

    A window is a clip of the model's number of frames T, taken from the middles of T equal intervals, its middle square
    alone. Frames are decoded and scaled once however much windows overlap. Memory does not grow with the video but for
    the result, 4 bytes per window and class.

    Args:
        model: a classifier, or anything `zoo.load` takes.
        path: video file, or folder of frames.
        window: seconds that the model sees at once. None takes the length of the clips it learned from
            (`zoo.datasets`), or what its frames span at its stride ("dense" sampling), or a second for every 4 frames.
        step: seconds from one window to the next, at most a window; rounded to whole intervals between frames. None is
            half a window.
        batch_size: windows that the model sees at once; None makes up 64 frames.
        precision: as for `zoo.predict`.
        on_seconds: called after each batch with the seconds read and the length that the file claims (or None).

    Raises:
        DecodeError: the file is missing, empty or not readable as video.
        ZooError: the model does not classify, or gives scores that are not finite; or window and step are out of
            range, or make more than `limits.WINDOWS` windows.
    """
    check_window_and_step(window, step)
    model = classifier(model)
    check_precision(precision, model.device)
    frames = model.preprocessing["num_frames"]
    size = batch_size or max(1, _FRAMES_AT_ONCE // frames)
    with FrameStream(path) as stream:
        options = window_options(model, stream.fps, window, step)
        every = options["step"] * options["period"]
        check_windows(path, stream.expected_seconds or 0.0, every)
        windows = stream_windows(stream, **options)
        spans, probabilities, stills = [], [], _Stills()
        while batch := list(islice(windows, size)):
            with evaluating(model, precision):
                clips = torch.stack([clip for *_, clip in batch]).to(model.device)
                probabilities.append(check_finite(model(clips).float().softmax(dim=1).cpu()))
            for start, end, clip in batch:
                stills.add((start + end) / 2, clip[:, frames // 2])
                spans.append((start, end))
            check_windows(path, stream.seconds, every)  # the file may be longer than it claims
            if on_seconds is not None:
                on_seconds(stream.seconds, stream.expected_seconds)
        duration = stream.seconds
    seconds = np.minimum(np.asarray(spans), duration)
    seconds[-1, 1] = duration
    seconds, duration = seconds.round(6), round(duration, 6)  # sums of fractions of a second: 1.9999999999999998
    scores = torch.cat(probabilities)
    names = model.class_names or [f"class {i}" for i in range(scores.shape[1])]
    return Timeline(os.fspath(path), duration, seconds, scores, list(names), *stills.kept())


class _Stills:
    """Keeps every picture, from `STILLS` on every second one, then every fourth, ..."""

    def __init__(self) -> None:
        self._kept: list[tuple[float, Tensor]] = []
        self._count, self._every = 0, 1

    def add(self, seconds: float, picture: Tensor) -> None:
        if self._count % self._every == 0:
            self._kept.append((seconds, picture.clone()))
        if len(self._kept) > STILLS:
            self._kept = self._kept[::2]
            self._every *= 2
        self._count += 1

    def kept(self) -> tuple[Tensor, np.ndarray]:
        return torch.stack([picture for _, picture in self._kept]), np.asarray([seconds for seconds, _ in self._kept])
