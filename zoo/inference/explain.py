"""Which places and times of a clip support a class: by occlusion of space-time tubes, or by integrated gradients.

    clip   T frames of H x W pixels          tubes   `tube` frames of `tube` x `tube` pixels, half overlapping
           +-----------+                             +---+---+--
          /           /|                            /   /   /  support of a tube: what the log odds of the class
         +-----------+ |                           +---+---+   lose where the clip shows the baseline instead
         |           | +                           |   |   |
         |           |/   T                        +---+---+   heat of a pixel: mean over the tubes that cover it
         +-----------+                             |   |   |

Log odds are the class's logit minus the log of the sum of the others' exponentials: where the model is sure, the
probability hardly moves, and they do. Occlusion (Zeiler and Fergus, arXiv 1311.2901, section 4.2, here in space and
time) covers one tube after the other. Integrated gradients (Sundararajan et al., arXiv 1703.01365) spread the
difference of log odds between the clip and the baseline over all pixels, and each tube has the sum of its pixels'.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor

from lightning_modules.base import BaseModule
from zoo.build import load
from zoo.errors import ZooError, hint
from zoo.extras import need
from zoo.inference.predict import check_finite, classifier, evaluating, read_views
from zoo.limits import check_range

if TYPE_CHECKING:
    from captum.attr import IntegratedGradients

__all__ = ["BASELINES", "METHODS", "STEPS", "Explanation", "cover", "explain", "heat_of"]

METHODS = ("occlusion", "integrated-gradients")
BASELINES = ("mean", "blur")
"""What a clip shows where it is covered: its mean colour, or itself, blurred by an eighth of its side."""
STEPS = (1, 1000)

_PIXELS_AT_ONCE, _PIXELS_AT_ONCE_CPU = 256 * 224**2, 8 * 224**2
"""Of the clips that the model sees at once: enough for a GPU; a CPU is quickest where little leaves its cache."""


class Explanation(NamedTuple):
    """How much each place and time of a clip supports a class.

    Attributes:
        heat: float32 (T, H, W) on the CPU, in log odds per tube: above 0 what supports the class, below 0 what speaks
            against it.
        label: the class.
        probability: of the class, for the clip as it is, in [0, 1].
        frames: uint8 (T, 3, H, W), what the model saw.
        seconds: float64 (T,), times of the frames since the first one of the file.
    """

    heat: Tensor
    label: str
    probability: float
    frames: Tensor
    seconds: np.ndarray


def explain(
    model: BaseModule | str,
    path: str | os.PathLike[str],
    target: str | int | None = None,
    method: str = "occlusion",
    *,
    tube: tuple[int, int] | None = None,
    baseline: str = "mean",
    steps: int = 32,
    on_step: Callable[[int, int], None] | None = None,
) -> Explanation:
    """Return how much each place and time of a video (or still image) supports a class.

    The model sees one clip, spread over the video as it was trained, and its middle square.

    Args:
        model: a video or image classifier, or anything `zoo.load` takes.
        path: video or image file.
        target: the class, by its label or index; None is the most probable one.
        method: "occlusion", one forward pass per tube; or "integrated-gradients", `steps` forward and backward passes.
        tube: frames and pixels that are judged together. None is a quarter of the frames, and of the side a quarter
            for occlusion and a sixth for integrated gradients, which cost the same whatever the tubes.
        baseline: one of `BASELINES`.
        steps: of the way from the baseline to the clip, for integrated gradients.
        on_step: called with the number of finished passes and of all, as they change.

    Raises:
        DecodeError: the file is missing, empty or not readable as video.
        ZooError: the model is no classifier, or gives scores that are not finite; there is no such class, method or
            baseline; a number is out of range; Captum is missing.
    """
    for name, value, known in (("method", method, METHODS), ("baseline", baseline, BASELINES)):
        if value not in known:
            raise ZooError(f"{name} is {value!r}; choose one of {', '.join(known)}.")
    check_range("steps", steps, STEPS)
    if method == "integrated-gradients":
        _captum()
    model = classifier(load(model) if isinstance(model, str | os.PathLike) else model)
    tube = _tube_of(model, tube, method)
    views = read_views(model, path, 1, 1)
    clip = views.video[0]
    with evaluating(model):
        scores = check_finite(model(clip[None].to(model.device)).float())[0].cpu()
    names = model.class_names or [f"class {i}" for i in range(len(scores))]
    index = int(scores.argmax()) if target is None else _index_of(target, names)
    heat = heat_of(model, clip, index, method, tube=tube, baseline=baseline, steps=steps, on_step=on_step)
    return Explanation(heat, names[index], scores.softmax(0)[index].item(), clip.transpose(0, 1), views.seconds[0])


def heat_of(
    model: BaseModule,
    clip: Tensor,
    index: int,
    method: str,
    *,
    tube: tuple[int, int],
    baseline: str,
    steps: int = 32,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Heat of a clip, float32 (T, H, W) on the CPU; the other arguments are those of `explain`.

    Args:
        clip: uint8 (3, T, H, W).
        index: position of the class in the logits.
        tube: frames and pixels, each at most the clip's.
    """
    report = on_step or (lambda done, total: None)
    covered = cover(clip, baseline)
    tubes = list(_tubes(clip.shape[1:], tube))
    if method == "occlusion":
        supports = _occluded(model, clip, covered, index, tubes, report)
    else:
        pixels = _integrated(model, clip, covered, index, steps, report)
        supports = torch.stack([pixels[place].sum() for place in tubes])
    heat, count = torch.zeros(clip.shape[1:]), torch.zeros(clip.shape[1:])
    for place, support in zip(tubes, supports, strict=True):
        heat[place] += support
        count[place] += 1
    return check_finite(heat / count)


def cover(clip: Tensor, baseline: str) -> Tensor:
    """What a clip shows where it is covered: uint8 (3, T, H, W), as the clip; `baseline` is one of `BASELINES`."""
    if baseline == "mean":
        return clip.float().mean(dim=(1, 2, 3), keepdim=True).round().to(torch.uint8).expand_as(clip)
    sigma = clip.shape[-1] / 8
    reach = min(int(2 * sigma), clip.shape[-1] - 1)  # padding by reflection is shorter than the picture
    return F.gaussian_blur(clip.transpose(0, 1), [2 * reach + 1] * 2, [sigma] * 2).transpose(0, 1)


Tube = tuple[slice, slice, slice]
"""Frames, rows and columns of a clip that are judged together."""


def _tubes(shape: tuple[int, ...], tube: tuple[int, int]) -> Iterator[Tube]:
    """Half overlapping tubes that cover a clip (T, H, W); the last ones end with it."""
    sizes = tube[0], tube[1], tube[1]
    starts = []
    for length, size in zip(shape, sizes, strict=True):
        last = length - size
        starts.append(sorted({*range(0, last, max(1, size // 2)), last}))
    for corner in itertools.product(*starts):
        frames, rows, columns = (slice(start, start + size) for start, size in zip(corner, sizes, strict=True))
        yield frames, rows, columns


def _occluded(
    model: BaseModule,
    clip: Tensor,
    covered: Tensor,
    index: int,
    tubes: list[Tube],
    report: Callable[[int, int], None],
) -> Tensor:
    """What the log odds lose without each tube, (tubes,)."""
    found, total = [], len(tubes) + 1
    clip, covered = clip.to(model.device), covered.to(model.device)
    with evaluating(model):
        whole = _log_odds(model(clip[None]), index)
        at_once = _clips_at_once(clip, model.device)
        for start in range(0, len(tubes), at_once):
            places = tubes[start : start + at_once]
            shown = clip.expand(len(places), *clip.shape).clone()
            for number, (frames, rows, columns) in enumerate(places):
                shown[number, :, frames, rows, columns] = covered[:, frames, rows, columns]
            found.append((whole - _log_odds(model(shown), index)).cpu())
            report(1 + sum(map(len, found)), total)
    return torch.cat(found)


def _integrated(
    model: BaseModule, clip: Tensor, covered: Tensor, index: int, steps: int, report: Callable[[int, int], None]
) -> Tensor:
    """Integrated gradients of the log odds, summed over the colours, (T, H, W)."""
    integrated_gradients = _captum()
    done = 0

    def score(video: Tensor) -> Tensor:
        nonlocal done
        done += len(video)
        report(min(done, steps), steps)
        return _log_odds(model(video), index)

    with evaluating(model), torch.inference_mode(False):  # gradients are wanted after all
        inputs, baselines = (video[None].to(model.device) / 255 for video in (clip, covered))
        found: Tensor = integrated_gradients(score).attribute(
            inputs, baselines, n_steps=steps, internal_batch_size=_clips_at_once(clip, model.device)
        )
    return found[0].sum(0).detach().float().cpu()


def _log_odds(logits: Tensor, index: int) -> Tensor:
    """Logits (B, classes) -> log odds of a class against all others (B,)."""
    logits = logits.float()
    others = torch.cat([logits[:, :index], logits[:, index + 1 :]], dim=1)
    return logits[:, index] - (others.logsumexp(1) if others.shape[1] else 0.0)


def _clips_at_once(clip: Tensor, device: torch.device) -> int:
    return max(1, (_PIXELS_AT_ONCE_CPU if device.type == "cpu" else _PIXELS_AT_ONCE) // clip[0].numel())


def _tube_of(model: BaseModule, tube: tuple[int, int] | None, method: str) -> tuple[int, int]:
    frames, side = model.preprocessing["num_frames"], model.preprocessing["image_size"]
    if tube is None:
        return max(1, frames // 4), max(1, side // (4 if method == "occlusion" else 6))
    check_range("the frames of tube", tube[0], (1, frames))
    check_range("the pixels of tube", tube[1], (1, side))
    return tube


def _index_of(target: str | int, names: list[str]) -> int:
    if isinstance(target, int):
        check_range("target", target, (0, len(names) - 1))
        return target
    if target not in names:
        raise ZooError(f"The model has no class {target!r}; {hint(target, names, 'choose one of its labels.')}")
    return names.index(target)


def _captum() -> "type[IntegratedGradients]":
    need("captum", "explain", "Integrated gradients need Captum")
    from captum.attr import IntegratedGradients

    found: type[IntegratedGradients] = IntegratedGradients
    return found
