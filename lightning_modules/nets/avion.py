"""AVION's video tower (arXiv 2309.16669): CLIP's image transformer over the patches of all frames at once.

The blocks are transformers' CLIP blocks, with exact GELU and stochastic depth at the same rate in every block. Unlike
the public code, which returns the class token alone, it hands over all tokens, as MambaVL needs them.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from lightning_modules.checks import ACTIVATIONS, check_arguments, check_choice
from lightning_modules.errors import ModelError
from lightning_modules.nets.bimamba import run_block
from lightning_modules.nets.videomamba import check_shape, cut_patches, patches_along, resize_frames, resize_grid
from lightning_modules.ops import Linear

__all__ = ["AvionTower"]


class AvionTower(nn.Module):
    """The plain network.

    ::

        clip (B, 3, T, H, W) -> patches, frame by frame in raster order -> [CLS, frame 0, frame 1, ...]
             + positions in the frame and of the frame -> LayerNorm -> depth x block -> LayerNorm

    Sizes (embed_dim, depth, heads, patch_size): ViT-B/16 768, 12, 12, 16; ViT-L/14 1024, 24, 16, 14.

    Args:
        embed_dim: width D of a token.
        depth: number of blocks.
        heads: attention heads.
        num_frames: frames of a clip.
        image_size: side of the square input in pixels.
        patch_size: side of a patch in pixels.
        drop_path: stochastic depth, the same in every block.
        activations: what a block keeps in training for the backward pass: "speed" and "balanced" all, "memory" its
            input; the block is then computed again.

    Raises:
        ModelError: a number out of its range, or sizes that do not fit.
    """

    def __init__(
        self,
        embed_dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        num_frames: int = 16,
        image_size: int = 224,
        patch_size: int = 16,
        drop_path: float = 0.0,
        activations: str = "balanced",
    ) -> None:
        super().__init__()
        check_arguments(locals())
        check_choice("activations", activations, ACTIVATIONS)
        if embed_dim % heads:
            raise ModelError(f"embed_dim {embed_dim} is not a multiple of heads {heads}; change one of them.")
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_frames = num_frames
        self.image_size = image_size
        self.patch_size = patch_size
        self.activations = activations
        self.grid_size = patches_along(image_size, patch_size)
        config = CLIPVisionConfig(
            hidden_size=embed_dim, intermediate_size=4 * embed_dim, num_attention_heads=heads, hidden_act="gelu",
            layer_norm_eps=1e-6, attn_implementation="sdpa",
        )  # fmt: skip
        scale = embed_dim**-0.5
        self.conv1 = Linear(3 * patch_size**2, embed_dim, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(embed_dim))
        self.positional_embedding = nn.Parameter(scale * torch.randn(1 + self.grid_size**2, embed_dim))
        self.temporal_embedding = nn.Parameter(torch.zeros(num_frames, embed_dim))
        self.ln_pre = nn.LayerNorm(embed_dim, eps=1e-6)
        self.layers = nn.ModuleList(CLIPEncoderLayer(config) for _ in range(depth))
        self.ln_post = nn.LayerNorm(embed_dim, eps=1e-6)
        self.drop_path = StochasticDepth(drop_path, "row")
        self._reset_parameters()

    @torch.no_grad()
    def _reset_parameters(self) -> None:
        """As OpenAI's CLIP: the deeper the tower, the smaller what a block adds."""
        width = self.embed_dim**-0.5
        for layer in cast("Iterable[CLIPEncoderLayer]", self.layers):
            for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                nn.init.normal_(part.weight, std=width)
                nn.init.zeros_(part.bias)
            for part in (layer.self_attn.out_proj, layer.mlp.fc2):
                nn.init.normal_(part.weight, std=width * (2 * self.depth) ** -0.5)
                nn.init.zeros_(part.bias)
            nn.init.normal_(layer.mlp.fc1.weight, std=(2 * self.embed_dim) ** -0.5)
            nn.init.zeros_(layer.mlp.fc1.bias)

    def forward_tokens(self, video: Tensor) -> Tensor:
        """Normalised clip (B, 3, T, H, W) -> tokens after the final norm, class token first (B, 1 + T H'W', D).

        Raises:
            ModelError: the clip's frames or size are not the network's.
        """
        check_shape(video, 3, self.num_frames, self.image_size, self.image_size)
        patches = cut_patches(video, 1, self.patch_size)
        tokens = self.conv1(patches) + self.positional_embedding[1:] + self.temporal_embedding[:, None]
        first = (self.class_embedding + self.positional_embedding[0]).expand(len(video), 1, -1)
        tokens = self.ln_pre(torch.cat([first.to(tokens.dtype), tokens.flatten(1, 2)], dim=1))
        for layer in cast("Iterable[CLIPEncoderLayer]", self.layers):
            tokens = run_block(self, self._block, layer, tokens)
        return self.ln_post(tokens)

    def _block(self, layer: CLIPEncoderLayer, tokens: Tensor) -> Tensor:
        attended, _ = layer.self_attn(hidden_states=layer.layer_norm1(tokens), attention_mask=None)
        tokens = tokens + self.drop_path(attended)
        return tokens + self.drop_path(layer.mlp(layer.layer_norm2(tokens)))

    def layer_id(self, name: str) -> int:
        """Depth of a parameter for layer-wise decay: 0 the embeddings, 1..depth the blocks, depth + 1 the rest."""
        if name.startswith("layers."):
            return int(name.split(".")[1]) + 1
        return self.depth + 1 if name.startswith("ln_post.") else 0

    def adapt_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of another number of frames or another resolution, with interpolated position embeddings."""
        adapted = dict(state_dict)
        if "positional_embedding" in adapted:
            adapted["positional_embedding"] = resize_grid(adapted["positional_embedding"][None], self.grid_size)[0]
        if "temporal_embedding" in adapted:
            adapted["temporal_embedding"] = resize_frames(adapted["temporal_embedding"][None], self.num_frames)[0]
        return adapted

    @torch.no_grad()
    def start_from_clip(self, clip: CLIPVisionModelWithProjection, source: str) -> None:
        """Take the weights of CLIP's image tower; frames start alike (their embedding is 0).

        Raises:
            ModelError: it has other sizes.
        """
        found, own = clip.vision_model.state_dict(), self.state_dict()
        weights = {"temporal_embedding": torch.zeros_like(self.temporal_embedding)}
        for name in own:
            theirs = _CLIP_NAMES.get(name, name.replace("layers.", "encoder.layers.", 1))
            if name not in weights and theirs in found:
                weights[name] = found[theirs].flatten(1) if name == "conv1.weight" else found[theirs]
        weights = self.adapt_state_dict(weights)
        wrong = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
        wrong += [name for name in found if name.startswith(f"encoder.layers.{self.depth}.")]  # it is deeper
        if wrong:
            raise ModelError(f"vision and {source!r} have different sizes ({wrong[0]}); name a CLIP of width "
                             f"{self.embed_dim}, {self.depth} blocks and patches of {self.patch_size} px.")  # fmt: skip
        self.load_state_dict(weights)


_CLIP_NAMES = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
