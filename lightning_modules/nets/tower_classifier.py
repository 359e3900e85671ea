"""A linear head on the features of a network that sees clips."""

from torch import Tensor, nn

from lightning_modules.nets.on_tower import OnTower
from lightning_modules.nets.timemamba import TimeMamba
from lightning_modules.nets.videomamba import VideoMamba

__all__ = ["TowerClassifier"]


class TowerClassifier(OnTower):
    """The plain network.

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
