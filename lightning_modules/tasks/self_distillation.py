"""Self-distillation: a smaller trained model guides the training of a larger one (VideoMamba, section 3.3)."""

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_modules.base import BaseModule
from lightning_modules.checks import check_choice
from lightning_modules.errors import ModelError
from lightning_modules.tasks.classification import VideoClassifier
from lightning_modules.training.losses import alignment_loss
from lightning_modules.training.sharding import shard

__all__ = ["SelfDistillation"]

# The distance of the students' and the teacher's tokens, as `alignment_loss` knows it.
_LOSSES = {"cosine": {"loss": "l2", "norm": "l2"}, "l2": {"loss": "mse", "norm": "none"}}


class SelfDistillation(VideoClassifier):
    """A `VideoClassifier` whose tokens are drawn towards those of a frozen, smaller and trained one, while it trains.

    Plain Mamba overfits as it grows (section 4.1, figure 6); the official M and B image models were trained this way.
    Both see the same augmented and mixed clips or images. The student's tokens after the final norm go through
    ``distill_head`` (RMSNorm, Linear to the teacher's width); their distance to the teacher's, times
    ``distill_weight``, is added to the classification loss (docs/protocol.md, section 8).

    The teacher is in eval mode, gets no gradient, keeps no activations, and is in no checkpoint. What is shared of a
    trained one is an ordinary `VideoClassifier`: ``config`` names that class, and ``distill_head`` stays in the
    ``.ckpt``, from which a training can resume.

    Args:
        teacher: a trained classifier with as many tokens for a clip, or what the ``lightning`` command loads it from
            when a training starts: a registered name, a model folder, a ``.ckpt`` or a Hub repository; the frames and
            the resolution are then the student's. It may be missing except for training.
        distill_weight: of the distance in the loss.
        distill_loss: "cosine" is the squared distance of unit vectors, 2 - 2 cos, averaged over tokens, as the official
            code has it; "l2" the mean square of the differences, as the paper's text says.
        teacher_epochs: train so many first epochs with the teacher and the others without (the paper's early stopping);
            None asks it to the end.
        classifier: arguments of `VideoClassifier`.

    Raises:
        ModelError: there is no such loss, or the teacher's tokens are not the student's; from a fit, no teacher.
    """

    training_weights = ("distill_head.",)

    distill_head: nn.Sequential

    def __init__(
        self,
        *,
        teacher: BaseModule | str | None = None,
        distill_weight: float = 1.0,
        distill_loss: str = "cosine",
        teacher_epochs: int | None = None,
        **classifier: Any,
    ) -> None:
        super().__init__(**classifier)
        self.save_config(locals())
        check_choice("distill_loss", distill_loss, _LOSSES)
        # In a list, and so neither among the parameters nor in the checkpoints.
        self._teacher: list[BaseModule] = []
        if isinstance(teacher, BaseModule):
            self.adopt_teacher(teacher)

    @property
    def config(self) -> dict[str, Any]:
        """That of the `VideoClassifier` which the student is."""
        return {"class_path": "lightning_modules.VideoClassifier", "init_args": dict(self.hparams)}

    def adopt_teacher(self, teacher: BaseModule) -> None:
        """Freeze a trained classifier and project onto its width; `ModelError` if its tokens are not the student's."""
        ours, theirs = _grid(self), _grid(teacher)
        if ours != theirs:
            raise ModelError(f"The teacher divides its input into {theirs} patches and the student into {ours}; "
                             "give the teacher the student's num_frames, image_size and patch_size.")  # fmt: skip
        self._teacher = [teacher.requires_grad_(False).eval()]
        width = self.hparams.embed_dim
        linear = nn.Linear(width, teacher.hparams.embed_dim)
        self.distill_head = nn.Sequential(nn.RMSNorm(width, eps=1e-5), linear)
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self.check_teacher()

    def check_teacher(self) -> None:
        """Raises `ModelError` where there is no teacher yet."""
        if not self._teacher:
            raise ModelError("Self-distillation needs a teacher to train with; set model.teacher to a registered name "
                             "or a model folder, or pass a module.")  # fmt: skip

    @override
    def configure_model(self) -> None:
        super().configure_model()
        if self.device_mesh is not None and self._teacher:
            shard(self.distill_head, self.device_mesh["data_parallel"])

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not self._teacher:  # for testing nothing is projected
            state_dict = checkpoint["state_dict"]
            checkpoint["state_dict"] = {k: v for k, v in state_dict.items() if not k.startswith(self.training_weights)}
        super().on_load_checkpoint(checkpoint)

    @override
    def parameter_groups(self) -> list[dict[str, Any]]:
        lr, decay = self.optim.lr, self.optim.weight_decay
        matrix = [self.distill_head[1].weight]
        others = [self.distill_head[0].weight, self.distill_head[1].bias]
        return [
            *super().parameter_groups(),
            {"params": matrix, "weight_decay": decay, "lr": lr, "lr_scale": 1.0, "name": "distill_head_decay"},
            {"params": others, "weight_decay": 0.0, "lr": lr, "lr_scale": 1.0, "name": "distill_head_no_decay"},
        ]

    @override
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        args, video = self.training_arguments, batch["video"]
        logits, tokens = self.net.forward_with_tokens(self._network_input(video))
        loss = self.loss_of(logits, batch)
        if args["teacher_epochs"] is None or self.current_epoch < args["teacher_epochs"]:
            distance = self.distillation_loss(tokens, video)
            self.log("train/distill_loss", distance, batch_size=len(video), sync_dist=True)
            loss = loss + args["distill_weight"] * distance
        else:
            # Gradients of 0 for the projection: processes that train together wait for one of every parameter.
            loss = loss + 0.0 * self.distill_head(tokens[:, :1]).sum()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(video), sync_dist=True)
        return loss

    def distillation_loss(self, tokens: Tensor, video: Tensor) -> Tensor:
        """Mean distance of the student's tokens (B, 1 + patches, embed_dim), projected, to the teacher's of a video."""
        (teacher,) = self._teacher
        teacher.to(self.device)
        with torch.no_grad():
            target = teacher.forward_features(video, pool=None)
        how = _LOSSES[self.training_arguments["distill_loss"]]
        return alignment_loss(self.distill_head(tokens), target, **how).mean()


def _grid(module: BaseModule) -> str:
    """Patches of a clip as frames x rows x columns."""
    h = module.hparams
    side = h.image_size // h.patch_size
    return f"{(h.num_frames or 1) // h.tubelet_size} x {side} x {side}"
