"""Official VideoMamba files with language: other names for the same parameters (docs/protocol.md, section 11)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hub.errors import HubError

__all__ = ["to_zoo"]

# Of use in the first stage of pretraining only: CLIP, and the projection onto its width.
DROPPED = ("clip_teacher.", "vision_encoder.clip_decoder.")
RENAMED = {"vision_encoder.norm.": "net.vision.norm_f.", "vision_encoder.": "net.vision.", "text_encoder.": "net.text."}
# What BERT stores twice: the copy and the original.
COPIES = {
    "text_encoder.cls.predictions.decoder.weight": "text_encoder.bert.embeddings.word_embeddings.weight",
    "text_encoder.cls.predictions.decoder.bias": "text_encoder.cls.predictions.bias",
}
POSITIONS = "text_encoder.bert.embeddings.position_ids"


def to_zoo(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official names -> names in a `VideoTextPretraining`, whose tokenizer is not in the file.

    The teacher may be in the file or not. BERT's second copies of weights and its list 0, 1, 2, ... of positions are
    left out after a look at what they hold.

    Raises:
        HubError: a copy differs from its original, or the positions are others.
    """
    kept = {name: tensor for name, tensor in official.items() if not name.startswith(DROPPED)}
    for copy, original in COPIES.items():
        found = kept.pop(copy, None)
        if found is not None and (original not in kept or not torch.equal(found, kept[original])):
            raise HubError(f"{copy} is not the copy of {original} that it should be; the model has one for both.")
    positions = kept.pop(POSITIONS, None)
    if positions is not None and positions.flatten().tolist() != list(range(positions.numel())):
        raise HubError(f"{POSITIONS} does not count from 0; the model has no other order of positions.")
    return {_renamed(name): tensor for name, tensor in kept.items()}


def _renamed(name: str) -> str:
    for old, new in RENAMED.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return f"net.{name}"
