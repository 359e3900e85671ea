"""TimeMamba of Video Mamba Suite (arXiv 2403.09626): CLIP's image transformer with a Mamba along time in every block.

Legend of shapes: B clips, T frames, N patches of a frame, D width of a token.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.checks import check_arguments, check_choice
from lightning_modules.errors import ModelError
from lightning_modules.nets.bimamba import BiMamba, run_block, set_activations
from lightning_modules.nets.videomamba import PatchEmbed, patches_along, resize_grid
from lightning_modules.ops import Linear

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection

__all__ = ["STYLES", "TimeMamba"]

STYLES = ("vanilla", "frozen")


class TimeMamba(nn.Module):
    """The plain network.

    ::

        clip (B, 3, T, H, W) -> patches of each frame + positions, one class token for the clip -> LayerNorm
             -> depth x block -> LayerNorm

        block:  y = x + tanh(gate) * BiMamba(norm(x))        each patch position as a sequence of T frames
                attention within each frame, over the class token and the frame's y
                class token += mean over the frames of what it got
                x = y + what the patches got  (vanilla),  or  x + what the patches got  (frozen)
                both += MLP(norm(both))

    Nothing but the order of the scan knows the time, so the same weights take any number of frames. A gate of 0, where
    training starts, makes it an image transformer for each frame. Names and shapes of the weights are those of the
    official files. ViT-B/16, which is released, has the sizes (embed_dim, depth, heads) 768, 12, 12.

    Args:
        embed_dim: width D of a token.
        depth: number of blocks.
        heads: attention heads.
        image_size: side of the square input in pixels.
        patch_size: side of a patch in pixels.
        style: what the spatial attention is added to: "vanilla" (TimeSformer's divided attention) or "frozen" (Frozen
            in Time's). The weights fit both.
        init: of the mixers, see `BiMamba`.
        activations: "speed", "balanced" or "memory": what blocks keep for the backward pass, see
            `lightning_modules.nets.bimamba.set_activations`.

    Raises:
        ModelError: a number out of its range, or sizes that do not fit.
    """

    def __init__(
        self,
        embed_dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        image_size: int = 224,
        patch_size: int = 16,
        style: str = "vanilla",
        init: str = "mamba",
        activations: str = "balanced",
    ) -> None:
        super().__init__()
        check_arguments(locals())
        check_choice("style", style, STYLES)
        if embed_dim % heads:
            raise ModelError(f"embed_dim {embed_dim} is not a multiple of heads {heads}; change one of them.")
        self.embed_dim = embed_dim
        self.depth = depth
        self.image_size = image_size
        self.grid_size = patches_along(image_size, patch_size)
        self.patch_embed = PatchEmbed(embed_dim, patch_size, None, bias=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid_size**2, embed_dim))
        self.ln_pre = nn.LayerNorm(embed_dim, eps=1e-5)
        self.blocks = nn.ModuleList(TimeBlock(embed_dim, heads, style, init) for _ in range(depth))
        set_activations(self, activations)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self._reset_parameters()

    @torch.no_grad()
    def _reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for block in cast("Iterable[TimeBlock]", self.blocks):
            for layer in (*block.attn.modules(), *block.mlp.modules()):
                if isinstance(layer, Linear):
                    nn.init.trunc_normal_(layer.weight, std=0.02)
                    nn.init.zeros_(layer.bias)

    activations: str

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised clip (B, 3, T, H, W) of any number of frames -> what enters the first block.

        Returns:
            The class token (B, 1, D) and the patches (B, N, T, D).

        Raises:
            ModelError: the size is not the network's.
        """
        size = self.image_size
        if x.ndim != 5 or x.shape[1] != 3 or x.shape[3:] != (size, size):
            raise ModelError(f"The network takes inputs of shape (batch, 3, frames, {size}, {size}), this one is "
                             f"{tuple(x.shape)}: resample the input, or build the network with another image_size "
                             "(zoo.load interpolates).")  # fmt: skip
        patches = self.patch_embed(x).transpose(1, 2) + self.pos_embed[:, 1:, None]
        first = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        return self.ln_pre(first.to(patches.dtype)), self.ln_pre(patches)

    def forward_blocks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input as in `embed` -> class token (B, 1, D) and patches (B, N, T, D) after the last block."""
        first, patches = self.embed(x)
        for block in self.blocks:
            first, patches = run_block(self, block, first, patches)
        return first, patches

    def forward_tokens(self, x: Tensor) -> Tensor:
        """Input as in `embed` -> tokens after the final norm (B, 1 + T N, D).

        The class token is first, then come the patches frame by frame in raster order.
        """
        first, patches = self.forward_blocks(x)
        return self.norm(torch.cat([first, patches.transpose(1, 2).flatten(1, 2)], dim=1))

    def forward_features(self, x: Tensor) -> Tensor:
        """Input as in `embed` -> class token after the final norm (B, D)."""
        return self.norm(self.forward_blocks(x)[0][:, 0])

    def layer_id(self, name: str) -> int:
        """Depth of a parameter for layer-wise decay: 0 the embeddings, 1..depth the blocks, depth + 1 the rest."""
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return self.depth + 1 if name.startswith("norm.") else 0

    def adapt_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of another resolution, with interpolated position embeddings; the number of frames is in none."""
        adapted = dict(state_dict)
        if "pos_embed" in adapted:
            adapted["pos_embed"] = resize_grid(adapted["pos_embed"], self.grid_size)
        return adapted

    @torch.no_grad()
    def start_from_clip(self, clip: "CLIPVisionModelWithProjection", source: str) -> None:
        """Take the weights of CLIP's image tower; what is along time keeps its own, behind gates of 0.

        Args:
            clip: from `lightning_modules.nets.clip_tower.load_image_tower`.
            source: its name, for messages.

        Raises:
            ModelError: it has other sizes.
        """
        own, weights = self.state_dict(), {}
        for name, tensor in clip.vision_model.state_dict().items():
            for theirs, ours in _CLIP_NAMES.items():
                name = name.replace(theirs, ours)
            weights[name] = tensor
        for name in [name for name in weights if ".q_proj." in name]:
            parts = [weights.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
            weights[name.replace("q_proj", "Wqkv")] = torch.cat(parts)
        weights["cls_token"] = weights["cls_token"].view(1, 1, -1)
        weights["pos_embed"] = resize_grid(weights["pos_embed"][None], self.grid_size)
        along_time = ("time_mamba", "norm3", "alpha_timeattn")
        weights |= {name: tensor for name, tensor in own.items() if any(part in name for part in along_time)}
        found, wanted = ({name: w.shape for name, w in each.items()}.items() for each in (weights, own))
        if found != wanted:
            raise ModelError(f"vision and {source!r} have different sizes ({min(found ^ wanted)[0]}); name a CLIP of "
                             f"width {self.embed_dim}, {self.depth} blocks and patches of "
                             f"{self.patch_embed.patch_size} px.")  # fmt: skip
        self.load_state_dict(weights)


class TimeBlock(nn.Module):
    """One block, see `TimeMamba`."""

    def __init__(self, dim: int, heads: int, style: str, init: str) -> None:
        super().__init__()
        self.style = style
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.norm3 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.mlp = nn.Sequential(OrderedDict(fc1=Linear(dim, 4 * dim), act=nn.GELU(), fc2=Linear(4 * dim, dim)))
        self.time_mamba = BiMamba(dim, expand=1, init=init)
        self.alpha_timeattn = nn.Parameter(torch.zeros(()))

    def forward(self, first: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class token (B, 1, D) and patches (B, N, T, D) -> the same."""
        batch, places, frames, _ = x.shape
        moved = self.time_mamba(self.norm3(x).flatten(0, 1)).unflatten(0, (batch, places))
        y = x + torch.tanh(self.alpha_timeattn) * moved
        seen = torch.cat([first[:, None].expand(-1, frames, -1, -1), y.transpose(1, 2)], dim=2)  # (B, T, 1 + N, D)
        seen = self.attn(self.norm1(seen.flatten(0, 1))).unflatten(0, (batch, frames))
        first = first + seen[:, :, 0].mean(dim=1, keepdim=True)
        x = (y if self.style == "vanilla" else x) + seen[:, :, 1:].transpose(1, 2)
        return first + self.mlp(self.norm2(first)), x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Self-attention with one matrix for queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.Wqkv = Linear(dim, 3 * dim)
        self.out_proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(M, L, D) -> (M, L, D)."""
        q, k, v = self.Wqkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


# Parts of names, in CLIP's tower and here.
_CLIP_NAMES = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding.weight": "pos_embed",
    "embeddings.patch_embedding": "patch_embed.proj",
    "pre_layrnorm": "ln_pre",
    "post_layernorm": "norm",
    "encoder.layers": "blocks",
    "layer_norm": "norm",
    "self_attn": "attn",
}
