"""Base of networks that stand on a vision tower."""

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from lightning_modules.nets.avion import AvionTower
    from lightning_modules.nets.timemamba import TimeMamba
    from lightning_modules.nets.videomamba import VideoMamba

__all__ = ["OnTower"]


class OnTower(nn.Module):
    """A network with a `vision` tower, or None where it sees features, whose layers it numbers by the tower's."""

    vision: "VideoMamba | TimeMamba | AvionTower | None"

    @property
    def depth(self) -> int:
        """Blocks of the vision tower: what layer-wise decay of the learning rate counts."""
        return 0 if self.vision is None else self.vision.depth

    def layer_id(self, name: str) -> int:
        """Depth of a parameter for layer-wise decay: the vision tower's own, and everything else on top."""
        prefix = "vision."
        if self.vision is None or not name.startswith(prefix):
            return self.depth + 1
        return self.vision.layer_id(name.removeprefix(prefix))
