"""A video network beside CLIP's text tower, both projected to one space (Video Mamba Suite, arXiv 2403.09626).

Legend of shapes: B videos, T frames, M texts, D width of the shared space.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from lightning_modules.checks import check_arguments
from lightning_modules.errors import ModelError
from lightning_modules.nets.clip_tower import ClipTokenizer, encode_text, load_clip, text_tower
from lightning_modules.nets.timemamba import TimeMamba
from lightning_modules.nets.towers import OnTower
from lightning_modules.nets.videomamba import VideoMamba

__all__ = ["DualEncoderNet", "build_text_tower", "start_text_tower"]

TEMPERATURE = 0.07
"""Fixed in the published trainings."""


class DualEncoderNet(OnTower):
    """Both towers, the tokenizer, the projections and the temperature, which is not trained.

    ::

        video (B, 3, T, H, W) -- vision, its features -- vision_proj                   -- (B, D)
        texts                 -- tokenizer -- text: CLIP's tower, end token, projected -- (M, D)

    Args:
        vision: gives features of clips (``forward_features``) that are ``embed_dim`` wide.
        text: from `build_text_tower`.
        tokenizer: makes ids of texts.
        dim: width D of the shared space.
    """

    vision: VideoMamba | TimeMamba

    def __init__(
        self, vision: VideoMamba | TimeMamba, text: CLIPTextModelWithProjection, tokenizer: ClipTokenizer, dim: int
    ) -> None:
        super().__init__()
        self.vision = vision
        self.text = text
        self.tokenizer = tokenizer
        self.vision_proj = nn.Linear(vision.embed_dim, dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(TEMPERATURE)), requires_grad=False)
        nn.init.normal_(self.vision_proj.weight, std=vision.embed_dim**-0.5)

    @property
    def dim(self) -> int:
        """Width of the shared space."""
        return self.vision_proj.out_features

    def encode_text(self, texts: list[str]) -> Tensor:
        """M texts -> unit vectors (M, D), float32."""
        return F.normalize(encode_text(self.text, self.tokenizer(texts)).float(), dim=-1)

    def forward(self, video: Tensor) -> Tensor:
        """Normalised videos (B, 3, T, H, W) -> unit vectors (B, D), float32."""
        return F.normalize(self.vision_proj(self.vision.forward_features(video)).float(), dim=-1)


def build_text_tower(sizes: dict, dim: int) -> CLIPTextModelWithProjection:
    """CLIP's text tower and its projection with random weights, with exact GELU in place of CLIP's approximation.

    Args:
        sizes: those that are not ViT-B/16's, as arguments of `transformers.CLIPTextConfig`: ``vocab_size``,
            ``hidden_size`` and so on.
        dim: width of the shared space.

    Raises:
        ModelError: an unknown key or a value that does not fit.
    """
    check_arguments({"dim": dim})
    return text_tower(CLIPTextModelWithProjection, sizes, hidden_act="gelu", projection_dim=dim)


def start_text_tower(text: CLIPTextModelWithProjection, source: str) -> Tensor:
    """Give a text tower the weights of a pretrained CLIP's; its projection keeps its own.

    Args:
        text: from `build_text_tower`.
        source: see `lightning_modules.nets.clip_tower.load_clip`.

    Returns:
        the word pieces as `ClipTokenizer` keeps them.

    Raises:
        ModelError: it cannot be fetched, or has other sizes.
    """
    clip, merges = load_clip(source)
    weights, own = clip.text_model.state_dict(), text.text_model.state_dict()
    if {name: w.shape for name, w in weights.items()} != {name: w.shape for name, w in own.items()}:
        raise ModelError(f"text and {source!r} have different sizes; give text those of the checkpoint.")
    text.text_model.load_state_dict(weights)
    return merges
