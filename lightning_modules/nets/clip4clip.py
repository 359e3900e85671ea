"""CLIP4Clip (arXiv 2104.08860): text and video in one space, the video being the mean of its frames' features.

What makes frame features of the image tower's tokens is a head: none at all (`FirstTokens`, the paper's mean pooling),
a transformer over the frames (`FrameTransformer`, its sequential type), or `lightning_modules.nets.muse.Muse`.

Legend of shapes: B videos, T frames, N patches of a frame, M texts, D width of the shared space.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel
from transformers.models.clip.modeling_clip import CLIPTextModel

from lightning_modules.errors import ModelError
from lightning_modules.nets.clip_tower import ClipTokenizer, encode_frames, encode_text

__all__ = ["FirstTokens", "FrameTransformer", "TextVideoNet", "pool_frames"]


class TextVideoNet(nn.Module):
    """Both towers, the tokenizer, the head and the temperature.

    ::

        video (B, 3, T, H, W) -- CLIP's image tower, frame by frame -- head (B, T, D) -- pool_frames -- (B, D)
        texts                 -- ClipTokenizer -- CLIP's text tower -- end token, unit length       -- (M, D)

    Args:
        clip: the towers; their ``logit_scale`` is the temperature.
        tokenizer: makes ids of texts.
        head: takes tokens (B, T, 1 + N, D) and a frame mask (B, T) or None, gives frame features (B, T, D). Its
            ``uses_patches`` says whether it wants more than the class tokens.
    """

    def __init__(self, clip: CLIPModel, tokenizer: ClipTokenizer, head: nn.Module) -> None:
        super().__init__()
        self.clip = clip
        self.tokenizer = tokenizer
        self.head = head

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of what cosines are multiplied with in the loss."""
        return self.clip.logit_scale

    @property
    def dim(self) -> int:
        """Width of the shared space."""
        return self.clip.visual_projection.out_features

    def encode_frames(self, video: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Normalised video (B, 3, T, H, W) -> features of the frames (B, T, D), not normalised."""
        images = video.transpose(1, 2)
        tokens = encode_frames(self.clip, images.flatten(0, 1), bool(self.head.uses_patches))
        return self.head(tokens.unflatten(0, images.shape[:2]), frame_mask)

    def encode_video(self, video: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Normalised video (B, 3, T, H, W), bool (B, T) -> unit vectors (B, D)."""
        return pool_frames(self.encode_frames(video, frame_mask), frame_mask)

    def encode_text(self, texts: list[str]) -> Tensor:
        """M texts -> unit vectors (M, D)."""
        return F.normalize(encode_text(self.clip, self.tokenizer(texts)).float(), dim=-1)

    def forward(self, video: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """As `encode_video`."""
        return self.encode_video(video, frame_mask)


def pool_frames(features: Tensor, frame_mask: Tensor | None = None) -> Tensor:
    """Frame features (B, T, D) -> the mean of their directions, as unit vectors (B, D), float32.

    Args:
        features: of any length.
        frame_mask: bool (B, T), False for frames that do not count; None counts all.
    """
    features = F.normalize(features.float(), dim=-1)
    if frame_mask is not None:
        features = features * frame_mask.unsqueeze(-1)
    return F.normalize(features.sum(dim=1), dim=-1)


class FirstTokens(nn.Module):
    """CLIP4Clip's mean pooling: a frame's feature is its class token; nothing to learn."""

    uses_patches = False

    def forward(self, tokens: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """(B, T, 1 + N, D) -> (B, T, D)."""
        return tokens[:, :, 0]


class FrameTransformer(nn.Module):
    """CLIP4Clip's sequential type: the class tokens plus what a transformer over the frames makes of them.

    Position embedding and blocks start as copies of the text tower's, as in the published code.

    Args:
        text_model: the text tower; it has to be as wide as the shared space, ``dim``.
        dim: width of the shared space.
        depth: number of blocks, at most the tower's.

    Raises:
        ModelError: a text tower of another width, or with fewer blocks.
    """

    uses_patches = False

    def __init__(self, text_model: CLIPTextModel, dim: int, depth: int = 4) -> None:
        super().__init__()
        layers = text_model.encoder.layers
        if text_model.config.hidden_size != dim:
            raise ModelError(f"The text tower is {text_model.config.hidden_size} wide and the shared space {dim}; "
                             "the frame transformer, a copy of the first, needs them equal.")  # fmt: skip
        if depth > len(layers):
            raise ModelError(f"depth is {depth} and the text tower to copy from has {len(layers)} blocks; take fewer.")
        self.position_embedding = copy.deepcopy(text_model.embeddings.position_embedding)
        self.layers = copy.deepcopy(layers[:depth])

    def forward(self, tokens: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """(B, T, 1 + N, D) -> (B, T, D); frames that `frame_mask` leaves out are not attended to."""
        frames = tokens[:, :, 0]
        mask = None
        if frame_mask is not None:
            # Finite, so that a video without any frame gives numbers too.
            mask = torch.zeros_like(frame_mask, dtype=frames.dtype).masked_fill(~frame_mask.bool(), -1e6)
            mask = mask[:, None, None].expand(-1, 1, frames.shape[1], -1)
        x = frames + self.position_embedding.weight[: frames.shape[1]]
        for layer in self.layers:
            x = layer(x, mask)
        return frames + x
