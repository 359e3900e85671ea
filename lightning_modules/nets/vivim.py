"""ViViM of Video Mamba Suite (arXiv 2403.09626): VideoMamba with a class token in the middle of every frame."""

import torch
from torch import Tensor

from lightning_modules.errors import ModelError
from lightning_modules.nets.bimamba import BiMamba
from lightning_modules.nets.videomamba import VideoMamba

__all__ = ["ViViM"]


class ViViM(VideoMamba):
    """The plain network.

    ::

        clip (B, 3, T, H, W) -> patches, frame by frame: [first half, CLS, second half] of frame 0, of frame 1, ...
             -> depth x (add, RMSNorm, BiMamba) -> RMSNorm -> mean of the T class tokens -> head

    There is one class token, of which every frame has a copy with the frame's temporal embedding. The mixers take half
    of the sum of their two directions. Arguments, sizes, names and shapes of the weights are `VideoMamba`'s, with one
    ``scan_order``, "spatial_first"; the row of the class token in ``pos_embed`` is the first here, as there. The image
    model (``num_frames`` None) is Vision Mamba (arXiv 2401.09417) with the class token in the middle.
    """

    def _mixers(self, scan_order: str, sizes: tuple[int, int, int, int, str]) -> list[BiMamba]:
        if scan_order != "spatial_first":
            raise ModelError(f"scan_order is {scan_order!r:.80}; ViViM has spatial_first only: leave it out.")
        return [BiMamba(*sizes, halve=True) for _ in self.block_orders]

    @property
    def middle(self) -> int:
        """Place of the class token in a frame: behind so many patches."""
        return self.grid_size**2 // 2

    def embed(self, x: Tensor) -> Tensor:
        """Normalised clip (B, 3, T, H, W), or image (B, 3, H, W) -> tokens with positions (B, T' (1 + H'W'), D).

        Raises:
            ModelError: the clip's frames or size are not the network's.
        """
        patches = self._embed_patches(x)
        first = (self.cls_token + self.pos_embed[:, :1])[:, None]
        if self.num_frames is not None:
            first = first + self.temporal_pos_embedding[:, :, None]
        first = first.expand(*patches.shape[:2], -1, -1).to(patches.dtype)
        parts = [patches[:, :, : self.middle], first, patches[:, :, self.middle :]]
        return torch.cat(parts, dim=2).flatten(1, 2)

    def forward_tokens(self, x: Tensor) -> Tensor:
        """Normalised input as in `embed` -> tokens after the final norm (B, 1 + T'H'W', D).

        The mean of the class tokens is first, then come the patches frame by frame.
        """
        frames = super().forward_tokens(x).unflatten(1, (-1, 1 + self.grid_size**2))
        first = frames[:, :, self.middle].mean(dim=1, keepdim=True)
        patches = torch.cat([frames[:, :, : self.middle], frames[:, :, self.middle + 1 :]], dim=2)
        return torch.cat([first, patches.flatten(1, 2)], dim=1)

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised input as in `embed` -> mean of the frames' class tokens after the final norm (B, D)."""
        place, step = self.middle, 1 + self.grid_size**2
        stream = self.forward_blocks(self.embed(x))[:, place::step]
        return self.norm_f(stream.to(self.norm_f.weight.dtype)).mean(dim=1)
