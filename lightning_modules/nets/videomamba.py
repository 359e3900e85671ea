"""VideoMamba (arXiv 2403.06977): images and clips as one sequence of patches through bidirectional Mamba blocks."""

import math
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from lightning_modules.checks import check_arguments
from lightning_modules.errors import ModelError
from lightning_modules.nets.bimamba import BiMamba, Block, run_block, set_activations
from lightning_modules.nets.scan_orders import FullCrossScan, HalfCrossScan, block_orders, temporal_first
from lightning_modules.ops import linear

__all__ = [
    "PatchEmbed",
    "VideoMamba",
    "adapt_state_dict",
    "check_shape",
    "cut_patches",
    "inflate_patch_embedding",
    "patches_along",
    "resize_frames",
    "resize_grid",
]


class VideoMamba(nn.Module):
    """The plain network: tokens, blocks, class token, linear head.

    ::

        clip (B, 3, T, H, W) -> patches, frame by frame in raster order -> [CLS, frame 0, frame 1, ...]
             -> depth x (add, RMSNorm, BiMamba) -> RMSNorm -> CLS -> head

    Tokens go in and come out in this order, whatever order the blocks scan them in (`scan_order`). Parameter names are
    those of the official checkpoints. Sizes of the paper (embed_dim, depth): Ti 192, 24; S 384, 24; M 576, 32; B 768,
    24.

    Args:
        num_classes: outputs of the head; 0 leaves it out.
        embed_dim: width of a token.
        depth: number of blocks.
        num_frames: frames of a clip; None makes the image model (2-D patch embedding, no temporal embedding).
        image_size: side of the square input in pixels.
        patch_size: side of a patch in pixels.
        tubelet_size: frames per token.
        state_size: states per channel of the scan.
        conv_width: taps of the depthwise convolution in the mixer.
        expand: inner channels of the mixer per channel of width.
        drop: dropout before the head.
        drop_path: stochastic depth of the last block; grows linearly from 0 at the first.
        init: "mamba" or "official", see `BiMamba`.
        activations: "speed", "balanced" or "memory": what blocks keep for the backward pass, see
            `lightning_modules.nets.bimamba.set_activations`.
        scan_order: one of `lightning_modules.nets.scan_orders.SCAN_ORDERS`; the weights fit all of them.

    Raises:
        ModelError: a number out of its range (`lightning_modules.checks`), sizes that do not fit, or an unknown option.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        embed_dim: int = 192,
        depth: int = 24,
        num_frames: int | None = 16,
        image_size: int = 224,
        patch_size: int = 16,
        tubelet_size: int = 1,
        state_size: int = 16,
        conv_width: int = 4,
        expand: int = 2,
        drop: float = 0.0,
        drop_path: float = 0.0,
        init: str = "mamba",
        activations: str = "balanced",
        scan_order: str = "spatial_first",
    ) -> None:
        super().__init__()
        check_arguments({**locals(), "num_classes": num_classes if num_classes != 0 else 1}, optional=["num_frames"])
        self.block_orders = block_orders(scan_order, depth)
        if num_frames is None and scan_order != "spatial_first":
            raise ModelError(f"scan_order {scan_order!r} needs frames, and this is an image model; leave it out.")
        if num_frames is not None and num_frames % tubelet_size:
            raise ModelError(f"num_frames {num_frames} is not a positive multiple of tubelet_size {tubelet_size}.")
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_frames = num_frames
        self.image_size = image_size
        self.grid_size = patches_along(image_size, patch_size)

        self.patch_embed = PatchEmbed(embed_dim, patch_size, None if num_frames is None else tubelet_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid_size**2 + 1, embed_dim))
        if num_frames is not None:
            self.temporal_pos_embedding = nn.Parameter(torch.zeros(1, num_frames // tubelet_size, embed_dim))
        mixers = self._mixers(scan_order, (embed_dim, state_size, conv_width, expand, init))
        self.layers = nn.ModuleList(Block(embed_dim, mixer) for mixer in mixers)
        if scan_order != "spatial_first" and num_frames is not None:
            to_temporal, to_spatial = temporal_first(num_frames // tubelet_size, self.grid_size**2)
            self.register_buffer("to_temporal", to_temporal, persistent=False)
            self.register_buffer("to_spatial", to_spatial, persistent=False)
        set_activations(self, activations)
        self.norm_f = nn.RMSNorm(embed_dim, eps=1e-5)
        self.drop = nn.Dropout(drop)
        self.head: nn.Linear | nn.Identity = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        # The output of block j is dropped when it is added, by the next block or the final norm (protocol, section 0).
        self.drop_rates = [drop_path * j / max(depth - 1, 1) for j in range(depth)]

        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if isinstance(self.head, nn.Linear):
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            for block in cast("Iterable[Block]", self.layers):
                block.mixer.out_proj.weight.div_(math.sqrt(depth))

    activations: str
    to_temporal: Tensor
    to_spatial: Tensor

    def _mixers(self, scan_order: str, sizes: tuple[int, int, int, int, str]) -> list[BiMamba]:
        """One for each block."""
        kinds = {"half": HalfCrossScan, "full": FullCrossScan}
        return [kinds.get(order, BiMamba)(*sizes) for order in self.block_orders]

    def embed(self, x: Tensor) -> Tensor:
        """Normalised clip (B, 3, T, H, W), or image (B, 3, H, W) -> tokens with positions (B, 1 + T'H'W', D).

        Raises:
            ModelError: the clip's frames or size are not the network's.
        """
        tokens = self._embed_patches(x)
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        return torch.cat([cls_token.to(tokens.dtype), tokens.flatten(1, 2)], dim=1)

    def _embed_patches(self, x: Tensor) -> Tensor:
        """Input as in `embed` -> patches with positions (B, T', H'W', D)."""
        frames = () if self.num_frames is None else (self.num_frames,)
        check_shape(x, 3, *frames, self.image_size, self.image_size)
        tokens = self.patch_embed(x) + self.pos_embed[:, None, 1:]
        if self.num_frames is not None:
            tokens = tokens + self.temporal_pos_embedding[:, :, None]
        return tokens

    def forward_blocks(self, hidden: Tensor, streams: list[Tensor] | None = None) -> Tensor:
        """Tokens (B, L, D) -> the residual stream after the last block, not yet normalised (B, L, D).

        Where given, the list `streams` receives the residual stream after each block (B, L, D), first block first, in
        the order of that block.
        """
        residual: Tensor | None = None
        current = "spatial"
        for j, (block, order) in enumerate(zip(self.layers, self.block_orders, strict=True)):
            if j:
                hidden = self._drop_path(hidden, self.drop_rates[j - 1])
            maps: tuple[Tensor, ...] = ()
            if order in ("half", "full"):
                maps = (self.to_temporal, self.to_spatial)
            elif order != current:
                # The sequence stays in a block's order until a later one wants the other.
                index = self.to_temporal if order == "temporal" else self.to_spatial
                hidden = hidden.index_select(1, index)
                residual = None if residual is None else residual.index_select(1, index)
                current = order
            hidden, residual = run_block(self, block, hidden, residual, *maps)
            if streams is not None and j:
                streams.append(residual)
        assert residual is not None  # of the last block
        residual = residual + self._drop_path(hidden, self.drop_rates[-1])
        if streams is not None:
            streams.append(residual)
        return residual if current == "spatial" else residual.index_select(1, self.to_spatial)

    def _drop_path(self, x: Tensor, rate: float) -> Tensor:
        return stochastic_depth(x, rate, "row") if self.training and rate else x

    def forward_tokens(self, x: Tensor) -> Tensor:
        """Normalised input as in `embed` -> all tokens after the final norm, class token first (B, 1 + T'H'W', D)."""
        return self.norm_f(self.forward_blocks(self.embed(x)).to(self.norm_f.weight.dtype))

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised input as in `embed` -> class token after the final norm (B, D)."""
        return self.norm_f(self.forward_blocks(self.embed(x))[:, 0].to(self.norm_f.weight.dtype))

    def forward_with_tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised input as in `embed` -> logits (B, num_classes), and tokens as `forward_tokens` gives them."""
        tokens = self.forward_tokens(x)
        return self.head(self.drop(tokens[:, 0])), tokens

    def forward(self, x: Tensor) -> Tensor:
        """Normalised clip (B, 3, T, H, W), or image (B, 3, H, W) -> logits (B, num_classes)."""
        return self.head(self.drop(self.forward_features(x)))

    def layer_id(self, name: str) -> int:
        """Depth of a parameter for layer-wise decay: 0 the embeddings, 1..depth the blocks, depth + 1 the rest."""
        if name in ("cls_token", "pos_embed", "temporal_pos_embedding") or name.startswith("patch_embed."):
            return 0
        if name.startswith("layers."):
            return int(name.split(".")[1]) + 1
        return self.depth + 1


class PatchEmbed(nn.Module):
    """Cuts images or clips into patches and projects each to a vector.

    Patches do not overlap, so the convolution is a matrix product over unfolded patches; it is computed as one, which
    on a CPU is faster than the convolution. The weight keeps the convolution's shape and official key ``proj.weight``.

    Args:
        embed_dim: width of a token.
        patch_size: side of a patch in pixels.
        tubelet_size: frames per token; None makes a 2-D embedding for still images, or for each frame of a clip.
        bias: add a bias to the projection.
    """

    def __init__(self, embed_dim: int, patch_size: int = 16, tubelet_size: int | None = 1, bias: bool = True) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.tubelet_size = tubelet_size
        if tubelet_size is None:
            self.proj: nn.Conv2d | nn.Conv3d = nn.Conv2d(3, embed_dim, patch_size, stride=patch_size, bias=bias)
        else:
            kernel = (tubelet_size, patch_size, patch_size)
            self.proj = nn.Conv3d(3, embed_dim, kernel, stride=kernel, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W), or (B, C, H, W) where ``tubelet_size`` is None -> (B, T', H'W', embed_dim), raster order."""
        if x.ndim == 4:
            x = x.unsqueeze(2)
        patches = cut_patches(x, self.tubelet_size or 1, self.patch_size)
        return linear(patches, self.proj.weight.flatten(1), self.proj.bias)


def check_shape(x: Tensor, *expected: int) -> None:
    """Raise `ModelError` for inputs of another shape than (batch, *expected)."""
    if x.shape[1:] != expected:
        raise ModelError(f"The network takes inputs of shape (batch, {', '.join(map(str, expected))}), this one is "
                         f"{tuple(x.shape)}: resample the input, or build the network with other num_frames / "
                         "image_size (zoo.load interpolates).")  # fmt: skip


def patches_along(image_size: int, patch_size: int) -> int:
    """How many patches lie along a side of an image.

    Raises:
        ModelError: no whole number.
    """
    if image_size % patch_size:
        raise ModelError(f"image_size {image_size} is not a multiple of patch_size {patch_size}; change one of them.")
    return image_size // patch_size


def cut_patches(x: Tensor, tubelet_size: int, patch_size: int) -> Tensor:
    """(B, C, T, H, W) -> the numbers of each patch, channel by channel (B, T', H'W', n), in raster order."""
    batch, channels, frames, height, width = x.shape
    t, p = tubelet_size, patch_size
    x = x.reshape(batch, channels, frames // t, t, height // p, p, width // p, p)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(2, 3)


def resize_grid(pos_embed: Tensor, side: int) -> Tensor:
    """Spatial embedding (1, 1 + s*s, D), class token first -> (1, 1 + side*side, D), bicubic (protocol, section 5)."""
    old = math.isqrt(pos_embed.shape[1] - 1)
    if old == side:
        return pos_embed
    grid = pos_embed[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2).float()
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([pos_embed[:, :1], grid.flatten(2).transpose(1, 2).to(pos_embed.dtype)], dim=1)


def resize_frames(temporal: Tensor, frames: int) -> Tensor:
    """Temporal embedding (1, t, D) -> (1, frames, D), linear (protocol, section 5)."""
    if temporal.shape[1] == frames:
        return temporal
    resized = F.interpolate(temporal.float().transpose(1, 2), size=frames, mode="linear", align_corners=False)
    return resized.transpose(1, 2).to(temporal.dtype)


def inflate_patch_embedding(weight: Tensor, tubelet_size: int, center: bool = True) -> Tensor:
    """2-D kernel (D, 3, p, p) -> 3-D kernel (D, 3, t, p, p): in the centre frame t // 2, or spread evenly over all."""
    if not center:
        return weight.unsqueeze(2).repeat(1, 1, tubelet_size, 1, 1) / tubelet_size
    inflated = weight.new_zeros(*weight.shape[:2], tubelet_size, *weight.shape[2:])
    inflated[:, :, tubelet_size // 2] = weight
    return inflated


def adapt_state_dict(state_dict: dict[str, Tensor], net: VideoMamba) -> dict[str, Tensor]:
    """Fits weights of another number of frames or another resolution, or of an image model, to `net`.

    Position embeddings are interpolated in space and time; a 2-D patch embedding is inflated, and the temporal
    embedding it lacks starts at 0 as in the official code. Everything else is returned as it came, for a strict load.
    """
    adapted = dict(state_dict)
    if "pos_embed" in adapted:
        adapted["pos_embed"] = resize_grid(adapted["pos_embed"], net.grid_size)
    if net.num_frames is None:
        return adapted
    frames = net.temporal_pos_embedding.shape[1]
    weight = adapted.get("patch_embed.proj.weight")
    if weight is not None and weight.ndim == 4:
        adapted["patch_embed.proj.weight"] = inflate_patch_embedding(weight, net.patch_embed.tubelet_size or 1)
        adapted.setdefault("temporal_pos_embedding", weight.new_zeros(1, frames, net.embed_dim))
    if "temporal_pos_embedding" in adapted:
        adapted["temporal_pos_embedding"] = resize_frames(adapted["temporal_pos_embedding"], frames)
    return adapted
