"""MUSE (multi-scale Mamba for text-video retrieval): a head that mixes the frames' tokens at several scales.

Facts about the published code are from the reference, muse.md, section 2, and `tests/golden/muse_head`.

Legend of shapes: B videos, T frames, N = h * w patches of a frame's (square) grid, D width, L tokens of the sequence.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.checks import check_arguments, check_choice
from lightning_modules.errors import ModelError
from lightning_modules.nets.bimamba import BiMamba, mixer_weights, reset_step_sizes
from lightning_modules.ops import mix

__all__ = ["AGGREGATIONS", "LEARNERS", "SCALES", "Attention", "Mamba", "Muse", "Pyramid", "ResidualMixer"]

AGGREGATIONS = ("scale_wise", "frame_wise", "spatial_wise")
LEARNERS = ("bimamba", "mamba", "attention", "none")
SCALES = (0.25, 0.5, 1, 2, 4)


class Muse(nn.Module):
    """Multi-scale head: a feature pyramid over each frame's patches, one long sequence, residual mixing blocks.

    ::

        tokens (B, T, 1 + N, D) --+-- class tokens ------------------------------+
                                  +-- patches -- Pyramid -- one grid per scale --+-- sequence (B, L, D)
            -- depth x (x + Linear(dropout(mixer(LayerNorm(x))))) -- the places of the class tokens (B, T, D)

    The sequence, by ``aggregation``:

    - "scale_wise" (the published one): T class tokens; then scale by scale all frames, patches in raster order;
    - "frame_wise": frame by frame its class token and its patches, scale by scale;
    - "spatial_wise": T class tokens; then scale by scale the mean of the patches over the frames.

    No position embedding is added. With 12 frames scale-wise, scales 0.5, 1, 2: L is 3060 for a 7 x 7 grid (ViT-B/32)
    and 12360 for 14 x 14 (ViT-B/16). It works for any grid that the smallest scale leaves a pixel of.

    Args:
        dim: width of a token.
        scales: of the pyramid's levels, in the order of the sequence; each one of `SCALES`.
        aggregation: one of `AGGREGATIONS`.
        learner: what mixes the sequence: "bimamba" (both directions, the published one), "mamba" (one direction),
            "attention", or "none" (each token for itself).
        depth: number of blocks.
        dropout: of the last block; grows linearly from 0 at the first.
        frozen_pyramid: leave the pyramid's convolutions at their random starting values. The published code does, by
            accident: it keeps them in a plain list, so they are neither trained nor saved. Here they are saved.
        init: "mamba" starts each block as the identity and keeps Mamba's step sizes; "official" draws all linear layers
            of the blocks from N(0, 0.02) with zero biases, which is what the published code comes to.

    Raises:
        ModelError: an unknown scale, aggregation, learner or init.
    """

    uses_patches = True

    def __init__(
        self,
        dim: int = 512,
        scales: Sequence[float] = (0.5, 1, 2),
        aggregation: str = "scale_wise",
        learner: str = "bimamba",
        depth: int = 4,
        dropout: float = 0.1,
        frozen_pyramid: bool = False,
        init: str = "mamba",
    ) -> None:
        super().__init__()
        check_arguments({**locals(), "depth": depth if depth != 0 else 1})  # without blocks it is the pyramid alone
        check_choice("aggregation", aggregation, AGGREGATIONS)
        check_choice("learner", learner, LEARNERS)
        check_choice("init", init, ("mamba", "official"))
        self.aggregation = aggregation
        self.pyramid = Pyramid(dim, scales)
        self.blocks = nn.ModuleList(
            ResidualMixer(dim, _mixer(learner, dim), dropout * j / max(depth - 1, 1)) for j in range(depth)
        )
        if init == "official":
            for linear in (m for m in self.blocks.modules() if isinstance(m, nn.Linear)):
                nn.init.normal_(linear.weight, std=0.02)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
        self.pyramid.requires_grad_(not frozen_pyramid)

    def sequence(self, tokens: Tensor) -> Tensor:
        """Frame tokens (B, T, 1 + N, D), class token first -> the sequence that enters the first block (B, L, D).

        Raises:
            ModelError: the patches do not form a square, or one too small for the scales.
        """
        batch, frames, count, dim = tokens.shape
        side = math.isqrt(count - 1)
        if side * side != count - 1:
            raise ModelError(
                f"A frame has {count - 1} patches, which form no square; pass square frames, class token first."
            )
        class_tokens = tokens[:, :, :1]
        grids = tokens[:, :, 1:].reshape(batch * frames, side, side, dim).permute(0, 3, 1, 2)
        levels = [level.flatten(2).transpose(1, 2).unflatten(0, (batch, frames)) for level in self.pyramid(grids)]
        if self.aggregation == "frame_wise":
            return torch.cat([class_tokens, *levels], dim=2).flatten(1, 2)
        if self.aggregation == "spatial_wise":
            levels = [level.mean(dim=1, keepdim=True) for level in levels]
        return torch.cat([part.flatten(1, 2) for part in (class_tokens, *levels)], dim=1)

    def forward(self, tokens: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Frame tokens (B, T, 1 + N, D), class token first -> frame features (B, T, D), not normalised.

        Args:
            tokens: of a tower that ends in the space shared with the text.
            frame_mask: not used: padding frames take part here, as published, and are left out by
                `lightning_modules.nets.clip4clip.pool_frames`.
        """
        x = self.sequence(tokens)
        for block in self.blocks:
            x = block(x)
        frames = tokens.shape[1]
        return x[:, :: x.shape[1] // frames] if self.aggregation == "frame_wise" else x[:, :frames]


class ResidualMixer(nn.Module):
    """x + Linear(dropout(mixer(LayerNorm(x)))); the linear layer starts at 0, so that the block is the identity."""

    def __init__(self, dim: int, mixer: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixer = mixer
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(dim, dim)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        return x + self.fc(self.dropout(self.mixer(self.norm(x))))


class Pyramid(nn.Module):
    """Feature pyramid: each scale resamples the grid and refines it by a 1x1 and a 3x3 convolution.

    ::

        0.25: max-pool 4 --------------+
        0.5:  max-pool 2 --------------+
        1:    ------------------------ +-- Conv 1x1 -- LayerNorm -- GELU -- Conv 3x3 -- LayerNorm
        2:    transposed conv 2 -------+
        4:    two of them, with LayerNorm and GELU between

    A transposed convolution halves the channels; the 1x1 convolution brings them back to ``dim``.

    Args:
        dim: channels of the input and of every level.
        scales: of the levels.

    Raises:
        ModelError: no scale, or one that is not in `SCALES`.
    """

    def __init__(self, dim: int, scales: Sequence[float] = (0.5, 1, 2)) -> None:
        super().__init__()
        wrong = [scale for scale in scales if scale not in SCALES]
        if wrong or not scales:
            raise ModelError(f"scales are {list(scales)}; choose some of {', '.join(map(str, SCALES))}.")
        self.smallest = min(scales)
        self.levels = nn.ModuleList(self._level(dim, scale) for scale in scales)

    @staticmethod
    def _level(dim: int, scale: float) -> nn.Sequential:
        resample: list[nn.Module]
        if scale < 1:
            resample, channels = [nn.MaxPool2d(round(1 / scale))], dim
        elif scale == 1:
            resample, channels = [], dim
        else:
            resample, channels = [nn.ConvTranspose2d(dim, dim // 2, 2, stride=2)], dim // 2
            if scale == 4:
                resample += [ChannelNorm(channels), nn.GELU(), nn.ConvTranspose2d(channels, dim // 4, 2, stride=2)]
                channels = dim // 4
        return nn.Sequential(
            *resample,
            nn.Conv2d(channels, dim, 1),
            ChannelNorm(dim),
            nn.GELU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            ChannelNorm(dim),
        )

    def forward(self, grid: Tensor) -> list[Tensor]:
        """(M, D, h, w) -> one tensor (M, D, floor(scale * h), floor(scale * w)) per scale.

        Raises:
            ModelError: the smallest scale leaves nothing of the grid.
        """
        if min(grid.shape[-2:]) * self.smallest < 1:
            raise ModelError(f"Scale {self.smallest} leaves nothing of a grid of {grid.shape[-2]} x {grid.shape[-1]} "
                             "patches; leave it out, or take larger frames.")  # fmt: skip
        return [level(grid) for level in self.levels]


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (M, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Mamba(nn.Module):
    """Mamba's mixer in one direction (arXiv 2312.00752, figure 3), from the last token to the first.

    That way round because the class tokens, which carry the result, stand in front: they see all other tokens.

    Args:
        dim: width D of a token; also the inner width, as the published head's.
        state_size: states per channel.
        conv_width: taps of the depthwise convolution.
    """

    def __init__(self, dim: int, state_size: int = 16, conv_width: int = 4) -> None:
        super().__init__()
        self.dt_rank = math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, 2 * dim, bias=False)
        self.conv1d = nn.Conv1d(dim, dim, conv_width, groups=dim)
        self.x_proj = nn.Linear(dim, self.dt_rank + 2 * state_size, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, dim)
        self.A_log = nn.Parameter(torch.arange(1, state_size + 1, dtype=torch.float32).log().repeat(dim, 1))
        self.D = nn.Parameter(torch.ones(dim))
        self.out_proj = nn.Linear(dim, dim, bias=False)
        reset_step_sizes(self.dt_proj)

    def forward(self, h: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        x, z = self.in_proj(h).chunk(2, dim=-1)
        return self.out_proj(mix(x, z, mixer_weights(self, self.A_log), reverse=True))


class Attention(nn.Module):
    """Multi-head self-attention over the whole sequence, heads of 64 channels where the width allows."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_heads = max(1, dim // 64)
        if dim % self.num_heads:
            raise ModelError(f"A width of {dim} does not split into {self.num_heads} heads; choose a multiple of 64.")
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, h: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        q, k, v = self.qkv(h).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _mixer(learner: str, dim: int) -> nn.Module:
    if learner == "bimamba":
        return BiMamba(dim, expand=1)
    if learner == "mamba":
        return Mamba(dim)
    return Attention(dim) if learner == "attention" else nn.Identity()
