"""Official VideoMamba files: the same parameter names as ours, below ``net.`` (docs/protocol.md, section 6)."""

import os

from torch import Tensor

from hub.checkpoint import check_tensors, is_state_dict, load_pickle, load_safetensors
from hub.errors import HubError

__all__ = ["read_official", "to_zoo"]

# Present in self-distilled files: the projection onto the teacher's width, of no use after training.
DROPPED = ("distill_head.",)
# What masked-pretraining files call otherwise than the classifiers.
RENAMED = {"norm.weight": "norm_f.weight"}


def read_official(path: str | os.PathLike[str], inert: bool = False) -> dict[str, Tensor]:
    """Read the weights of a released file.

    They stand under "model" (ImageNet files), under "module", flat (video files), under "model_state" (SlowFast's way,
    as MambaVL's), or under "state_dict" (AVION's and Video Mamba Suite's).

    Args:
        path: the file.
        inert: read around what stands beside the weights, see `hub.checkpoint.load_pickle`.

    Raises:
        HubError: the file cannot be read as data, or holds no weights.
    """
    if os.fspath(path).endswith(".safetensors"):
        return load_safetensors(path)
    places = ("model", "module", "model_state", "state_dict")
    content = load_pickle(path, inert=inert)
    candidates = [*map(content.get, places), content] if isinstance(content, dict) else []
    for candidate in candidates:
        if is_state_dict(candidate):
            check_tensors(candidate, path)
            return dict(candidate)
    raise HubError(
        f"{path} holds no weights, neither flat nor under {', '.join(places)}; check that it is a checkpoint."
    )


def to_zoo(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names -> names in a `VideoClassifier` or, of masked-pretraining files, in a `MaskedPretraining`."""
    kept = {name: tensor for name, tensor in official.items() if not name.startswith(DROPPED)}
    return {f"net.{RENAMED.get(name, name)}": tensor for name, tensor in kept.items()}
