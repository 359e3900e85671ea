"""Optimiser and learning-rate schedule of all modules (docs/protocol.md, sections 5, 12 and 18)."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.checks import Range, check_choice, check_constructor, check_entries, check_range
from lightning_modules.errors import ModelError

__all__ = ["DECAYED", "Optim", "official_image_schedule", "one_cosine", "warmup_cosine"]

DECAYED = ("matrices", "state_matrices", "embeddings", "norms", "all")
"""What weight decay is applied to; each adds to the one before."""
_WORDS = {
    "name": ("adamw", "sgd"),
    "decayed": DECAYED,
    "schedule": ("step", "epoch", "one_cosine"),
    "layer_decay_scope": ("all", "embedding"),
}
_EMBEDDINGS = ("cls_token", "pos_embed", "temporal_pos_embedding")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim:
    """The optimiser and the schedule of its learning rates: every module's argument ``optim``.

    In a config and on the command line it is a group, ``--model.optim.lr 1e-4``. In Python a module also takes a
    mapping of the values that differ from the module's own defaults: ``optim={"lr": 1e-4}``.

    Args:
        name: "adamw", or "sgd" with Nesterov's momentum.
        lr: peak learning rate.
        min_lr: learning rate at the end.
        warmup_lr: learning rate at the start.
        warmup_epochs: length of the linear warm-up; fractions are allowed.
        warmup_share: length of the warm-up as a share of all steps, in place of ``warmup_epochs``.
        weight_decay: of the weights that ``decayed`` says.
        decayed: "matrices" but A_log, embeddings of positions and the class token; "state_matrices" adds A_log, as the
            official VideoMamba code does; "embeddings" adds everything else that is not a vector, as its video-text
            code does; "norms" all but biases, as MUSE's code does; "all" adds these too, as MambaVL's code does.
        betas: AdamW's.
        eps: AdamW's.
        momentum: SGD's.
        lr_of: peak learning rates of the weights whose name in the network begins so, for example ``{"clip": 1e-7}``;
            the longest match decides. Start and end of the schedule change in proportion.
        lr_samples: the learning rates are meant for so many clips per optimiser step and are scaled in proportion to
            the actual number; None takes them as they are.
        scale_all_lr: scale ``min_lr`` and ``warmup_lr`` too.
        schedule: "step" (a half cosine after the warm-up, per optimiser step), "epoch" as the official image training
            (see `official_image_schedule`), or "one_cosine" as CLIP4Clip and MUSE (see `one_cosine`).
        layer_decay: factor on the learning rate per layer of depth; 1 is off. The network has to number its layers.
        layer_decay_scope: "all" scales every depth; "embedding", as the official training code does, only the patch and
            spatial position embeddings and the class token.

    Raises:
        ModelError: a number out of its range, or a word that is not known.
    """

    name: str = "adamw"
    lr: float = 1e-3
    min_lr: float = 1e-6
    warmup_lr: float = 1e-6
    warmup_epochs: float = 5.0
    warmup_share: float | None = None
    weight_decay: float = 0.05
    decayed: str = "matrices"
    betas: Sequence[float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    lr_of: dict[str, float] = dataclasses.field(default_factory=dict)
    lr_samples: int | None = None
    scale_all_lr: bool = True
    schedule: str = "step"
    layer_decay: float = 1.0
    layer_decay_scope: str = "all"

    def __post_init__(self) -> None:
        for name, words in _WORDS.items():
            check_choice(f"optim.{name}", getattr(self, name), words)
        try:
            check_constructor(type(self), vars(self))
        except ModelError as error:
            raise ModelError(f"optim.{error}") from None
        if not isinstance(self.lr_of, Mapping):
            raise ModelError(f"optim.lr_of is {self.lr_of!r:.80}; it maps beginnings of names to learning rates.")
        for name, lr in self.lr_of.items():
            check_range(f"optim.lr_of.{name}", lr, Range(0))

    def changed(self, values: Mapping[str, Any]) -> "Optim":
        """A copy with other values; `ModelError` for a name that is not there."""
        check_entries("optim", values, [field.name for field in dataclasses.fields(self)])
        return dataclasses.replace(self, **values)

    def groups(self, net: nn.Module) -> list[dict]:
        """Splits trainable parameters by depth, by their own learning rates and by whether they are decayed.

        The learning rate of depth ``i`` is multiplied by ``layer_decay ** (net.depth + 1 - i)``, depth 0 being the
        embeddings and ``net.depth + 1`` the final norm and the head.

        Args:
            net: the network; layer-wise decay needs ``depth`` and ``layer_id(name)``.

        Returns:
            Groups with the keys params, weight_decay, lr (the peak), lr_scale (of the depth) and name (e.g.
            "layer_3_no_decay", or "clip_decay" where layers have no numbers), shallowest first.

        Raises:
            ModelError: layer-wise decay of a network that does not number its layers; a name in ``lr_of`` that no
                parameter begins with.
        """
        # None where its layers have no numbers, which are then all of the same depth.
        layer_id: Callable[[str], int] | None = getattr(net, "layer_id", None) if hasattr(net, "depth") else None
        depth: int = getattr(net, "depth", 0)
        if self.layer_decay != 1.0 and layer_id is None:
            raise ModelError(f"layer_decay is {self.layer_decay} and {type(net).__name__} does not number its layers; "
                             "set layer_decay to 1, or give the network depth and layer_id(name).")  # fmt: skip
        names = [name for name, _ in net.named_parameters()]
        for part in self.lr_of:
            if not any(name.startswith(part) for name in names):
                known = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
                raise ModelError(f"optim.lr_of has {part!r:.80} and no weight of {type(net).__name__} begins so; they "
                                 f"begin with {known}.")  # fmt: skip
        groups: dict[tuple[int, str, bool], dict] = {}
        last = 0 if layer_id is None else depth + 1
        for name, parameter in net.named_parameters():
            if not parameter.requires_grad:
                continue
            decayed = self._decays(name, parameter)
            part = max((part for part in self.lr_of if name.startswith(part)), key=len, default="")
            layer = last if layer_id is None else layer_id(name)
            if self.layer_decay_scope == "embedding" and (layer > 0 or name.endswith("temporal_pos_embedding")):
                layer = last
            if self.layer_decay == 1.0:
                layer = last
            group = groups.setdefault(
                (layer, part, decayed),
                {
                    "params": [],
                    "weight_decay": self.weight_decay if decayed else 0.0,
                    "lr": self.lr_of.get(part, self.lr),
                    "lr_scale": self.layer_decay ** (last - layer),
                    "name": f"layer_{layer}_" * (layer_id is not None)
                    + f"{part.rstrip('.')}_" * bool(part)
                    + ("decay" if decayed else "no_decay"),
                },
            )
            group["params"].append(parameter)
        return [groups[key] for key in sorted(groups)]

    def optimizer(self, groups: list[dict], lr_scale: float = 1.0) -> torch.optim.Optimizer:
        """The optimiser of `groups`, with learning rates times `lr_scale`; `ModelError` if all weights are frozen."""
        if not groups:
            raise ModelError("All weights are frozen, so there is nothing to train; leave some of them trainable.")
        for group in groups:
            group["lr"] = group["lr"] * lr_scale * group.pop("lr_scale")
        lr = self.lr * lr_scale
        if self.name == "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=self.momentum, nesterov=self.momentum > 0)
        return torch.optim.AdamW(groups, lr=lr, betas=(self.betas[0], self.betas[1]), eps=self.eps)

    def factor(self, total_steps: int, max_epochs: int | None, lr_scale: float = 1.0) -> Callable[[int], float]:
        """Step (or epoch, where ``schedule`` is that) -> factor on all peak learning rates.

        Args:
            total_steps: optimiser steps of the training.
            max_epochs: epochs of the training; None or -1 where it ends by its steps.
            lr_scale: see `optimizer`.

        Raises:
            ModelError: the schedule counts epochs and their number is not known.
        """
        end_scale = lr_scale if self.scale_all_lr else 1.0
        ends = {"peak": self.lr * lr_scale, "start": self.warmup_lr * end_scale, "end": self.min_lr * end_scale}
        if self.schedule == "epoch":
            if max_epochs is None or max_epochs < 1:
                raise ModelError("schedule 'epoch' counts epochs: set trainer.max_epochs.")
            return official_image_schedule(max_epochs, int(self.warmup_epochs), **ends)
        if self.warmup_share is None:
            warmup = min(self.warmup_epochs * total_steps / max(max_epochs or 1, 1), total_steps)
        else:
            warmup = self.warmup_share * total_steps
        if self.schedule == "one_cosine":
            return one_cosine(total_steps, warmup, **ends)
        return warmup_cosine(total_steps, round(warmup), **ends)

    def _decays(self, name: str, parameter: Tensor) -> bool:
        if self.decayed == "all":
            return True
        if self.decayed == "norms":
            return "bias" not in name
        if parameter.ndim == 1 or name.endswith(".bias"):
            return False
        if self.decayed == "embeddings":
            return True
        if parameter.ndim == 0 or name.rpartition(".")[2] in _EMBEDDINGS:
            return False
        return self.decayed == "state_matrices" or not name.endswith(("A_log", "A_b_log"))


def warmup_cosine(
    total_steps: int, warmup_steps: int, peak: float, start: float = 0.0, end: float = 0.0
) -> Callable[[int], float]:
    """Linear from `start` to `peak` over the warm-up, then half a cosine from `peak` to `end`.

    Returns:
        Step -> factor on `peak`, for `torch.optim.lr_scheduler.LambdaLR`.
    """

    def angle(step: int) -> float:
        return math.pi * min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)

    return lambda step: _factor(step, warmup_steps, angle, peak, start, end)


def official_image_schedule(
    total_epochs: int, warmup_epochs: int, peak: float, start: float = 0.0, end: float = 0.0
) -> Callable[[int], float]:
    """The schedule of the official image training, per epoch (docs/protocol.md, section 5); see `warmup_cosine`.

    The learning rate of an epoch is that of the epoch before, since the scheduler is stepped with the finished epoch's
    number: the first two epochs both run at `start`. The cosine spans all epochs, those of the warm-up included.
    """

    def angle(epoch: int) -> float:
        return math.pi * epoch / total_epochs

    return lambda epoch: _factor(max(epoch - 1, 0), warmup_epochs, angle, peak, start, end)


def one_cosine(
    total_steps: int, warmup_steps: float, peak: float, start: float = 0.0, end: float = 0.0
) -> Callable[[int], float]:
    """As `warmup_cosine`, but after the warm-up with what is left of a half cosine over all steps (MUSE's).

    The cosine counts from the first step, so the factor drops from 1 to 0.976 where a warm-up of a tenth ends.
    """

    def angle(step: int) -> float:
        return math.pi * min(step / total_steps, 1.0)

    return lambda step: _factor(step, warmup_steps, angle, peak, start, end)


def _factor(
    step: int, warmup_steps: float, angle: Callable[[int], float], peak: float, start: float, end: float
) -> float:
    if step < warmup_steps:
        return (start + (peak - start) * step / warmup_steps) / peak
    return (end + (peak - end) * 0.5 * (1 + math.cos(angle(step)))) / peak
