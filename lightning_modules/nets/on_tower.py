"""Base of networks that stand on a vision tower."""

from torch import nn

__all__ = ["OnTower"]


class OnTower(nn.Module):
    """A network with a `vision` tower, or None where it sees features, whose layers it numbers by the tower's."""

    vision: nn.Module | None

    @property
    def depth(self) -> int:
        """Blocks of the vision tower: what layer-wise decay of the learning rate counts."""
        return 0 if self.vision is None else self.vision.depth

    def layer_id(self, name: str) -> int:
        """Depth of a parameter for layer-wise decay: the vision tower's own, and everything else on top."""
        prefix = "vision."
        return self.vision.layer_id(name.removeprefix(prefix)) if name.startswith(prefix) else self.depth + 1
