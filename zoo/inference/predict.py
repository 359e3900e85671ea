"""Answers about a video for people who never train: labels with probabilities, and features."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar, overload

import torch
from torch import Tensor, nn

from datamodules.video.opening import DecodeError
from datamodules.video.views import Views, load_views
from lightning_modules.base import BaseModule
from zoo.build import load
from zoo.deploy.onnx_model import open_model
from zoo.errors import UnreadableVideo, ZooError
from zoo.inference.precision import check_precision, inference
from zoo.limits import CLIPS, VIEWS_BYTES, check_range

__all__ = ["Prediction", "UnreadableVideo", "check_finite", "classifier", "evaluating", "extract_features", "predict",
           "predict_value", "rank", "read_views", "regressor", "score_views", "to_device",
           "value_of_views", "views_of"]  # fmt: skip


Module = TypeVar("Module", bound=nn.Module)


class Prediction(NamedTuple):
    """One class of a ranking; ``probability`` is in [0, 1], ``index`` the position in the logits."""

    label: str
    probability: float
    index: int  # type: ignore[assignment]  # it hides tuple.index, which nobody needs of a prediction


@overload
def predict(  # type: ignore[overload-overlap]  # a str is a sequence of str too
    model: BaseModule | str, path: str | os.PathLike[str], *, topk: int = 5, num_clips: int | None = None,
    num_crops: int | None = None, precision: str = "fp32",
) -> list[Prediction]: ...  # fmt: skip


@overload
def predict(
    model: BaseModule | str, path: Sequence[str | os.PathLike[str]], *, topk: int = 5, num_clips: int | None = None,
    num_crops: int | None = None, precision: str = "fp32",
) -> list[list[Prediction]]: ...  # fmt: skip


def predict(
    model: BaseModule | str,
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    topk: int = 5,
    num_clips: int | None = None,
    num_crops: int | None = None,
    precision: str = "fp32",
) -> list[Prediction] | list[list[Prediction]]:
    """Return the most probable classes of a video (or still image), best first; of several videos, a list of these.

    The softmax is averaged over ``num_clips`` x ``num_crops`` views, as in the papers' tests.

    Args:
        model: a classifier, anything `zoo.load` takes, or an ONNX file that `zoo.export` wrote.
        path: video or image file, or a list of them. One of a list that cannot be read is an `UnreadableVideo` warning
            and an empty list in its place, so that the others are not lost.
        topk: how many classes; all if the model has fewer.
        num_clips: clips in time. None means 4; 2 for a model with "ssv2" sampling, 1 for an image model.
        num_crops: square crops along the long side, 1 or 3. None means 3; 1 for an image model.
        precision: "fp32", or "bf16" for products of matrices in bfloat16, see `zoo.inference.precision`.

    Raises:
        DecodeError: the one file is missing, empty or not readable as video.
        ZooError: the model does not classify, or gives scores that are not finite; or a number is out of range.
    """
    if topk < 1:
        raise ZooError(f"topk is {topk}; ask for at least one class.")
    model = classifier(model)
    check_precision(precision, model.device)

    def of(path: str | os.PathLike[str]) -> list[Prediction]:
        return rank(model, score_views(model, read_views(model, path, num_clips, num_crops), precision), topk)

    if isinstance(path, str | os.PathLike):
        return of(path)
    found = []
    for one in path:
        try:
            found.append(of(one))
        except DecodeError as error:
            warnings.warn(f"{str(error).rstrip('.')} (no prediction of it).", UnreadableVideo)
            found.append([])
    return found


def predict_value(
    model: BaseModule | str,
    path: str | os.PathLike[str],
    *,
    num_clips: int | None = None,
    num_crops: int | None = None,
    precision: str = "fp32",
) -> float:
    """Return the number that a regressor predicts for a video or still image; ``model.value_name`` is its name.

    It is the mean over ``num_clips`` x ``num_crops`` views.

    Args:
        model: a regressor, anything `zoo.load` takes, or an ONNX file that `zoo.export` wrote.
        path: video or image file.
        num_clips: clips in time; None as for `predict`.
        num_crops: square crops along the long side; None as for `predict`.
        precision: as for `predict`.

    Raises:
        DecodeError: the file is missing, empty or not readable as video.
        ZooError: the model does not predict a number.
    """
    model = regressor(model)
    check_precision(precision, model.device)
    return value_of_views(model, read_views(model, path, num_clips, num_crops), precision)


def extract_features(
    model: BaseModule | str,
    path: str | os.PathLike[str],
    *,
    pool: str | None = "cls",
    num_clips: int = 1,
    num_crops: int = 1,
    precision: str = "fp32",
) -> Tensor:
    """Features of a video after the final norm, averaged over the views; on the CPU, float32.

    Args:
        model: a model with ``forward_features``, or anything `zoo.load` takes.
        path: video or image file.
        pool: "cls" gives the class token (dim,), None all tokens (1 + tokens, dim), class token first.
        num_clips: clips in time.
        num_crops: square crops along the long side, 1 or 3.
        precision: as for `predict`.

    Raises:
        DecodeError: the file is missing, empty or not readable as video.
    """
    if pool not in ("cls", None):
        raise ZooError(f"pool is {pool!r}; choose 'cls' for the class token or None for all tokens.")
    model = load(model) if isinstance(model, str | os.PathLike) else model
    check_precision(precision, model.device)
    views = read_views(model, path, num_clips, num_crops)
    return _mean_over_views(model, views, lambda clip: model.forward_features(clip, pool=pool), precision)


def views_of(model: BaseModule, num_clips: int | None, num_crops: int | None) -> dict[str, Any]:
    """Arguments of `load_views` for the views that the model wants; None takes the defaults that `predict` documents.

    Raises:
        ZooError: a number is out of range, or the views take too much memory.
    """
    if num_clips is not None:
        check_range("num_clips", num_clips, CLIPS)
    if num_crops not in (None, 1, 3):
        raise ZooError(f"num_crops is {num_crops}; it has to be 1 or 3.")
    still, ssv2 = model.hparams.get("num_frames") is None, model.preprocessing["sampling"] == "ssv2"
    num_clips = num_clips or (1 if still else 2 if ssv2 else 4)
    num_crops = num_crops or (1 if still else 3)
    frames, side = model.preprocessing["num_frames"], model.preprocessing["image_size"]
    size = 3 * num_clips * num_crops * frames * side**2
    if size > VIEWS_BYTES:
        raise ZooError(f"{num_clips * num_crops} views of {frames} frames of {side} x {side} pixels take "
                       f"{size / 1e9:.0f} GB; ask for fewer clips, crops or frames.")  # fmt: skip
    return {**model.preprocessing, "num_clips": num_clips, "num_crops": num_crops}


def read_views(model: BaseModule, path: str | os.PathLike[str], num_clips: int | None, num_crops: int | None) -> Views:
    """The views of a file as the model wants them; see `views_of`."""
    return load_views(path, **views_of(model, num_clips, num_crops))


def score_views(
    model: BaseModule, views: Views, precision: str = "fp32", on_view: Callable[[], None] | None = None
) -> Tensor:
    """Mean over the views of a classifier's softmax, (num_classes,) on the CPU; `on_view` is called after each view."""
    return _mean_over_views(model, views, lambda clip: model(clip).float().softmax(dim=1), precision, on_view)


def value_of_views(
    model: BaseModule, views: Views, precision: str = "fp32", on_view: Callable[[], None] | None = None
) -> float:
    """Mean over the views of what a regressor predicts; arguments as for `score_views`."""
    return _mean_over_views(model, views, model, precision, on_view).item()


def rank(model: BaseModule, scores: Tensor, topk: int) -> list[Prediction]:
    """Scores (num_classes,) -> the `topk` best with their names."""
    names = model.class_names or [f"class {i}" for i in range(len(scores))]
    best = scores.topk(min(topk, len(scores)))
    pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return [Prediction(names[index], probability, index) for probability, index in pairs]


@contextmanager
def evaluating(model: BaseModule, precision: str = "fp32") -> Iterator[None]:
    """Put a model into eval mode, in a precision and without gradients, while the block runs."""
    training = model.training
    model.eval()
    try:
        with inference(precision, model.device):
            yield
    finally:
        model.train(training)


def check_finite(output: Tensor) -> Tensor:
    """Return what a model gave.

    Raises:
        ZooError: it has numbers that are not finite, which comes from the weights, since pixels are finite.
    """
    if not output.isfinite().all():
        raise ZooError("The model gives numbers that are not finite (NaN or infinite); its weights, mean or std are "
                       "damaged: convert or download it again.")  # fmt: skip
    return output


def to_device(model: Module, device: str) -> Module:
    """The model moved to a device; "auto" is a GPU where there is one.

    Raises:
        ZooError: the device cannot be used.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "meta":  # torch takes it, and computes nothing there
        raise ZooError("The device 'meta' cannot be used, since it holds no numbers; try --device cpu.")
    try:
        return model.to(device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ZooError(f"The device {device!r} cannot be used ({reason}); try --device cpu.") from error


def classifier(model: BaseModule | str) -> BaseModule:
    """The model, loaded where it is given by name; raise `ZooError` where it does not classify."""
    model = open_model(model) if isinstance(model, str | os.PathLike) else model
    if hasattr(model, "value_name"):
        raise ZooError(f"{type(model).__name__} predicts a number and no classes; use zoo.predict_value.")
    if not hasattr(model, "class_names"):
        raise ZooError(f"{type(model).__name__} has no classes to predict; use a classifier.")
    return model


def regressor(model: BaseModule | str) -> BaseModule:
    """The model, loaded where it is given by name; raise `ZooError` where it does not predict a number."""
    model = open_model(model) if isinstance(model, str | os.PathLike) else model
    if not hasattr(model, "value_name"):
        raise ZooError(f"{type(model).__name__} predicts no number; use a VideoRegressor.")
    return model


def _mean_over_views(
    model: BaseModule,
    views: Views,
    function: Callable[[Tensor], Tensor],
    precision: str,
    on_view: Callable[[], None] | None = None,
) -> Tensor:
    """Mean of `function` over the views, run one at a time so that memory does not grow with their number."""
    results = []
    with evaluating(model, precision):
        for view in views.video:
            results.append(function(view.unsqueeze(0).to(model.device)).float().cpu())
            if on_view is not None:
                on_view()
        return check_finite(torch.stack(results).mean(0)[0])
