"""Networks that see clips, by name, and what models are built from that put something else on top of one."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from lightning_modules.checks import check_choice, check_group, check_mapping
from lightning_modules.errors import ModelError
from lightning_modules.nets.avion import AvionTower
from lightning_modules.nets.clip_tower import load_image_tower
from lightning_modules.nets.timemamba import TimeMamba
from lightning_modules.nets.videomamba import VideoMamba, adapt_state_dict
from lightning_modules.nets.vivim import ViViM

__all__ = ["TOWERS", "OnTower", "TowerClassifier", "adapt_tower", "build_tower"]

TOWERS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "videomamba": {"embed_dim": 192, "depth": 24, "patch_size": 16, "tubelet_size": 1,
                       "scan_order": "spatial_first"},
        "vivim": {"embed_dim": 192, "depth": 24, "patch_size": 16},
        "timemamba": {"embed_dim": 768, "depth": 12, "heads": 12, "patch_size": 16, "style": "vanilla"},
    }
)  # fmt: skip
"""What each takes, with its defaults."""
_NETWORKS = {"videomamba": VideoMamba, "vivim": ViViM}


def build_tower(
    vision: object,
    num_frames: int,
    image_size: int,
    *,
    drop_path: float = 0.0,
    init: str = "mamba",
    activations: str = "balanced",
    clip_weights: str | None = None,
) -> VideoMamba | TimeMamba:
    """Build a network without a head.

    Args:
        vision: ``tower``, one of `TOWERS` ("videomamba" where it is missing), and its sizes.
        num_frames: frames of a clip.
        image_size: side of the square input in pixels.
        drop_path: stochastic depth of the last block, growing linearly from 0; TimeMamba has none.
        init: of the mixers, see `lightning_modules.nets.bimamba.BiMamba`.
        activations: "speed", "balanced" or "memory": what blocks keep for the backward pass, see
            `lightning_modules.nets.bimamba.set_activations`.
        clip_weights: CLIP checkpoint that a TimeMamba starts from, ``openai/clip-vit-base-patch16`` or a folder.

    Raises:
        ModelError: names or sizes that do not exist or do not fit.
    """
    given = dict(check_mapping("vision", vision))
    name = given.pop("tower", "videomamba")
    check_choice("vision.tower", name, TOWERS)
    sizes = check_group("vision", given, TOWERS[name])
    common: dict[str, Any] = {"image_size": image_size, "init": init, "activations": activations}
    if name != "timemamba":
        if clip_weights is not None:
            raise ModelError(f"vision_weights is {clip_weights!r:.80} and vision.tower {name!r}; it is TimeMamba that "
                             "starts from CLIP's, so leave it out, or use init_from.")  # fmt: skip
        return _NETWORKS[name](0, **sizes, **common, num_frames=num_frames, drop_path=drop_path)
    if drop_path:
        raise ModelError(f"drop_path is {drop_path} and TimeMamba has no stochastic depth; set it to 0.")
    tower = TimeMamba(**sizes, **common)
    if clip_weights is not None:
        tower.start_from_clip(load_image_tower(clip_weights), clip_weights)
    return tower


def adapt_tower(tower: VideoMamba | TimeMamba, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a network of this kind at other frames or another resolution, to fit `tower`.

    Those of a head are left out.
    """
    weights = {name: tensor for name, tensor in state_dict.items() if not name.startswith("head.")}
    return tower.adapt_state_dict(weights) if isinstance(tower, TimeMamba) else adapt_state_dict(weights, tower)


class OnTower(nn.Module):
    """A network with a `vision` tower, or None where it sees features, whose layers it numbers by the tower's."""

    vision: VideoMamba | TimeMamba | AvionTower | None

    @property
    def depth(self) -> int:
        """Blocks of the vision tower: what layer-wise decay of the learning rate counts."""
        return 0 if self.vision is None else self.vision.depth

    def layer_id(self, name: str) -> int:
        """Depth of a parameter for layer-wise decay: the vision tower's own, and everything else on top."""
        if self.vision is None or not name.startswith("vision."):
            return self.depth + 1
        return self.vision.layer_id(name.removeprefix("vision."))


class TowerClassifier(OnTower):
    """A linear head on a tower's features.

    Args:
        vision: gives features of clips (``forward_features``) that are ``embed_dim`` wide.
        num_classes: outputs of the head.
        drop: dropout before the head.
    """

    vision: VideoMamba | TimeMamba

    def __init__(self, vision: VideoMamba | TimeMamba, num_classes: int, drop: float = 0.0) -> None:
        super().__init__()
        self.vision = vision
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(vision.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, video: Tensor) -> Tensor:
        """Normalised clips (B, 3, T, H, W) -> logits (B, num_classes)."""
        return self.head(self.drop(self.vision.forward_features(video)))
