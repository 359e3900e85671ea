"""Recognition of actions with one head for all of them: EPIC-KITCHENS-100 as in Video Mamba Suite."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_modules.checks import check_choice
from lightning_modules.errors import ModelError
from lightning_modules.nets.towers import TowerClassifier, adapt_tower, build_tower
from lightning_modules.tasks.actions import VOCABULARY, ActionModule
from lightning_modules.training.epic_metrics import marginal_scores
from lightning_modules.training.optim import Optim

__all__ = ["ORDERS", "ActionClassifier"]

ORDERS = ("any", "as_text")


class ActionClassifier(ActionModule):
    """Recognise the action of a clip; the probability of a verb or a noun is the sum of those of its actions.

    The network has one output for each action that is known, a pair of verb and noun. What these pairs are called comes
    from the data: the annotations of EPIC-KITCHENS-100 are not for commercial use, so released weights come without.
    `adopt_vocabulary` takes them from a DataModule, and so does the ``lightning`` command.

    Args:
        num_classes: number of actions. None is filled in from the data by the ``lightning`` command.
        vision: the kind of video network (``tower``) and its sizes, see `lightning_modules.nets.towers`.
        num_frames: frames of a clip.
        image_size: side of the square input in pixels.
        task: "recognition", or "anticipation" of an action from what was seen before it: decides on the metrics.
        vocabulary: ``num_verbs`` (97), ``num_nouns`` (300), and in the order of their classes ``verb_names``,
            ``noun_names`` and ``actions`` (verb and noun of each). The last three come from the data at the start of a
            fit. ``order`` "as_text" takes only actions that are sorted as the texts "verb:noun" (0:1, 0:10, 0:2), as
            released weights have them (``data.actions`` as_text); "any" (the default) takes every order.
        preprocessing: ``mean``, ``std``, ``short_side``, ``sampling``, ``frame_stride`` and ``interpolation``, as
            arguments of `lightning_modules.VideoClassifier`.
        vision_weights: CLIP checkpoint for a TimeMamba to start from (``openai/clip-vit-base-patch16``).
        drop: dropout before the head.
        drop_path: stochastic depth of the video network's last block, growing linearly from 0; TimeMamba has none.
        label_smoothing: share of the target spread over all classes.
        init: "mamba" or "official", see `lightning_modules.nets.bimamba.BiMamba`.
        activations: "speed", "balanced" or "memory": what the video network's blocks keep for the backward pass, see
            `lightning_modules.nets.bimamba.set_activations`.
        compile: run a VideoMamba's or ViViM's blocks through torch.compile; the first steps then take minutes.
        init_from: weights that the ``lightning`` command starts from: another one of these, or a model with a video
            network of this kind, which alone is taken.
        freeze_backbone: train the head only (linear probe).
        optim: optimiser and schedule, see `lightning_modules.Optim`.

    Raises:
        ModelError: sizes, names or options that do not exist or do not fit.
    """

    heads = ("action",)
    vocabulary_defaults = {**VOCABULARY, "order": ORDERS[0]}
    init_stages = ("fit", "validate", "test", "predict")
    """Stages that ``init_from`` counts for: a released model is tested by the same recipe."""
    net: TowerClassifier

    def __init__(
        self,
        num_classes: int | None = None,
        vision: dict[str, int | str] | None = None,
        num_frames: int = 16,
        image_size: int = 224,
        task: str = "recognition",
        vocabulary: dict[str, int | str | list | None] | None = None,
        preprocessing: dict[str, int | str | list | None] | None = None,
        *,
        vision_weights: str | None = None,
        drop: float = 0.0,
        drop_path: float = 0.0,
        label_smoothing: float = 0.1,
        init: str = "mamba",
        activations: str = "balanced",
        compile: bool = False,
        init_from: str | None = None,
        freeze_backbone: bool = False,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__()
        self.save_config(locals())
        self.prepare()
        check_choice("vocabulary.order", self.vocabulary["order"], ORDERS)
        if self.vocabulary["actions"] is not None:
            self._check_order(self.vocabulary["actions"])
        tower = build_tower(
            vision, num_frames, image_size, drop_path=drop_path, init=init, activations=activations,
            clip_weights=vision_weights,
        )  # fmt: skip
        self.net = TowerClassifier(tower, self.num_classes, drop)
        if freeze_backbone:
            tower.requires_grad_(False)

    def _check_order(self, actions: list) -> None:
        texts = [f"{verb}:{noun}" for verb, noun in actions]
        if self.vocabulary["order"] == "as_text" and texts != sorted(texts):
            raise ModelError("The model numbers its actions in the order of the texts verb:noun and the data does not; "
                             "set data.actions to as_text.")  # fmt: skip

    def adopt_vocabulary(self, data: object) -> None:
        """See `ActionModule.adopt_vocabulary`; also refuses actions in another order than the model has them."""
        actions = getattr(data, "actions", None)
        if actions is not None:
            self._check_order(actions)
        super().adopt_vocabulary(data)

    def forward(self, video: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W), uint8 0..255 or float 0..1 (not clipped) -> logits (B, num_classes)."""
        return self.net(self.normalise(video))

    def forward_features(self, video: Tensor, pool: str | None = "cls") -> Tensor:
        """Clips as in `forward` -> class token after the final norm (B, width), without `pool` all (B, N, width)."""
        x, tower = self.normalise(video), self.net.vision
        return tower.forward_tokens(x) if pool is None else tower.forward_features(x)

    def predict_scores(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Probabilities (B, ...), averaged over the views; those of verb and noun are sums over their actions."""
        video = self._video(batch)
        views = video.unbind(1) if video.ndim == 6 else [video]
        action = torch.stack([self(view).float().softmax(dim=1) for view in views]).mean(dim=0)
        known = self.vocabulary
        verb, noun = marginal_scores(action, self._actions(), known["num_verbs"], known["num_nouns"])
        return {"verb": verb, "noun": noun, "action": action}

    @staticmethod
    def _video(batch: dict[str, Any]) -> Tensor:
        if "video" not in batch:
            raise ModelError("This model sees clips and the data has features; leave data.features out.")
        return batch["video"]

    @override
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = self._loss(self(self._video(batch)), batch.get("action_target", batch["action"]))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["action"]), sync_dist=True)
        return loss

    def adapt_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of another one of these at other frames or another resolution.

        Those of a model with a video network of this kind do too; around it everything keeps its values.
        """
        ours = "net.vision."
        has_tower = any(name.startswith(ours) for name in state_dict)
        prefix = ours if has_tower else "net."
        tower = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        whole = has_tower and "net.head.weight" in state_dict
        rest = {k: v for k, v in (state_dict if whole else self.state_dict()).items() if not k.startswith(ours)}
        return rest | {ours + name: tensor for name, tensor in adapt_tower(self.net.vision, tower).items()}
