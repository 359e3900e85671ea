"""Official files of Video Mamba Suite: ViViM, TimeMamba, both with CLIP's text tower (docs/video_mamba_suite.md)."""

from collections.abc import Mapping

from torch import Tensor

from hub.convert.clip_blocks import rename_in_block
from hub.errors import HubError

__all__ = ["to_zoo"]

_TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}


def to_zoo(official: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """Official names -> names in a `VideoClassifier` (ViViM), an `ActionClassifier` or a `DualEncoder`.

    The tokenizer's word pieces, which a `DualEncoder` needs, are not in the file. Nothing is left out, for a comparison
    with the model that names each tensor which is missing or left over.

    Args:
        official: the file's weights, under official names with or without ``module.``.
        source: the file, for messages.

    Raises:
        HubError: a tensor has another shape than such a file has; two tensors get one name.
    """
    names = [name.removeprefix("module.") for name in official]
    has_towers = any(name.startswith("visual.") for name in names)
    # Of the two networks only ViViM embeds the time, and has a patch kernel with a bias.
    is_vivim = any(name.removeprefix("visual.") == "temporal_embedding" for name in names)
    weights: dict[str, Tensor] = {}
    for name, tensor in zip(names, official.values(), strict=True):
        for own, part in _renamed(name, tensor, has_towers, is_vivim, source):
            if own in weights:
                raise HubError(f"{source} has two tensors for {own}; take the file as its authors wrote it.")
            weights[own] = part.contiguous()
    return weights


def _renamed(name: str, tensor: Tensor, has_towers: bool, is_vivim: bool, source: object) -> list[tuple[str, Tensor]]:
    if not has_towers:
        return [_of_vivim(name, tensor, "net.", source) if is_vivim else (f"net.{name}", tensor)]
    if name == "visual.image_projection":
        return [("net.vision_proj.weight", _with_dims(name, tensor, 2, source).T)]
    if name.startswith("visual."):
        below = name.removeprefix("visual.")
        return [_of_vivim(below, tensor, "net.vision.", source) if is_vivim else (f"net.vision.{below}", tensor)]
    if name.startswith("textual."):
        return _of_text(name, tensor, source)
    return [(f"net.{name.replace('fc_cls.', 'head.', 1)}", tensor)]


def _of_vivim(name: str, tensor: Tensor, prefix: str, source: object) -> tuple[str, Tensor]:
    """A tensor of ViViM in VideoMamba's layout: class token first, time in the second place, a kernel of one frame."""
    if name == "temporal_embedding":
        return f"{prefix}temporal_pos_embedding", _with_dims(name, tensor, 3, source).transpose(0, 1)
    if name == "patch_embed.proj.weight":
        return f"{prefix}{name}", _with_dims(name, tensor, 4, source).unsqueeze(2)
    if name == "pos_embed":
        middle = _with_dims(name, tensor, 3, source).shape[1] // 2
        order = [middle, *range(middle), *range(middle + 1, tensor.shape[1])]
        return f"{prefix}{name}", tensor[:, order]
    return f"{prefix}{name}", tensor


def _of_text(name: str, tensor: Tensor, source: object) -> list[tuple[str, Tensor]]:
    """A tensor of CLIP's text tower as OpenAI names them -> as transformers does."""
    below = name.removeprefix("textual.")
    if below == "text_projection":
        return [("net.text.text_projection.weight", _with_dims(name, tensor, 2, source).T)]
    in_block = rename_in_block(name, tensor, "net.text.text_model.encoder.layers", source)
    return in_block or [(f"net.text.{_TEXT.get(below, below)}", tensor)]


def _with_dims(name: str, tensor: Tensor, dims: int, source: object) -> Tensor:
    if tensor.ndim != dims or not tensor.numel():
        raise HubError(f"{name} of {source} has the shape {tuple(tensor.shape)} and not {dims} dimensions; take the "
                       "file as its authors wrote it.")  # fmt: skip
    return tensor
