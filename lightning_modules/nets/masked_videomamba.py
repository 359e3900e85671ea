"""VideoMamba that sees some of its tokens and says what a teacher would say of them (VideoMamba, section 3.3)."""

import torch
from torch import Tensor, nn

from lightning_modules.checks import check_arguments, check_choice
from lightning_modules.errors import ModelError
from lightning_modules.nets.videomamba import VideoMamba

__all__ = ["VARIANTS", "MaskedVideoMamba", "sinusoids", "take"]

VARIANTS = ("all_blocks", "official")


class MaskedVideoMamba(VideoMamba):
    """Tokens, of which the masked ones are left out, blocks, and a decoder per aligned block.

    ::

        clip -> tokens with positions -> visible tokens only -> blocks -> aligned features
             -> + sinusoids of the tokens' places -> Linear, LayerNorm -> as wide as the teacher

    The blocks really run on the short sequence: masking four in five tokens leaves a fifth of the work. Parameter names
    are those of the official checkpoints but for the final norm, which is called `norm` there.

    Variants:

    - "all_blocks": the last feature is the output of the whole network, final norm included.
    - "official": it is the residual stream before the last block's output, not normalised, as the published code takes
      it. The last block and the final norm (the latter unless earlier blocks are aligned too) then have nothing to
      learn from; they are frozen, and stay as they were initialised.

    Args:
        embed_dim: see `VideoMamba`, also for the arguments that are not listed here.
        target_dim: width of the teacher's features.
        align_layers: how many features are aligned: that of the last block, and of earlier ones.
        align_interval: blocks between two aligned ones.
        variant: one of `VARIANTS`.
    """

    def __init__(
        self,
        embed_dim: int = 192,
        depth: int = 24,
        num_frames: int = 8,
        image_size: int = 224,
        patch_size: int = 16,
        tubelet_size: int = 1,
        target_dim: int = 512,
        align_layers: int = 1,
        align_interval: int = 1,
        variant: str = "all_blocks",
        drop_path: float = 0.0,
        init: str = "mamba",
        activations: str = "balanced",
    ) -> None:
        check_choice("variant", variant, VARIANTS)
        check_arguments({"target_dim": target_dim})
        super().__init__(
            0, embed_dim, depth, num_frames, image_size, patch_size, tubelet_size, drop_path=drop_path, init=init,
            activations=activations,
        )  # fmt: skip
        self.frames = num_frames // tubelet_size
        self.variant = variant
        self.aligned = aligned_blocks(depth, align_layers, align_interval)
        if variant == "official" and depth < 2:
            raise ModelError(f"variant 'official' aligns the block before the last, and depth is {depth}; deepen it.")
        self.clip_decoder = nn.ModuleList(Decoder(embed_dim, target_dim) for _ in range(align_layers))
        places = sinusoids(1 + self.frames * self.grid_size**2, embed_dim)
        self.register_buffer("places", places, persistent=False)
        if variant == "official":
            self.layers[-1].requires_grad_(False)
            self.norm_f.requires_grad_(align_layers > 1)

    places: Tensor

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """The teacher's features as the student guesses them, not yet brought to unit length.

        Args:
            x: normalised clips (B, 3, T, H, W).
            visible: positions of the tokens to see, class token first, as `draw_visible` gives them, int64 (B, L); None
                shows all.

        Returns:
            (align_layers, B, L, target_dim), the earliest block first.
        """
        places = self.places.expand(x.shape[0], -1, -1)
        places = places if visible is None else take(places, visible)
        features = self.aligned_features(x, visible)
        decoded = [decoder(feature + places) for decoder, feature in zip(self.clip_decoder, features, strict=True)]
        return torch.stack(decoded)

    def aligned_features(self, x: Tensor, visible: Tensor | None = None) -> list[Tensor]:
        """Arguments as for `forward` -> the aligned blocks' features (B, L, D), the earliest first."""
        tokens = self.embed(x)
        streams: list[Tensor] = []
        self.forward_blocks(tokens if visible is None else take(tokens, visible), streams)
        dtype = self.norm_f.weight.dtype
        features = [self.norm_f(streams[block].to(dtype)) for block in self.aligned[:-1]]
        last = streams[-2] if self.variant == "official" else self.norm_f(streams[-1].to(dtype))
        return [*features, last]


class Decoder(nn.Module):
    """Projection onto the teacher's width."""

    def __init__(self, dim: int, target_dim: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, target_dim)
        self.norm = nn.LayerNorm(target_dim)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., target_dim)."""
        return self.norm(self.head(x))


def aligned_blocks(depth: int, count: int, interval: int) -> list[int]:
    """Numbers of `count` blocks, `interval` apart, the last of them the last of `depth` blocks; rising.

    Raises:
        ModelError: there are not so many blocks.
    """
    blocks = [depth - 1 - i * interval for i in reversed(range(count))]
    if count < 1 or interval < 1 or blocks[0] < 0:
        raise ModelError(f"{count} blocks, {interval} apart, cannot be aligned in a network of {depth} blocks; "
                         "take fewer, or closer ones.")  # fmt: skip
    return blocks


def take(tokens: Tensor, positions: Tensor) -> Tensor:
    """Tokens (B, L, D) at positions (B, K) -> (B, K, D)."""
    return tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[-1]))


def sinusoids(count: int, dim: int) -> Tensor:
    """Sine (even channels) and cosine (odd ones) of positions 0 .. count - 1 (arXiv 1706.03762, section 3.5).

    Returns:
        float32 (1, count, dim).
    """
    channel = torch.arange(dim)
    rate = 10000.0 ** (-2 * torch.div(channel, 2, rounding_mode="floor").double() / dim)
    angle = torch.arange(count).double()[:, None] * rate
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()[None]
