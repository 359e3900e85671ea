"""Attention as official files keep it: queries, keys and values in one tensor."""

from torch import Tensor

from hub.errors import HubError

__all__ = ["split_attention"]


def split_attention(name: str, tensor: Tensor, source: object) -> list[tuple[str, Tensor]]:
    """The three of a tensor as ("q_proj", tensor), ("k_proj", tensor), ("v_proj", tensor), as transformers has them.

    Args:
        name: that of the tensor, for the error.
        tensor: (3 D, ...).
        source: the file, for the error.

    Raises:
        HubError: the tensor is not three in one.
    """
    if tensor.ndim == 0 or tensor.shape[0] % 3:
        raise HubError(f"{name} of {source} has the shape {tuple(tensor.shape)}, which is not queries, keys and "
                       "values in one; take the file as its authors wrote it.")  # fmt: skip
    return [(f"{letter}_proj", part.clone()) for letter, part in zip("qkv", tensor.chunk(3), strict=True)]
