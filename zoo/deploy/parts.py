"""The part of a model that becomes one file.

That is a module from one tensor to one tensor, inputs to try it on, and what users of the file have to know.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.synthetic.motion import clip_spec, render
from datamodules.synthetic.writing import write_video
from datamodules.video.views import load_views
from lightning_modules.base import BaseModule
from zoo.deploy.formats import INPUTS, OUTPUTS, TOWERS
from zoo.errors import ZooError

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTextModelWithProjection

__all__ = ["Part", "part_of"]

_TEXTS = ("a red ball moves to the left", "something grows and turns")


@dataclass(frozen=True)
class Part:
    """What is exported of a model.

    Attributes:
        module: maps the input to the output.
        input: name of the input: ``video`` (batch, 3, T, H, W), or ``ids`` (batch, words).
        output: name of the output: ``logits``, ``value``, ``features`` or ``embedding``; (batch, ...).
        metadata: texts by their names; other values are JSON (docs/deploy.md).
        random: gives so many random inputs.
        real: one input that was read as `zoo.predict` reads it, (1, ...).
    """

    module: nn.Module
    input: str
    output: str
    metadata: dict[str, str]
    random: Callable[[int], Tensor]
    real: Tensor


@contextmanager
def part_of(
    model: BaseModule, *, output: str = "scores", tower: str | None = None, input: str = "uint8"
) -> Iterator[Part]:
    """The part of a model that is asked for; while the block runs, the model is in eval mode, without gradients.

    Args:
        model: on the CPU.
        output: one of `zoo.deploy.formats.OUTPUTS`.
        tower: one of its `TOWERS` for models of text and video, which have two; None for all others.
        input: one of its `INPUTS`, for videos.

    Raises:
        ZooError: the model has no such part, or none that is a function of one tensor.
    """
    for name, value, known in (("output", output, OUTPUTS), ("input", input, INPUTS)):
        if value not in known:
            raise ZooError(f"{name} is {value!r}; choose {' or '.join(known)}.")
    _check_part(model, output, tower)
    if model.device.type != "cpu":
        raise ZooError(f"The model is on {model.device} and is exported from the CPU; pass model.cpu().")
    training = {module for module in model.modules() if module.training}
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval().requires_grad_(False)
    try:
        part = _text_part(model) if tower == "text" else _video_part(model, output, input)
        part.module.eval()
        yield part
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def _check_part(model: BaseModule, output: str, tower: str | None) -> None:
    if not isinstance(model, BaseModule):
        raise ZooError(f"{type(model).__name__} is not a model of the zoo; pass a BaseModule, or a name that zoo.load "
                       "takes.")  # fmt: skip
    kind = type(model).__name__
    if hasattr(model, "answer"):
        raise ZooError(f"{kind} answers questions, and its text is part of the input; only models whose input is a "
                       "video or a text are exported.")  # fmt: skip
    if hasattr(model, "encode_text"):
        if tower not in TOWERS:
            raise ZooError(f"{kind} has two towers, and each becomes a file; pass tower text or video.")
        if tower == "text" and not hasattr(model.net, "tokenizer"):
            raise ZooError(f"The text tower of {kind} is part of its fusion encoder and is not exported; pass tower "
                           "video.")  # fmt: skip
    elif tower is not None:
        raise ZooError(f"{kind} has no tower for text; omit tower.")
    elif output == "features" and not hasattr(model, "forward_features"):
        raise ZooError(f"{kind} has no features; export its output.")


class _Features(nn.Module):
    def __init__(self, model: BaseModule) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor) -> Tensor:
        features: Tensor = self.model.forward_features(video)
        return features


class _Scores(_Features):
    def forward(self, video: Tensor) -> Tensor:
        scores: Tensor = self.model(video)
        return scores


class _Text(nn.Module):
    """CLIP's text tower: ids (M, L) -> unit vectors (M, D)."""

    def __init__(self, tower: "CLIPModel | CLIPTextModelWithProjection") -> None:
        super().__init__()
        self.text_model, self.text_projection = tower.text_model, tower.text_projection

    def forward(self, ids: Tensor) -> Tensor:
        from lightning_modules.nets.clip_tower import encode_text  # imports transformers

        return F.normalize(encode_text(self, ids).float(), dim=-1)


def _video_part(model: BaseModule, output: str, input: str) -> Part:
    prepared = model.preprocessing
    shape = (3, prepared["num_frames"], prepared["image_size"], prepared["image_size"])
    metadata = {
        "model": type(model).__name__,
        "input": input,
        "preprocessing": json.dumps(
            {**prepared, "mean": model.mean.flatten().tolist(), "std": model.std.flatten().tolist()}
        ),
        "still": json.dumps(model.hparams.get("num_frames", 1) is None),
    }
    # Pretraining has no scores, and the features are what it is for.
    features_only = not hasattr(model, "encode_text") and hasattr(type(model), "classifier_weights")
    if output == "features" or features_only:
        module, name = _Features(model), "features"
    else:
        module, name = _Scores(model), "output"
        if hasattr(model, "encode_text"):
            name = "embedding"
        elif hasattr(model, "value_name"):
            name = "value"
            metadata["value_name"] = json.dumps(model.value_name)
        elif hasattr(model, "class_names"):
            name = "logits"
            metadata["class_names"] = json.dumps(model.class_names)
    metadata["output"] = name
    generator = torch.Generator().manual_seed(0)

    def random(batch: int) -> Tensor:
        if input == "uint8":
            return torch.randint(0, 256, (batch, *shape), dtype=torch.uint8, generator=generator)
        return torch.rand(batch, *shape, generator=generator)

    real = _generated_clip(prepared)
    return Part(module, "video", name, metadata, random, real if input == "uint8" else real / 255)


def _generated_clip(prepared: dict[str, Any]) -> Tensor:
    """A clip of a moving shape, written as MP4 and read as a model wants it: uint8 (1, 3, T, H, W)."""
    frames = render(clip_spec(0, "test", 0, "grow", size=(96, 80), num_frames=max(8, min(prepared["num_frames"], 64))))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, frames, 12)
        return load_views(path, **prepared).video


def _text_part(model: BaseModule) -> Part:
    net: Any = model.net  # with a tokenizer and CLIP's text tower, see `_check_part`
    tokenizer = net.tokenizer
    ids = tokenizer(list(_TEXTS[:1]))
    words, end = tokenizer.max_words, int(ids.max())
    tower = getattr(net, "clip", None) or net.text
    metadata = {
        "model": type(model).__name__,
        "input": "int64",
        "output": "embedding",
        "tokenizer": tokenizer.as_json(),
        "max_words": str(words),
        "padding": str(end),
    }
    generator = torch.Generator().manual_seed(0)

    def random(batch: int) -> Tensor:
        found = torch.randint(0, end, (batch, words), generator=generator)
        found[:, -1] = end
        return found

    return Part(_Text(tower), "ids", "embedding", metadata, random, F.pad(ids, (0, words - ids.shape[1]), value=end))
