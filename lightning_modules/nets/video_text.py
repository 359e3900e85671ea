"""VideoMamba with language (arXiv 2403.06977, section 3.4): a video tower, BERT, and what brings them together.

::

    video -- VideoTower -- tokens --------------------------------- cross-attention
                  |                                                       |
                pooled -- vision_proj -- unit vectors  <- cosine ->       |
                                             |                            |
    text -- BERT's text layers -- start token -- text_proj -- unit vector |
                  |                                                       |
                words ---------------------------------- BERT's fusion layers -- start token -- itm_head -- match?
                                                                          |
                                                                        words -- masked-word head

Legend of shapes: B videos, T frames, N patches of a frame, M texts, L words, D width of the video tower, E of the
shared space.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertForMaskedLM

from lightning_modules.checks import check_arguments
from lightning_modules.errors import ModelError
from lightning_modules.nets.bert import BertWords, encode_words, fuse, predict_words
from lightning_modules.nets.masked_videomamba import VARIANTS, Decoder, sinusoids, take
from lightning_modules.nets.towers import OnTower
from lightning_modules.nets.videomamba import VideoMamba

__all__ = ["SeenVideo", "TextOutput", "VideoOutput", "VideoTextNet", "VideoTower"]


class SeenVideo(NamedTuple):
    """What `VideoTower` makes of videos.

    Attributes:
        tokens: patches after the final norm, without the class token, (B, K, D).
        pooled: a vector per frame (B, T, D), of a masked video a single one (B, 1, D).
        aligned: the teacher's features as the tower guesses them, (B, 1 + K, target_dim); None without a decoder.
    """

    tokens: Tensor
    pooled: Tensor
    aligned: Tensor | None


class VideoOutput(NamedTuple):
    """What `VideoTextNet` makes of videos.

    Attributes:
        vectors: unit vectors (B, T, E), float32; of masked videos (B, 1, E).
        tokens: see `SeenVideo`.
        aligned: see `SeenVideo`.
    """

    vectors: Tensor
    tokens: Tensor
    aligned: Tensor | None

    @property
    def mean(self) -> Tensor:
        """(B, E): its product with a text's vector is the mean of the frames' cosines. Its length is at most 1."""
        return self.vectors.mean(dim=1)


class TextOutput(NamedTuple):
    """What `VideoTextNet` makes of texts.

    Attributes:
        vectors: unit vectors (M, E), float32.
        hidden: the words before the fusion layers (M, L, width of BERT).
        ids: int64 (M, L).
        mask: bool (M, L), False for padding.
    """

    vectors: Tensor
    hidden: Tensor
    ids: Tensor
    mask: Tensor


class VideoTower(VideoMamba):
    """VideoMamba for clips and still images, whole or masked.

    An image is a clip of one frame. It has no place in time: the temporal embedding is for clips.

    A frame's vector is the class token plus the mean of the frame's patches; of a masked clip there is one vector, the
    class token plus the mean of all visible patches (docs/protocol.md, section 11). Parameter names
    are those of the official checkpoints but for the final norm, which is called `norm` there.

    Args:
        embed_dim: see `VideoMamba`, also for the arguments that are not listed here.
        num_frames: of a clip, 2 at least.
        target_dim: width of a teacher's features, which a decoder then guesses; None leaves it out.
        variant: which feature is aligned, see `lightning_modules.nets.masked_videomamba.MaskedVideoMamba`. The other
            losses train the last block in either.
    """

    def __init__(
        self,
        embed_dim: int = 576,
        depth: int = 32,
        num_frames: int = 8,
        image_size: int = 224,
        patch_size: int = 16,
        target_dim: int | None = None,
        variant: str = "all_blocks",
        drop_path: float = 0.0,
        init: str = "mamba",
        activations: str = "balanced",
    ) -> None:
        check_arguments({"num_frames": num_frames, "depth": depth, "target_dim": target_dim}, ["target_dim"])
        if num_frames < 2:
            raise ModelError(f"num_frames is {num_frames}; a clip has 2 frames at least, one frame is an image.")
        if variant not in VARIANTS or (variant == "official" and depth < 2):
            raise ModelError(f"variant is {variant!r} and depth {depth}; choose one of {', '.join(VARIANTS)}, the "
                             "latter with 2 blocks at least.")  # fmt: skip
        super().__init__(
            0, embed_dim, depth, num_frames, image_size, patch_size, drop_path=drop_path, init=init,
            activations=activations,
        )  # fmt: skip
        self.variant = variant
        self.pool_norm = nn.LayerNorm(embed_dim)
        if target_dim is not None:
            self.clip_decoder = nn.ModuleList([Decoder(embed_dim, target_dim)])
            # The table of an image is the beginning of a clip's.
            places = sinusoids(1 + num_frames * self.grid_size**2, embed_dim)
            self.register_buffer("places", places, persistent=False)

    places: Tensor

    def _embed_patches(self, x: Tensor) -> Tensor:
        """Normalised clips (B, 3, T, H, W), or images (B, 3, 1, H, W) -> patches with positions (B, T, N, D)."""
        if x.shape[2] != 1:
            return super()._embed_patches(x)
        # The zeros keep the temporal embedding among what a step trains: processes wait for all gradients.
        return self.patch_embed(x) + self.pos_embed[:, None, 1:] + 0 * self.temporal_pos_embedding[:, :1, None]

    def forward(  # type: ignore[override]  # it gives more than the head's logits, which it has not
        self, x: Tensor, visible: Tensor | None = None
    ) -> SeenVideo:
        """Videos, all of one length.

        Args:
            x: normalised clips (B, 3, T, H, W), or images (B, 3, 1, H, W).
            visible: positions of the tokens to see, class token first, rising, as
                `lightning_modules.nets.masking.draw_visible` gives them, int64 (B, 1 + K); None shows all.
        """
        tokens = self.embed(x)
        if visible is not None:
            tokens = take(tokens, visible)
        streams: list[Tensor] = []
        tokens = self.norm_f(self.forward_blocks(tokens, streams).to(self.norm_f.weight.dtype))
        first, patches = tokens[:, :1], tokens[:, 1:]
        frames = patches.unflatten(1, (x.shape[2], -1)) if visible is None else patches.unsqueeze(1)
        pooled = self.pool_norm(first + frames.mean(dim=2))
        aligned = None
        if hasattr(self, "clip_decoder"):
            places = self.places[:, : tokens.shape[1]]
            if visible is not None:
                places = take(self.places.expand(len(x), -1, -1), visible)
            feature = streams[-2] if self.variant == "official" else tokens
            aligned = self.clip_decoder[0](feature.to(places.dtype) + places)
        return SeenVideo(patches, pooled, aligned)


class VideoTextNet(OnTower):
    """Both towers, the tokenizer, the projections, the temperature and the matching head.

    Parameter names follow the official checkpoints: ``vision_proj``, ``text_proj``, ``temp`` and ``itm_head`` are
    theirs, ``vision`` and ``text`` are called ``vision_encoder`` and ``text_encoder`` there.

    Args:
        vision: the video tower.
        text: BERT, see `lightning_modules.nets.bert.build_bert`.
        words: its tokenizer.
        dim: E, width of the shared space.
        checkpoint_text: recompute BERT's layers in the backward pass to save memory.
    """

    vision: VideoTower

    def __init__(
        self, vision: VideoTower, text: BertForMaskedLM, words: BertWords, dim: int = 512, checkpoint_text: bool = False
    ) -> None:
        super().__init__()
        check_arguments({"dim": dim})
        width = text.config.hidden_size
        self.vision = vision
        self.text = text
        self.words = words
        self.checkpoint_text = checkpoint_text
        self.vision_proj = nn.Linear(vision.embed_dim, dim)
        self.text_proj = nn.Linear(width, dim)
        self.itm_head = nn.Linear(width, 2)
        self.temp = nn.Parameter(torch.tensor(0.07))

    @property
    def dim(self) -> int:
        """Width of the shared space."""
        return self.text_proj.out_features

    def encode_video(self, x: Tensor, visible: Tensor | None = None) -> VideoOutput:
        """Arguments as for `VideoTower.forward`."""
        seen = self.vision(x, visible)
        return VideoOutput(F.normalize(self.vision_proj(seen.pooled).float(), dim=-1), seen.tokens, seen.aligned)

    def encode_text(self, texts: list[str]) -> TextOutput:
        """M texts, one at least."""
        ids, mask = self.words(texts)
        hidden = encode_words(self.text, ids, mask, self.checkpoint_text)
        vectors = F.normalize(self.text_proj(hidden[:, 0]).float(), dim=-1)
        return TextOutput(vectors, hidden, ids, mask)

    def match(self, hidden: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        """Whether texts and videos belong together, pair by pair.

        Args:
            hidden: (M, L, width of BERT).
            mask: bool (M, L).
            tokens: of the video of each text, (M, K, D).

        Returns:
            logits (M, 2) of "no" and "yes".
        """
        return self.itm_head(fuse(self.text, hidden, mask, tokens, self.checkpoint_text)[:, 0])

    def guess_words(self, ids: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        """Texts, some words of which are hidden, beside their videos -> scores of the vocabulary (M, L, vocab_size)."""
        hidden = encode_words(self.text, ids, mask, self.checkpoint_text)
        return predict_words(self.text, fuse(self.text, hidden, mask, tokens, self.checkpoint_text))
