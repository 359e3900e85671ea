"""Official MambaVL files: the fusion has our names, AVION's tower has not (docs/mambavl.md)."""

import re
import warnings
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from hub.convert.clip_blocks import rename_in_block
from hub.errors import HubError

__all__ = ["Converted", "to_zoo", "tower_to_zoo"]

TOWER = "orvit."
# What a file holds of parts that the model is without.
_UNUSED = {
    # Only the embeddings are read. The layers on top, and lists 0, 1, 2, ... that old releases of transformers saved.
    "layers of RoBERTa that are not used": re.compile(
        r"text_model\.(?:encoder\.|pooler\.|embeddings\.(?:position_ids|token_type_ids)$)"
    ),
    "ORViT-Motionformer, which is not here: the model takes its features": re.compile(
        r"(?:cls_token|pos_embed|temp_embed)$|(?:patch_embed_3d|norm|pre_logits|blocks)\."
    ),
    # The official option Mamba_disjoint makes it and never reads it.
    "B_log, which the official code never uses": re.compile(r"B_log$"),
}


class Converted(NamedTuple):
    """Weights under the zoo's names, and what the file says of the model.

    Attributes:
        weights: for an `ActionRecognition` of the published fusion, without the tokenizer's word pieces.
        width: of the fusion; None where the file does not say.
        has_tower: whether AVION's tower is in the file; without it the model takes features.
    """

    weights: dict[str, Tensor]
    width: int | None
    has_tower: bool


def to_zoo(official: Mapping[str, Tensor], source: object) -> Converted:
    """Official names -> names in an `ActionRecognition`.

    What the model is without is left out, with a warning that says what it was. Everything else keeps its place, for a
    comparison with the model that names each tensor which is missing or left over.

    Args:
        official: the file's ``model_state``.
        source: the file, for messages.

    Raises:
        HubError: a matrix of queries, keys and values cannot be cut in three; two tensors get one name.
    """
    weights: dict[str, Tensor] = {}
    unused: dict[str, int] = {}
    for name, tensor in official.items():
        name = name.removeprefix("module.")
        reason = next((reason for reason, pattern in _UNUSED.items() if pattern.match(name)), None)
        if reason is not None:
            unused[reason] = unused.get(reason, 0) + 1
            continue
        for own, part in _renamed(name, tensor, source):
            if own in weights:
                raise HubError(f"{source} has two tensors for {own}; take the file as its authors wrote it.")
            weights[own] = part
    has_tower = any(name.startswith("net.vision.") for name in weights)
    if not has_tower:
        unused["no AVION tower, as of a model that was trained on cached features: it takes features here too"] = 0
    if unused:
        told = (f"{count} tensors of {reason}" if count else reason for reason, count in unused.items())
        warnings.warn(f"{source} has {'; '.join(told)}.", stacklevel=2)
    head = weights.get("net.head0.weight")
    width = head.shape[1] if head is not None and head.ndim == 2 else None
    return Converted(weights, width, has_tower)


def tower_to_zoo(official: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """AVION's own weights, CLIP's two towers -> the video tower under its names in an `ActionRecognition`.

    The text tower and the projection of the class token are left out: the model has neither.

    Args:
        official: the file's weights.
        source: the file, for messages.

    Raises:
        HubError: it has no video tower.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in official.items():
        name = name.removeprefix("module.")
        if name.startswith("visual.") and name != "visual.image_projection":
            weights |= dict(_renamed(f"{TOWER}{name.removeprefix('visual.')}", tensor, source))
    if not weights:
        raise HubError(f"{source} has no video tower (visual.*); name a file of AVION's pre-training.")
    return weights


def _renamed(name: str, tensor: Tensor, source: object) -> list[tuple[str, Tensor]]:
    if not name.startswith(TOWER):
        return [(f"net.{name}", tensor)]
    in_block = rename_in_block(name, tensor, "net.vision.layers", source)
    return in_block or [(f"net.vision.{name.removeprefix(TOWER)}", tensor)]
