"""Masked pretraining: what the student makes of the unmasked tokens is aligned with CLIP (VideoMamba, section 3.3)."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lightning_modules.base import IMAGENET_MEAN, IMAGENET_STD
from lightning_modules.errors import ModelError
from lightning_modules.nets.masked_videomamba import MaskedVideoMamba, aligned_blocks, take
from lightning_modules.nets.masking import Generators, draw_visible, num_visible
from lightning_modules.nets.videomamba import adapt_state_dict
from lightning_modules.tasks.taught_by_clip import TaughtByClip
from lightning_modules.training.losses import ALIGNMENT_LOSSES, alignment_loss
from lightning_modules.training.metrics import SampleMean
from lightning_modules.training.optim import Optim

__all__ = ["MaskedPretraining"]


class MaskedPretraining(TaughtByClip):
    """Learns from clips without labels: the student sees the unmasked tokens of a clip, a frozen CLIP all of it.

    The student's features of the tokens it saw, projected by a decoder, are pulled towards the teacher's. A trained one
    is the start of a classifier (``init_from``), which takes the network and leaves the decoder.

    The variant "official" mirrors the published code, for its weights; "all_blocks" is the default. They differ in

    - the student's last feature, see `lightning_modules.nets.masked_videomamba.MaskedVideoMamba`;
    - the teacher's features: without CLIP's last norm ("official"), or with it, as CLIP projects them;
    - the teacher's pixels: normalised with the student's mean and deviation ("official"), or CLIP's own.

    Args:
        embed_dim: width of a token; the paper's M has 576.
        depth: number of blocks; the paper's M has 32.
        num_frames: frames of a clip.
        image_size: side of the square input in pixels.
        patch_size: side of a patch in pixels.
        tubelet_size: frames per token; the teacher sees the middle frame of each.
        target_dim: width of the teacher's features after its projection: 512 of CLIP's B/16, 768 of L/14.
        align_layers: how many blocks are aligned, the last one included, each with a decoder.
        align_interval: blocks of the student between two aligned ones.
        variant: "all_blocks" or "official".
        mean: per channel, of inputs in [0, 1].
        std: per channel, of inputs in [0, 1].
        short_side: pixels of the short side before cropping in validation; None means ``image_size``.
        sampling: how frames are picked, see `datamodules.video.sampling`.
        frame_stride: frames between two picked ones where ``sampling`` is "dense".
        interpolation: "bilinear" or "bicubic".
        teacher_interval: blocks of the teacher between two aligned ones.
        norm: "l2" brings features and targets to unit length before the loss; "none" leaves them.
        loss: "l2" (2 - 2 cos), "mse" or "smooth_l1", the mean over tokens; see `lightning_modules.training.losses`.
        optim: optimiser and schedule, see `lightning_modules.Optim`.
        taught: the teacher and the masks, see `lightning_modules.tasks.taught_by_clip.TaughtByClip`.

    Raises:
        ModelError: options that do not exist or do not fit together.
    """

    net: MaskedVideoMamba

    def __init__(
        self,
        embed_dim: int = 192,
        depth: int = 24,
        num_frames: int = 8,
        image_size: int = 224,
        patch_size: int = 16,
        tubelet_size: int = 1,
        target_dim: int = 512,
        align_layers: int = 1,
        align_interval: int = 1,
        variant: str = "all_blocks",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        short_side: int | None = None,
        sampling: str = "ssv2",
        frame_stride: int = 4,
        interpolation: str = "bilinear",
        *,
        teacher_interval: int = 1,
        norm: str = "l2",
        loss: str = "l2",
        optim: Optim = Optim(warmup_lr=0.0, betas=(0.9, 0.95)),
        **taught: Any,
    ) -> None:
        super().__init__(**taught)
        self.save_config(locals())
        args = self.training_arguments
        self.net = MaskedVideoMamba(
            embed_dim, depth, num_frames, image_size, patch_size, tubelet_size, target_dim, align_layers,
            align_interval, variant, drop_path=args["drop_path"], init=args["init"],
            activations=args["activations"],
        )  # fmt: skip
        num_visible(args["mask_type"], args["mask_ratio"], self.net.frames, self.net.grid_size)
        if norm not in ("l2", "none") or loss not in ALIGNMENT_LOSSES:
            raise ModelError(f"norm is {norm!r} and loss {loss!r}; choose 'l2' or 'none', and one of "
                             f"{', '.join(ALIGNMENT_LOSSES)}.")  # fmt: skip
        if norm == "none" and loss == "l2":
            raise ModelError("loss 'l2' is 2 - 2 cos, which needs unit vectors; set norm: l2, or loss: mse.")
        self.set_normalisation(mean, std)
        self.mean_loss = SampleMean()

    def setup(self, stage: str) -> None:
        """Fetches a teacher given by its name, before the first step."""
        self.teacher  # noqa: B018

    @functools.cached_property
    def _teacher_blocks(self) -> list[int]:
        """Numbers of the teacher's blocks that are aligned, rising."""
        try:
            interval = self.training_arguments["teacher_interval"]
            return aligned_blocks(self.teacher.depth, self.hparams.align_layers, interval)
        except ValueError as error:
            raise ModelError(f"The teacher: {error}") from error

    def forward(self, video: Tensor, visible: Tensor | None = None) -> Tensor:
        """The teacher's features as the student guesses them.

        Args:
            video: clips (B, 3, T, H, W), uint8 0..255 or float 0..1 (not clipped).
            visible: positions of the tokens that the student sees, see `draw_visible`; None shows all.

        Returns:
            (align_layers, B, tokens, target_dim), the earliest block first, class token first; not of unit length.
        """
        return self.net(self.normalise(video), visible)

    def forward_features(self, video: Tensor, pool: str | None = "cls") -> Tensor:
        """Clips as in `forward`, unmasked -> the last aligned features, before the decoder.

        They are the class token (B, embed_dim), or with ``pool=None`` all tokens (B, 1 + tokens, embed_dim).
        """
        tokens = self.net.aligned_features(self.normalise(video))[-1]
        return tokens if pool is None else tokens[:, 0]

    def adapt_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of this model, or of a classifier without its head, at other frames or another resolution."""
        net = {key.removeprefix("net."): tensor for key, tensor in state_dict.items() if key[:9] != "net.head."}
        adapted = {f"net.{key}": tensor for key, tensor in adapt_state_dict(net, self.net).items()}
        decoder = {key: tensor for key, tensor in self.state_dict().items() if key.startswith("net.clip_decoder.")}
        return decoder | adapted

    @staticmethod
    def classifier_weights(state_dict: dict[str, Tensor], init_args: dict) -> dict[str, Tensor]:
        """What a `VideoClassifier` starts from, given weights and config of this module: all but the decoder.

        The final norm of the variant "official" was never trained; the published code does not take it over, and the
        classifier's stays 1 (docs/protocol.md, section 6).
        """
        weights = {key: tensor for key, tensor in state_dict.items() if not key.startswith("net.clip_decoder.")}
        if init_args.get("variant") == "official":
            weights["net.norm_f.weight"] = torch.ones_like(weights["net.norm_f.weight"])
        return weights

    def clip_losses(self, video: Tensor, generator: Generators = None) -> Tensor:
        """Clips as in `forward` -> the loss of each, mean over tokens and layers, (B,); `generator` draws the masks."""
        args, official = self.training_arguments, self.hparams.variant == "official"
        x = self.normalise(video)
        seen = self._teacher_pixels(x)
        found = self.teacher(seen, self.net.grid_size, self._teacher_blocks, final_norm=not official)
        visible = draw_visible(
            args["mask_type"], args["mask_ratio"], len(x), self.net.frames, self.net.grid_size,
            attention=found.attention, device=x.device, generator=generator,
        )  # fmt: skip
        target = torch.stack([self.teacher.project(take(hidden, visible)) for hidden in found.hidden])
        losses = alignment_loss(self.net(x, visible), target, args["loss"], args["norm"])
        return losses.mean(dim=(0, 2))

    def _teacher_pixels(self, x: Tensor) -> Tensor:
        """Normalised clips (B, 3, T, H, W) -> the frames the teacher sees, normalised for it (B, 3, T', H, W)."""
        size = self.hparams.tubelet_size
        frames = x[:, :, size // 2 :: size]
        return frames if self.hparams.variant == "official" else self.clip_pixels(frames)

    @override
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        losses = self.clip_losses(batch["video"], _generators(batch["index"], seed, self.current_epoch))
        loss = losses.mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(losses), sync_dist=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The loss under masks that are the same in every epoch; videos count once, unreadable ones do not."""
        index = batch.get("video_index", batch["index"])
        self.mean_loss.update(self.clip_losses(batch["video"], _generators(index)), index)

    @override
    def log_results(self, stage: str) -> None:
        self.log(f"{stage}/loss", self.mean_loss.compute(), prog_bar=True, sync_dist=True)
        self.mean_loss.reset()


def _generators(index: Tensor, *place: int) -> list[torch.Generator]:
    """One for each clip, made of its index and these numbers: the batch and the process it is in do not matter."""
    states = (np.random.SeedSequence([*place, clip + 1]).generate_state(1) for clip in index.tolist())
    return [torch.Generator().manual_seed(int(state)) for (state,) in states]
