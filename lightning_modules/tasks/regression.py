"""A number for each video with VideoMamba."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from lightning_modules.base import IMAGENET_MEAN, IMAGENET_STD
from lightning_modules.errors import ModelError
from lightning_modules.tasks.clips import ClipModule
from lightning_modules.training.metrics import SampleError

__all__ = ["VideoRegressor"]


class VideoRegressor(ClipModule):
    """VideoMamba that predicts one number for a clip, or for a still image where ``num_frames`` is None.

    The network learns by how much the number differs from ``value_mean``, with the squared error as the loss (LVU's
    like ratio and views: docs/protocol.md, sections 4 and 10). Validation and testing average the numbers predicted
    for all views of a video and count every video once, also across processes.

    Args:
        embed_dim: width of a token; the paper's Ti, S, M, B have 192, 384, 576, 768.
        depth: number of blocks; the paper's Ti, S, M, B have 24, 24, 32, 24.
        num_frames: frames of a clip; None makes the image model.
        image_size: side of the square input in pixels.
        patch_size: side of a patch in pixels.
        tubelet_size: frames per token.
        value_name: what the number is, such as "like_ratio"; None takes the data's name at the start of a fit.
        value_mean: added to what the network says; None takes the data's at the start of a fit, and is 0 without data.
        mean: per channel, of inputs in [0, 1].
        std: per channel, of inputs in [0, 1].
        short_side: pixels of the short side before cropping at test time; None means ``image_size``.
        sampling: how frames are picked, see `datamodules.video.sampling`.
        frame_stride: frames between two picked ones where ``sampling`` is "dense".
        interpolation: "bilinear", or "bicubic" (with antialiasing, as the image models were trained).
        scan_order: order in which the blocks scan a clip's tokens, see `lightning_modules.nets.scan_orders`.
        training: optimiser, start and regularisation, see `lightning_modules.tasks.clips.ClipModule`.

    Raises:
        ModelError: sizes that do not fit; data with classes, or with another number than the model's.
    """

    predicted = "values"

    def __init__(
        self,
        embed_dim: int = 192,
        depth: int = 24,
        num_frames: int | None = 16,
        image_size: int = 224,
        patch_size: int = 16,
        tubelet_size: int = 1,
        value_name: str | None = None,
        value_mean: float | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        short_side: int | None = None,
        sampling: str = "sparse",
        frame_stride: int = 4,
        interpolation: str = "bilinear",
        scan_order: str = "spatial_first",
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.save_config(locals())
        self.value_name, self.value_mean = value_name, value_mean
        self.build(1)
        self.metric = SampleError()

    @override
    def setup(self, stage: str) -> None:
        data: Any = self._data
        name = getattr(data, "value_name", None)
        if name is not None:
            self.adopt_value(name, data.value_mean)
        elif hasattr(data, "class_names"):
            raise ModelError("The data has classes and no number for each video; train a VideoClassifier.")

    def adopt_value(self, name: str, mean: float) -> None:
        """Take the name and the mean of the data's number where the model does not know them.

        Raises:
            ModelError: the model predicts another number.
        """
        if self.value_name not in (None, name):
            raise ModelError(f"The model predicts {self.value_name} and the data has {name}; start from its weights "
                             "with model.init_from, or take other data.")  # fmt: skip
        self.value_name = self.hparams["value_name"] = name
        if self.value_mean is None:
            self.value_mean = self.hparams["value_mean"] = mean

    def forward(self, video: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W), uint8 0..255 or float 0..1 (not clipped) -> numbers (B,), float32.

        The image model takes T = 1, or images (B, 3, H, W).
        """
        return self.net(self._network_input(video)).squeeze(1).float() + (self.value_mean or 0.0)

    def loss_of(self, output: Tensor, batch: dict[str, Any]) -> Tensor:
        """Mean squared difference of numbers (B,) from a training batch's values."""
        return F.mse_loss(output, batch["value"].float())

    def scores_of(self, output: Tensor) -> Tensor:
        """The numbers themselves."""
        return output

    @override
    def evaluate(self, scores: Tensor, batch: dict[str, Any]) -> None:
        self.metric.update(scores, batch["value"], batch["index"])
