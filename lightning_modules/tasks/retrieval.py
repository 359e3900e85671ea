"""Text-video retrieval: MUSE and the CLIP4Clip baselines."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_modules.checks import check_choice
from lightning_modules.errors import ModelError
from lightning_modules.nets.clip4clip import FirstTokens, FrameTransformer, TextVideoNet
from lightning_modules.nets.clip_teacher import CLIP_MEAN, CLIP_STD
from lightning_modules.nets.clip_tower import ClipTokenizer, build_clip, freeze_clip, load_clip, sizes_of
from lightning_modules.nets.muse import Muse
from lightning_modules.tasks.text_video import TextVideoModule
from lightning_modules.training.graded_retrieval import RetrievalScores
from lightning_modules.training.losses import contrastive_loss
from lightning_modules.training.optim import Optim

__all__ = ["TextVideoRetrieval"]

HEADS = ("muse", "mean", "sequential")
MAX_LOGIT_SCALE = math.log(100)
# As published (docs/protocol.md, section 18) but for the bias correction, which AdamW has and BERT's Adam has not, and
# for what is decayed: `decayed: norms` is published.
MUSE_OPTIM = Optim(
    lr=1e-3,
    lr_of={"clip": 1e-7},
    min_lr=0.0,
    warmup_lr=0.0,
    warmup_share=0.1,
    weight_decay=0.2,
    betas=(0.9, 0.98),
    eps=1e-6,
    schedule="one_cosine",
)


class TextVideoRetrieval(TextVideoModule):
    """Videos and texts as unit vectors of one space, on CLIP's towers; near means that they belong together.

    Training pulls the two of a pair together and pushes them apart from all others in the batches of all processes.
    Validation and testing rank all videos of the split for each caption and the other way round. What is logged are
    recalls and ranks, or the mean average precision and nDCG of data with graded relevance, `EpicKitchensRetrieval`.

    The sizes of towers from ``clip_weights`` become part of the config, so a trained model loads without that
    checkpoint. The tokenizer's word pieces are saved with the weights; without a checkpoint they are learned from the
    DataModule's ``captions``.

    Args:
        clip: sizes of the towers, see `nets.clip_tower.build_clip`; None takes those of ``clip_weights``.
        head: "muse", or CLIP4Clip's "mean" (pooling) and "sequential" (transformer over the frames).
        num_frames: frames of a video.
        max_words: tokens that a text is cut to, start and end included.
        scales: of MUSE's pyramid.
        aggregation: order of MUSE's sequence, see `lightning_modules.nets.muse.Muse`.
        learner: what mixes MUSE's sequence: "bimamba", "mamba", "attention" or "none".
        depth: blocks of the head.
        mean: per channel, of inputs in [0, 1].
        std: per channel, of inputs in [0, 1].
        short_side: pixels of the short side before cropping; None means the image tower's size.
        sampling: how frames are picked, see `datamodules.video.sampling`.
        frame_stride: frames between two picked ones where ``sampling`` is "dense".
        interpolation: "bicubic", as CLIP was trained, or "bilinear".
        clip_weights: CLIP checkpoint to start from, ``openai/clip-vit-base-patch32`` or a folder.
        dropout: of MUSE's last block; grows linearly from 0 at the first.
        frozen_pyramid: leave MUSE's pyramid random, as the published code does by accident.
        init: "mamba" or "official", see `lightning_modules.nets.muse.Muse`.
        freeze_layers: freeze the towers' embeddings and so many first blocks; None trains everything.
        same_video_negatives: push apart two captions of the same video in a batch too, as the published code does.
        dual_softmax: rank by the product of the softmax over the videos and that over the captions, which uses
            the other queries of the split.
        optim: optimiser and schedule, see `lightning_modules.Optim`.

    Raises:
        ModelError: sizes, heads or options that do not exist or do not fit.
    """

    net: TextVideoNet
    word_pieces = "name a CLIP checkpoint in clip_weights, or set clip.text_config.vocab_size to 514 (bytes)"

    def __init__(
        self,
        clip: dict | None = None,
        head: str = "muse",
        num_frames: int = 12,
        max_words: int = 32,
        scales: Sequence[float] = (0.5, 1, 2),
        aggregation: str = "scale_wise",
        learner: str = "bimamba",
        depth: int = 4,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        short_side: int | None = None,
        sampling: str = "sparse",
        frame_stride: int = 4,
        interpolation: str = "bicubic",
        *,
        clip_weights: str | None = None,
        dropout: float = 0.1,
        frozen_pyramid: bool = False,
        init: str = "mamba",
        freeze_layers: int | None = None,
        same_video_negatives: bool = False,
        dual_softmax: bool = False,
        optim: Optim = MUSE_OPTIM,
    ) -> None:
        super().__init__()
        self.save_config(locals())
        check_choice("head", head, HEADS)
        merges = None
        if clip_weights is not None:
            towers, merges = load_clip(clip_weights)
            if clip is None:
                self.hparams["clip"] = sizes_of(towers)
            elif sizes_of(towers) != sizes_of(build_clip(clip)):
                raise ModelError(f"clip and {clip_weights!r} have different sizes; set model.clip to null to take "
                                 "those of the checkpoint.")  # fmt: skip
        elif clip is None:
            raise ModelError("clip and clip_weights are both missing; name a CLIP checkpoint in clip_weights, or give "
                             "the sizes of the towers in clip ({} is ViT-B/32).")  # fmt: skip
        else:
            towers = build_clip(clip)
        text = towers.text_model.config
        if max(max_words, num_frames if head == "sequential" else 0) > text.max_position_embeddings:
            raise ModelError(f"The text tower has {text.max_position_embeddings} positions; max_words {max_words} (and "
                             f"for the sequential head num_frames {num_frames}) may not exceed them.")  # fmt: skip
        tokenizer = ClipTokenizer(text.vocab_size, max_words)
        if merges is not None:
            tokenizer.set_merges(merges)
        width = towers.visual_projection.out_features
        if head == "muse":
            part: nn.Module = Muse(width, scales, aggregation, learner, depth, dropout, frozen_pyramid, init)
        elif head == "sequential":
            part = FrameTransformer(towers.text_model, width, depth)
        else:
            part = FirstTokens()
        if freeze_layers is not None:
            freeze_clip(towers, freeze_layers)
        self.net = TextVideoNet(towers, tokenizer, part)
        self.set_normalisation(mean, std)
        self.scores = RetrievalScores(dual_softmax)

    @property
    @override
    def image_size(self) -> int:
        return self.net.clip.vision_model.config.image_size

    def forward(self, video: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Videos -> unit vectors (B, D), float32.

        Args:
            video: (B, 3, T, H, W), uint8 0..255 or float 0..1 (not clipped).
            frame_mask: bool (B, T), False for frames that only pad; None counts all.
        """
        video = self.normalise(video)
        if frame_mask is not None:
            # Padding is 0 after the normalisation, as published; MUSE's blocks see it (docs/protocol.md, section 16).
            video = video * frame_mask[:, None, :, None, None]
        return self.net(video, frame_mask)

    @override
    def encode_videos(self, batch: dict[str, Any]) -> Tensor:
        return self(batch["video"], batch.get("frame_mask"))

    def forward_features(self, video: Tensor, pool: str | None = "cls") -> Tensor:
        """Videos as in `forward` -> their vectors (B, D), or with ``pool=None`` the frames' (B, T, D)."""
        return self(video) if pool is not None else self.net.encode_frames(self.normalise(video))

    @override
    def loss_of(self, text: Tensor, video: Tensor, group: Tensor | None) -> Tensor:
        return contrastive_loss(text, video, self.net.logit_scale.exp(), group)

    @override
    def on_train_batch_end(self, outputs: object, batch: dict[str, Any], batch_idx: int) -> None:
        with torch.no_grad():
            self.net.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
