"""Labels of a stream as it comes: a classifier on the newest window of a camera, an address or a file at its speed."""

import os
from collections.abc import Iterator
from typing import NamedTuple

from datamodules.video.live import LiveStream
from lightning_modules.base import BaseModule
from zoo.inference.long_videos import window_options
from zoo.inference.predict import check_finite, classifier, evaluating
from zoo.limits import check_range, check_window_and_step

__all__ = ["RECONNECT", "Moment", "live"]

RECONNECT = (0, 86_400)
"""Seconds for which a lost stream is looked for."""


class Moment(NamedTuple):
    """What a classifier says of the newest window of a stream.

    Attributes:
        start: of the window, in seconds since the stream's first frame.
        end: of the window.
        label: the most probable class.
        probability: of it, in [0, 1].
        index: its position in the logits.
        lag: seconds from the arrival of the window's last frame to this answer.
        dropped: of the frames so far, those that came and went between two windows, in [0, 1].
    """

    start: float
    end: float
    label: str
    probability: float
    index: int  # type: ignore[assignment]  # it hides tuple.index, which nobody needs of a moment
    lag: float
    dropped: float


def live(
    model: BaseModule | str,
    source: str | os.PathLike[str],
    *,
    window: float | None = None,
    step: float | None = None,
    reconnect: float = 60.0,
) -> Iterator[Moment]:
    """Iterate over labels of a stream, each of its newest window.

    The stream is read in a thread of its own. Where the model, or the loop over it, is slower than the stream, frames
    are dropped, and the next window is again the newest one. Close the iterator, or leave the loop, to end it.

    Args:
        model: a classifier, or anything `zoo.load` takes.
        source: a camera (``0``, ``/dev/video0``), an address (``rtsp://``, ``udp://``, ``http://``, ``https://``), or a
            file or folder of frames, which is played at its own speed.
        window: seconds that the model sees at once; None as for `zoo.timeline`.
        step: seconds from one window to the next at least, at most a window; None is half a window.
        reconnect: seconds for which a stream that breaks off is looked for; 0 ends with it.

    Raises:
        DecodeError: the source cannot be opened, or was lost for too long.
        ZooError: the model does not classify, or gives scores that are not finite; a number is out of range.
    """
    check_window_and_step(window, step)
    check_range("reconnect", reconnect, RECONNECT)
    return _moments(classifier(model), source, window, step, reconnect)


def _moments(
    model: BaseModule, source: str | os.PathLike[str], window: float | None, step: float | None, reconnect: float
) -> Iterator[Moment]:
    with LiveStream(source, reconnect=reconnect) as stream:
        for start, end, video, arrived in stream.windows(**window_options(model, stream.fps, window, step)):
            with evaluating(model):
                scores = check_finite(model(video[None].to(model.device)).float().softmax(dim=1))[0].cpu()
            index = int(scores.argmax())
            label = model.class_names[index] if model.class_names else f"class {index}"
            lag = stream.clock() - arrived
            yield Moment(start, end, label, scores[index].item(), index, lag, stream.dropped_share)
