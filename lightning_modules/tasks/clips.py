"""What classification and regression of clips share: one network with a linear head, and videos scored once."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from lightning_modules.base import BaseModule
from lightning_modules.checks import check_choice
from lightning_modules.errors import ModelError
from lightning_modules.nets.videomamba import VideoMamba, adapt_state_dict
from lightning_modules.nets.vivim import ViViM
from lightning_modules.training.optim import Optim

__all__ = ["ClipModule"]

_NETWORKS = {"videomamba": VideoMamba, "vivim": ViViM}


class ClipModule(BaseModule):
    """Abstract base of modules that see a clip through a VideoMamba, or a network of its form, with a linear head.

    A subclass passes the arguments below on, as ``**training``, calls `build` in its constructor, and says what the
    head's outputs mean: `loss_of`, `scores_of`, `evaluate`.

    Args:
        drop: dropout before the head.
        drop_path: stochastic depth of the last block, growing linearly from 0.
        init: "mamba" or "official", see `lightning_modules.nets.bimamba.BiMamba`.
        activations: "speed", "balanced" or "memory": what blocks keep for the backward pass, see
            `lightning_modules.nets.bimamba.set_activations`.
        compile: run the blocks through torch.compile; the first steps then take minutes.
        init_from: weights that the ``lightning`` command starts from: a registered name, a model folder, a ``.ckpt`` or
            a Hub repository. The head is replaced where the classes differ, or what a predicted number is; see
            `zoo.initialise`.
        freeze_backbone: train the head only (linear probe).
        optim: optimiser and schedule, see `lightning_modules.Optim`.

    Attributes:
        metric: what `evaluate` adds to; its `compute` gives names and numbers, ``samples`` among them.
        predicted: key of the scores in what `predict_step` gives.
    """

    net: VideoMamba
    metric: Metric
    predicted = "scores"

    def __init__(
        self,
        *,
        drop: float = 0.0,
        drop_path: float = 0.0,
        init: str = "mamba",
        activations: str = "balanced",
        compile: bool = False,
        init_from: str | None = None,
        freeze_backbone: bool = False,
        optim: Optim = Optim(),
        _class_path: str | None = None,  # from a checkpoint: Lightning passes on all that it finds there
    ) -> None:
        super().__init__()
        self.save_config(locals())

    def build(self, outputs: int) -> None:
        """Make ``self.net``, with so many outputs of its head, from the arguments that `save_config` recorded."""
        h, args = self.hparams, self.training_arguments
        network = h.get("network", "videomamba")
        check_choice("network", network, _NETWORKS)
        self.net = _NETWORKS[network](
            outputs, h.embed_dim, h.depth, h.num_frames, h.image_size, h.patch_size, h.tubelet_size,
            drop=args["drop"], drop_path=args["drop_path"], init=args["init"],
            activations=args["activations"], scan_order=h.scan_order,
        )  # fmt: skip
        if args["freeze_backbone"]:
            self.net.requires_grad_(False)
            self.net.head.requires_grad_(True)
        self.set_normalisation(h.mean, h.std)

    @abstractmethod
    def loss_of(self, output: Tensor, batch: dict[str, Any]) -> Tensor:
        """Mean loss of what `forward` gives for a training batch."""

    @abstractmethod
    def scores_of(self, output: Tensor) -> Tensor:
        """Output of `forward` for one view of each video -> what is averaged over the views, float32 (B, ...)."""

    @abstractmethod
    def evaluate(self, scores: Tensor, batch: dict[str, Any]) -> dict | None:
        """Add a batch's scores, averaged over the views, to `metric`; return what a test step gives the report."""

    def forward_features(self, video: Tensor, pool: str | None = "cls") -> Tensor:
        """Clips as in `forward` -> features after the final norm.

        They are the class token (B, embed_dim), or with ``pool=None`` all tokens (B, 1 + tokens, embed_dim).
        """
        x = self._network_input(video)
        return self.net.forward_tokens(x) if pool is None else self.net.forward_features(x)

    def _network_input(self, video: Tensor) -> Tensor:
        """Normalised clips (B, 3, T, H, W), or images (B, 3, H, W) for the image model."""
        if self.hparams.num_frames is not None:
            return self.normalise(video)
        images = video.unsqueeze(2) if video.ndim == 4 else video
        if images.shape[2] != 1:
            frames = images.shape[2]
            raise ModelError(f"This is an image model and the clip has {frames} frames; pass one frame at a time.")
        return self.normalise(images).squeeze(2)

    def adapt_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of this model at other frames or another resolution, with position embeddings interpolated to fit."""
        net = {k.removeprefix("net."): v for k, v in state_dict.items() if k.startswith("net.")}
        rest = {k: v for k, v in state_dict.items() if not k.startswith("net.")}
        return {**rest, **{f"net.{k}": v for k, v in adapt_state_dict(net, self.net).items()}}

    @override
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = self.loss_of(self(batch["video"]), batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["video"]), sync_dist=True)
        return loss

    def predict_scores(self, video: Tensor) -> Tensor:
        """Views (B, V, 3, T, H, W), or one view (B, 3, T, H, W) -> mean over the views of `scores_of`, (B, ...)."""
        views = video.unbind(1) if video.ndim == 6 else [video]
        return torch.stack([self.scores_of(self(view)) for view in views]).mean(dim=0)

    @override
    def log_results(self, stage: str) -> None:
        result = self.metric.compute()
        self.metric.reset()
        result.pop("samples")
        self.log_dict({f"{stage}/{k}": v for k, v in result.items()}, prog_bar=True, sync_dist=True)

    @override
    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.evaluate(self.predict_scores(batch["video"]), batch)

    @override
    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict | None:
        return self.evaluate(self.predict_scores(batch["video"]), batch)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict:
        """Scores (B', ...) on the CPU with the paths they belong to; unreadable videos are left out.

        ``truth`` (B',) stands beside them where the data has labels or numbers.
        """
        kept = [i for i, index in enumerate(batch["index"].tolist()) if index >= 0]
        scores = self.predict_scores(batch["video"]).cpu()
        found = {"path": [batch["path"][i] for i in kept], self.predicted: scores[kept]}
        truth = batch.get("label", batch.get("value"))
        return found if truth is None else {**found, "truth": truth.cpu()[kept]}
