"""Image and video classification with VideoMamba and ViViM."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from lightning_modules.base import IMAGENET_MEAN, IMAGENET_STD
from lightning_modules.errors import ModelError
from lightning_modules.tasks.clips import ClipModule
from lightning_modules.training.metrics import SampleAccuracy

__all__ = ["VideoClassifier"]


class VideoClassifier(ClipModule):
    """VideoMamba classifier for clips, or for still images where ``num_frames`` is None.

    Validation and testing average the softmax over all views of a video and count every video once, also across
    processes.

    Args:
        num_classes: number of classes. None is filled in from the data by the ``lightning`` command.
        embed_dim: width of a token; the paper's Ti, S, M, B have 192, 384, 576, 768.
        depth: number of blocks; the paper's Ti, S, M, B have 24, 24, 32, 24.
        num_frames: frames of a clip; None makes the image model.
        image_size: side of the square input in pixels.
        patch_size: side of a patch in pixels.
        tubelet_size: frames per token.
        class_names: names of the classes in the order of the logits.
        mean: per channel, of inputs in [0, 1].
        std: per channel, of inputs in [0, 1].
        short_side: pixels of the short side before cropping at test time; None means ``image_size``.
        sampling: how frames are picked: "sparse" (spread over the video), "ssv2" (the same, as Something-Something V2
            models were tested) or "dense" (consecutive with a stride); see `datamodules.video.sampling`.
        frame_stride: frames between two picked ones where ``sampling`` is "dense".
        interpolation: "bilinear", or "bicubic" (with antialiasing, as the image models were trained).
        scan_order: order in which the blocks scan a clip's tokens: "spatial_first" or another one of
            `lightning_modules.nets.scan_orders`. Weights fit all of them, but were trained for one.
        network: "videomamba", or "vivim", see `lightning_modules.nets.vivim.ViViM`. Weights fit both, but were trained
            for one.
        label_smoothing: share of the target spread over all classes.
        training: optimiser, start and regularisation, see `lightning_modules.tasks.clips.ClipModule`.

    Raises:
        ModelError: class names that do not match ``num_classes``; sizes that do not fit; data with other classes than
            the model.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        embed_dim: int = 192,
        depth: int = 24,
        num_frames: int | None = 16,
        image_size: int = 224,
        patch_size: int = 16,
        tubelet_size: int = 1,
        class_names: list[str] | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        short_side: int | None = None,
        sampling: str = "sparse",
        frame_stride: int = 4,
        interpolation: str = "bilinear",
        scan_order: str = "spatial_first",
        network: str = "videomamba",
        *,
        label_smoothing: float = 0.1,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.save_config(locals())
        if num_classes is None:
            raise ModelError("num_classes is None; a classifier needs at least 1.")
        if class_names is not None and len(class_names) != num_classes:
            raise ModelError(
                f"class_names lists {len(class_names)} names for num_classes {num_classes}; make them agree."
            )
        self.num_classes = num_classes
        self.class_names = None if class_names is None else list(class_names)
        self.build(num_classes)
        self.metric = SampleAccuracy(num_classes)

    @override
    def setup(self, stage: str) -> None:
        data = self._data
        number = getattr(data, "value_name", None)
        if number is not None:
            raise ModelError(f"The data has a number for each video, {number}, and no classes; "
                             "train a VideoRegressor.")  # fmt: skip
        names = getattr(data, "class_names", None)
        if names is not None:
            self.adopt_classes(names)

    def adopt_classes(self, names: Sequence[str]) -> None:
        """Takes the data's class names where the model has none.

        Raises:
            ModelError: the model has another number of classes, or other names.
        """
        if len(names) != self.num_classes:
            raise ModelError(f"The data has {len(names)} classes and the model {self.num_classes}; "
                             f"set model.num_classes to {len(names)}.")  # fmt: skip
        if self.class_names is None:
            self.class_names = self.hparams["class_names"] = list(names)
        elif self.class_names != list(names):
            first = next(i for i, pair in enumerate(zip(self.class_names, names, strict=True)) if pair[0] != pair[1])
            ours, theirs = self.class_names[first], names[first]
            raise ModelError(f"Class {first} is {ours!r} in the model and {theirs!r} in the data; "
                             "give the data the model's class order, or the model class_names: null.")  # fmt: skip

    def forward(self, video: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W), uint8 0..255 or float 0..1 (not clipped) -> logits (B, num_classes).

        The image model takes T = 1, or images (B, 3, H, W).
        """
        return self.net(self._network_input(video))

    def loss_of(self, output: Tensor, batch: dict[str, Any]) -> Tensor:
        """Mean cross-entropy of logits (B, num_classes) with a training batch's labels, or its targets where mixed."""
        target = batch.get("target", batch["label"])
        return F.cross_entropy(output.float(), target, label_smoothing=self.training_arguments["label_smoothing"])

    def scores_of(self, output: Tensor) -> Tensor:
        """Logits (B, num_classes) -> probabilities, of which the mean over the views is taken."""
        return output.float().softmax(dim=1)

    @override
    def evaluate(self, scores: Tensor, batch: dict[str, Any]) -> dict[str, Any]:
        loss = F.nll_loss(scores.clamp_min(1e-12).log(), batch["label"], reduction="none")
        self.metric.update(scores, batch["label"], batch["index"], loss)
        return {"scores": {"class": scores}, "truth": {"class": batch["label"]}, "names": {"class": self.class_names}}
