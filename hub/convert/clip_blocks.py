"""Blocks of CLIP's towers as official files name them, under the names of transformers."""

import re

from torch import Tensor

from hub.errors import HubError

__all__ = ["rename_in_block"]

_BLOCK = re.compile(r"\w+\.transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")
_LAYERS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def rename_in_block(name: str, tensor: Tensor, layers: str, source: object) -> list[tuple[str, Tensor]] | None:
    """A tensor of a block under its own name; three, where queries, keys and values are one; None outside of blocks.

    Args:
        name: in the file, below the tower's name: ``textual.transformer.resblocks.0.attn.in_proj_weight``.
        tensor: of queries, keys and values it is (3 D, ...).
        layers: where the model has its blocks: ``net.vision.layers``.
        source: the file, for the error.

    Raises:
        HubError: queries, keys and values cannot be cut in three.
    """
    found = _BLOCK.fullmatch(name)
    if found is None:
        return None
    number, layer, kind = found.groups()
    own = f"{layers}.{number}"
    if layer not in ("attn.in_proj", "attn.Wqkv"):
        return [(f"{own}.{_LAYERS.get(layer, layer)}.{kind}", tensor)]
    if tensor.ndim == 0 or tensor.shape[0] % 3:
        raise HubError(f"{name} of {source} has the shape {tuple(tensor.shape)}, which is not queries, keys and "
                       "values in one; take the file as its authors wrote it.")  # fmt: skip
    parts = zip("qkv", tensor.chunk(3), strict=True)
    return [(f"{own}.self_attn.{letter}_proj.{kind}", part.clone()) for letter, part in parts]
