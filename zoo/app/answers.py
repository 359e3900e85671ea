"""What the page shows of a video, as numbers and pictures; no web in here."""

import io
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.video.frames import open_video
from lightning_modules.base import BaseModule
from zoo.app.limits import Limits, check_length
from zoo.inference.explain import explain
from zoo.inference.heat_pictures import shade
from zoo.inference.long_videos import Timeline, default_window, timeline
from zoo.inference.predict import Prediction, check_finite, rank, read_views, score_views, value_of_views

if TYPE_CHECKING:
    from lightning_modules.tasks.mambavl import Answer

__all__ = ["Classified", "Explained", "Picture", "ask", "classify", "see"]

TOPK = 5
PICTURES, HEATS = 6, 8
HEIGHT_PX = 144
LONG = 2.5
"""A video of so many windows gets a timeline."""


class Picture(NamedTuple):
    """A frame as WebP, and when it is shown, in seconds."""

    seconds: float
    webp: bytes


class Classified(NamedTuple):
    """The answer of a classifier or a regressor for one video.

    Attributes:
        predictions: best classes, best first; empty for a regressor.
        value: name and number of what a regressor predicts.
        pictures: some of the frames that the model saw, in their order.
        timeline: labels over time, of a long video.
        duration: seconds.
    """

    predictions: list[Prediction]
    value: tuple[str, float] | None
    pictures: list[Picture]
    timeline: Timeline | None
    duration: float


class Explained(NamedTuple):
    """What supports a class in the one clip that a model sees for that.

    The pictures are its frames in grey, orange where they support the class and blue where they speak against it.
    """

    label: str
    probability: float
    pictures: list[Picture]


def classify(
    model: BaseModule, path: str | os.PathLike[str], limits: Limits, report: Callable[[float, str], None]
) -> Classified:
    """Classify a video as `zoo predict` does, and a long one over time too.

    Args:
        report: called with the share of the work that is done (0..1) and what is being done.

    Raises:
        DecodeError: the file cannot be read as video.
        ZooError: it is too long, or the model gives numbers that are not finite.
    """
    report(0.0, "reading")
    duration = check_length(path, limits.minutes)
    views = read_views(model, path, None, None)
    done = iter(range(1, len(views.video) + 1))

    def advance() -> None:
        report(next(done) / len(views.video), "looking")

    if hasattr(model, "value_name"):
        predictions: list[Prediction] = []
        value: tuple[str, float] | None = (model.value_name or "value", value_of_views(model, views, on_view=advance))
    else:
        predictions, value = rank(model, score_views(model, views, on_view=advance), TOPK), None
    over_time = None
    if value is None and model.preprocessing["num_frames"] > 1 and duration > LONG * _window(model, path):
        over_time = timeline(
            model, path, on_seconds=lambda seconds, _: report(min(seconds / duration, 1.0), "watching")
        )
    return Classified(predictions, value, _pictures(path, views.indices[len(views.indices) // 2]), over_time, duration)


def see(
    model: BaseModule,
    path: str | os.PathLike[str],
    index: int,
    limits: Limits,
    report: Callable[[float, str], None],
) -> Explained:
    """Which places and times of a video support a class, named by its index; other arguments as for `classify`."""
    check_length(path, limits.minutes)
    found = explain(model, path, index, on_step=lambda done, total: report(done / total, "covering parts"))
    shown = np.unique(np.linspace(0, len(found.seconds) - 1, HEATS).round().astype(int))
    pairs = zip(found.seconds[shown], shade(found)[shown], strict=True)
    pictures = [Picture(float(second), _webp(frame)) for second, frame in pairs]
    return Explained(found.label, found.probability, pictures)


def ask(model: BaseModule, path: str | os.PathLike[str], question: str, limits: Limits) -> "list[Answer]":
    """Return the best answers to a question about a video; an empty question is the model's own.

    Raises:
        DecodeError, ZooError: as `classify`.
    """
    check_length(path, limits.minutes)
    answers: list[Answer] = model.answer(read_views(model, path, 1, 1).video, question, TOPK)
    check_finite(torch.tensor([answer.probability for answer in answers]))
    return answers


def _window(model: BaseModule, path: str | os.PathLike[str]) -> float:
    with open_video(path) as reader:
        return default_window(model, reader.fps)


def _pictures(path: str | os.PathLike[str], positions: Sequence[int] | NDArray[np.int64]) -> list[Picture]:
    """Frames at some of the positions, larger than the model sees them."""
    different = np.unique(positions)
    chosen = different[np.unique(np.linspace(0, len(different) - 1, PICTURES).round().astype(int))]
    with open_video(path) as reader:
        frames = reader.read(chosen, short_side=HEIGHT_PX)
        times = reader.pts_seconds[chosen]
    return [Picture(float(second), _webp(frame)) for second, frame in zip(times, frames, strict=True)]


def _webp(frame: Tensor) -> bytes:
    file, picture = io.BytesIO(), Image.fromarray(frame.permute(1, 2, 0).numpy())
    picture.thumbnail((4 * HEIGHT_PX, HEIGHT_PX))  # a WebP has at most 16,383 pixels a side
    picture.save(file, "WEBP", quality=80)
    return file.getvalue()
