"""Parameter groups and learning-rate schedule of the VideoMamba recipes (docs/protocol.md, section 5)."""

import math
from collections.abc import Callable

from torch import nn

from lightning_modules.errors import ModelError

__all__ = ["OPTIMISER_DEFAULTS", "official_image_schedule", "parameter_groups", "warmup_cosine"]

OPTIMISER_DEFAULTS = {
    "lr": 1e-3,
    "min_lr": 1e-6,
    "warmup_lr": 1e-6,
    "warmup_epochs": 5.0,
    "weight_decay": 0.05,
    "betas": (0.9, 0.999),
    "lr_samples": None,
    "scale_all_lr": True,
    "schedule": "step",
    "layer_decay": 1.0,
    "layer_decay_scope": "all",
    "decay_state_matrix": False,
}
"""What a module trains with where its constructor does not declare the argument; `VideoClassifier` describes them."""

NO_DECAY = ("cls_token", "pos_embed", "temporal_pos_embedding")


def parameter_groups(
    net: nn.Module,
    weight_decay: float,
    layer_decay: float = 1.0,
    layer_decay_scope: str = "all",
    decay_state_matrix: bool = False,
) -> list[dict]:
    """Splits trainable parameters by depth and by whether they are decayed.

    Biases, one-dimensional parameters (norms, D) and position embeddings are not decayed. The learning rate of depth
    ``i`` is multiplied by ``layer_decay ** (net.depth + 1 - i)``, depth 0 being the embeddings and ``net.depth + 1``
    the final norm and the head. A network that does not number its layers gets a decayed and an undecayed group.

    Args:
        net: the network; layer-wise decay needs ``depth`` and ``layer_id(name)``.
        weight_decay: decay of the decayed groups.
        layer_decay: factor per layer; 1 switches layer-wise decay off.
        layer_decay_scope: "all" scales every depth; "embedding" only the patch and spatial position embeddings and the
            class token, which is what the official training code does (its branch for the blocks is commented out, and
            the temporal embedding, which starts at 0, is not in its list).
        decay_state_matrix: decay A_log too, as the official code does although its mixer marks A_log as exempt.

    Returns:
        Groups with the keys params, weight_decay, lr_scale and name (e.g. "layer_3_no_decay", or "no_decay" where
        layers have no numbers), shallowest first.

    Raises:
        ModelError: layer-wise decay of a network that does not number its layers.
    """
    numbered = hasattr(net, "depth") and hasattr(net, "layer_id")
    if layer_decay != 1.0 and not numbered:
        raise ModelError(f"layer_decay is {layer_decay} and {type(net).__name__} does not number its layers; set "
                         "layer_decay to 1, or give the network depth and layer_id(name).")  # fmt: skip
    groups: dict[tuple[int, bool], dict] = {}
    last = net.depth + 1 if numbered else 0
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        is_state_matrix = name.endswith(("A_log", "A_b_log"))
        decayed = parameter.ndim > 1 and not name.endswith(".bias") and name.rpartition(".")[2] not in NO_DECAY
        decayed = decayed and (decay_state_matrix or not is_state_matrix)
        layer = net.layer_id(name) if numbered else last
        if layer_decay_scope == "embedding" and (layer > 0 or name.endswith("temporal_pos_embedding")):
            layer = last
        if layer_decay == 1.0:
            layer = last
        group = groups.setdefault(
            (layer, decayed),
            {
                "params": [],
                "weight_decay": weight_decay if decayed else 0.0,
                "lr_scale": layer_decay ** (last - layer),
                "name": f"layer_{layer}_" * numbered + ("decay" if decayed else "no_decay"),
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def warmup_cosine(
    total_steps: int, warmup_steps: int, peak: float, start: float = 0.0, end: float = 0.0
) -> Callable[[int], float]:
    """Linear from `start` to `peak` over the warm-up, then half a cosine from `peak` to `end`.

    Returns:
        Step -> factor on `peak`, for `torch.optim.lr_scheduler.LambdaLR`.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (start + (peak - start) * step / warmup_steps) / peak
        progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
        return (end + (peak - end) * 0.5 * (1 + math.cos(math.pi * progress))) / peak

    return factor


def official_image_schedule(
    total_epochs: int, warmup_epochs: int, peak: float, start: float = 0.0, end: float = 0.0
) -> Callable[[int], float]:
    """The schedule of the official image training, per epoch (docs/protocol.md, section 5).

    The learning rate of an epoch is that of the epoch before, since the scheduler is stepped with the finished epoch's
    number: the first two epochs both run at `start`. The cosine spans all epochs, those of the warm-up included.

    Returns:
        Epoch -> factor on `peak`, for `torch.optim.lr_scheduler.LambdaLR`.
    """

    def factor(epoch: int) -> float:
        t = max(epoch - 1, 0)
        if t < warmup_epochs:
            return (start + (peak - start) * t / warmup_epochs) / peak
        return (end + (peak - end) * 0.5 * (1 + math.cos(math.pi * t / total_epochs))) / peak

    return factor
