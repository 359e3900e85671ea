"""CLIP's image tower as a frozen teacher of video tokens (VideoMamba, section 3.3; docs/protocol.md, section 9)."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.errors import ModelError

if TYPE_CHECKING:
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer

__all__ = ["CLIP_MEAN", "CLIP_STD", "ClipTeacher", "TeacherOutput"]

# Of OpenAI's CLIP (docs/protocol.md, section 19).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class TeacherOutput(NamedTuple):
    """What the teacher says of clips.

    Attributes:
        hidden: (K, B, 1 + T * side * side, width) tokens of K blocks before the projection: the mean over the frames of
            their class tokens, then the patches frame by frame.
        attention: (B, T, side * side) how much the class token of each frame attends to each patch in the last block,
            averaged over the heads.
    """

    hidden: Tensor
    attention: Tensor


class ClipTeacher(nn.Module):
    """CLIP's image tower (arXiv 2103.00020), frame by frame, without gradients and always in eval mode.

    Args:
        source: repository of a CLIP checkpoint on the Hugging Face Hub (``openai/clip-vit-base-patch16``), or a folder
            that transformers wrote; None makes a tower with random weights.
        sizes: of the random tower: ``projection_dim`` and a dict ``vision_config`` as in
            `lightning_modules.nets.clip_tower.build_clip`; what is left out is ViT-B/32's.

    Raises:
        ModelError: the checkpoint cannot be read, or sizes that do not exist or do not fit.
    """

    def __init__(self, source: str | None = None, sizes: dict | None = None) -> None:
        super().__init__()
        if (source is None) == (sizes is None):
            raise ModelError(
                "A CLIP teacher takes either the name of a checkpoint (source) or the sizes of random weights (sizes)."
            )
        # Here because transformers takes seconds to import.
        from lightning_modules.nets.clip_tower import build_image_tower, load_image_tower

        self.clip = load_image_tower(source) if source is not None else build_image_tower(sizes or {})
        self.requires_grad_(False)
        self.eval()

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.clip.vision_model.encoder.layers)

    @property
    def output_dim(self) -> int:
        """Width after the projection."""
        return self.clip.visual_projection.out_features

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever it is part of."""
        return super().train(False)

    @torch.no_grad()
    def forward(
        self, clip: Tensor, side: int, layers: Sequence[int] | None = None, final_norm: bool = True
    ) -> TeacherOutput:
        """Look at every frame of a clip.

        Args:
            clip: normalised, (B, 3, T, H, W), H = W; resized (bicubic) where its patches would not be side x side.
            side: patches along a side of a frame.
            layers: numbers of the blocks whose output is returned, rising; None is the last.
            final_norm: apply CLIP's last norm, as CLIP does before its projection.
        """
        tower = self.clip.vision_model
        batch, _, frames, height, _ = clip.shape
        images = clip.transpose(1, 2).flatten(0, 1)
        size = side * tower.config.patch_size
        if height != size:
            images = F.interpolate(images, size=(size, size), mode="bicubic", align_corners=False)
        hidden = tower.embeddings(images, interpolate_pos_encoding=size != tower.config.image_size)
        hidden = tower.pre_layrnorm(hidden)
        wanted = [self.depth - 1] if layers is None else layers
        found: list[Tensor] = []
        attention: Tensor | None = None
        for i, block in enumerate(cast("Iterable[CLIPEncoderLayer]", tower.encoder.layers)):
            if i == self.depth - 1:
                attention = _class_attention(block, hidden).unflatten(0, (batch, frames))
            hidden = block(hidden, None)
            if i in wanted:
                tokens = tower.post_layernorm(hidden) if final_norm else hidden
                tokens = tokens.unflatten(0, (batch, frames))
                found.append(torch.cat([tokens[:, :, :1].mean(dim=1), tokens[:, :, 1:].flatten(1, 2)], dim=1))
        assert attention is not None  # the last block gives it
        return TeacherOutput(torch.stack(found), attention)

    @torch.no_grad()
    def project(self, hidden: Tensor) -> Tensor:
        """Tokens (..., width) -> CLIP's joint space (..., output_dim), not normalised."""
        return self.clip.visual_projection(hidden)


def _class_attention(block: "CLIPEncoderLayer", hidden: Tensor) -> Tensor:
    """(M, 1 + N, width) -> attention of the class token to the patches in this block, mean over heads, (M, N).

    It does not sum to 1: the share of the class token itself is left out. Fused attention does not give its weights,
    and one row of them costs next to nothing.
    """
    attention = block.self_attn
    normed = block.layer_norm1(hidden)
    query = attention.q_proj(normed[:, :1]).unflatten(-1, (attention.num_heads, -1))
    keys = attention.k_proj(normed).unflatten(-1, (attention.num_heads, -1))
    scores = torch.einsum("mqhd,mkhd->mhk", query, keys) * attention.scale
    return scores.float().softmax(dim=-1).mean(dim=1)[:, 1:]
