"""Text-video retrieval with a video network beside CLIP's text tower: the models of Video Mamba Suite."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from typing_extensions import override

from lightning_modules.checks import check_choice
from lightning_modules.errors import ModelError
from lightning_modules.nets.clip_teacher import CLIP_MEAN, CLIP_STD
from lightning_modules.nets.clip_tower import ClipTokenizer
from lightning_modules.nets.dual_encoder import DualEncoderNet, build_text_tower, start_text_tower
from lightning_modules.nets.towers import adapt_tower, build_tower
from lightning_modules.tasks.text_video import TextVideoModule
from lightning_modules.training.graded_retrieval import RetrievalScores
from lightning_modules.training.losses import contrastive_loss, max_margin_loss
from lightning_modules.training.optim import Optim

__all__ = ["LOSSES", "DualEncoder"]

LOSSES = ("contrastive", "max_margin")


class DualEncoder(TextVideoModule):
    """Videos and texts as unit vectors of one space; near means that they belong together.

    The video side is any network of `lightning_modules.nets.towers`, the text side CLIP's text tower, and each has a
    projection. Training pulls the two of a pair together and pushes them apart from all others in the batches of all
    processes; the temperature of that is fixed. Validation and testing rank all videos of the split for each caption
    and the other way round. The tokenizer's word pieces are saved with the weights; without a checkpoint they are
    learned from the DataModule's ``captions``.

    Args:
        vision: the kind of video network (``tower``) and its sizes. "videomamba" (the default) takes ``embed_dim``,
            ``depth``, ``patch_size``, ``tubelet_size``, ``scan_order``; "vivim" ``embed_dim``, ``depth``,
            ``patch_size`` (default: the sizes of Ti); "timemamba" ``embed_dim``, ``depth``, ``heads``, ``patch_size``
            (default: ViT-B/16's) and ``style``, see `lightning_modules.nets.timemamba.TimeMamba`.
        text: sizes of the text tower that are not CLIP ViT-B/16's, see `nets.dual_encoder.build_text_tower`. Unlike
            CLIP's own, it has exact GELU.
        dim: width of the shared space.
        num_frames: frames of a video.
        image_size: side of the square input in pixels.
        max_words: tokens that a text is cut to, start and end included.
        mean: per channel, of inputs in [0, 1].
        std: per channel, of inputs in [0, 1].
        short_side: pixels of the short side before cropping; None means ``image_size``.
        sampling: how frames are picked, see `datamodules.video.sampling`.
        frame_stride: frames between two picked ones where ``sampling`` is "dense".
        interpolation: "bilinear", or "bicubic".
        text_weights: CLIP checkpoint whose text tower and word pieces to start from, ``openai/clip-vit-base-patch16``
            or a folder.
        vision_weights: CLIP checkpoint whose image tower a TimeMamba starts from.
        loss: "contrastive" (symmetric cross-entropy) or "max_margin", see `lightning_modules.training.losses`.
        margin: of the latter.
        same_video_negatives: push apart two captions of the same video in a batch too, as the published code does.
        dual_softmax: rank by the product of the softmax over the videos and that over the captions, which uses the
            other queries of the split.
        drop_path: stochastic depth of the video network's last block, growing linearly from 0; TimeMamba has none.
        init: "mamba" or "official", see `lightning_modules.nets.bimamba.BiMamba`.
        activations: "speed", "balanced" or "memory": what the video network's blocks keep for the backward pass, see
            `lightning_modules.nets.bimamba.set_activations`.
        compile: run a VideoMamba's or ViViM's blocks through torch.compile; the first steps then take minutes.
        init_from: weights that the ``lightning`` command starts from: another one of these, or a model with a video
            network of this kind, which alone is taken.
        optim: optimiser and schedule, see `lightning_modules.Optim`.

    Raises:
        ModelError: sizes or options that do not exist or do not fit.
    """

    net: DualEncoderNet
    word_pieces = "name a CLIP checkpoint in text_weights, or set text.vocab_size to 514 (bytes)"
    init_stages = ("fit", "validate", "test")
    """In which of the command's stages `init_from` is read: a released model is tested by the same recipe."""

    def __init__(
        self,
        vision: dict[str, int | str] | None = None,
        text: dict | None = None,
        dim: int = 256,
        num_frames: int = 16,
        image_size: int = 224,
        max_words: int = 77,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        short_side: int | None = None,
        sampling: str = "middles",
        frame_stride: int = 4,
        interpolation: str = "bilinear",
        *,
        text_weights: str | None = None,
        vision_weights: str | None = None,
        loss: str = "contrastive",
        margin: float = 0.2,
        same_video_negatives: bool = False,
        dual_softmax: bool = False,
        drop_path: float = 0.0,
        init: str = "mamba",
        activations: str = "balanced",
        compile: bool = False,
        init_from: str | None = None,
        optim: Optim = Optim(lr=3e-5, min_lr=1e-5, warmup_lr=1e-6, warmup_epochs=1.0, weight_decay=0.01),
    ) -> None:
        super().__init__()
        self.save_config(locals())
        check_choice("loss", loss, LOSSES)
        reader = build_text_tower(text or {}, dim)
        config = reader.config
        if max_words > config.max_position_embeddings:
            raise ModelError(f"The text tower has {config.max_position_embeddings} positions; max_words {max_words} "
                             "may not exceed them.")  # fmt: skip
        tokenizer = ClipTokenizer(config.vocab_size, max_words)
        if text_weights is not None:
            tokenizer.set_merges(start_text_tower(reader, text_weights))
        tower = build_tower(
            vision, num_frames, image_size, drop_path=drop_path, init=init, activations=activations,
            clip_weights=vision_weights,
        )  # fmt: skip
        self.net = DualEncoderNet(tower, reader, tokenizer, dim)
        self.set_normalisation(mean, std)
        self.scores = RetrievalScores(dual_softmax)

    def forward(self, video: Tensor) -> Tensor:
        """Videos (B, 3, T, H, W), uint8 0..255 or float 0..1 (not clipped) -> unit vectors (B, dim), float32."""
        return self.net(self.normalise(video))

    def forward_features(self, video: Tensor, pool: str | None = "cls") -> Tensor:
        """Videos as in `forward` -> their vectors (B, dim).

        With ``pool=None`` the video network's tokens after the final norm (B, 1 + tokens, width), class token first.
        """
        return self(video) if pool is not None else self.net.vision.forward_tokens(self.normalise(video))

    @override
    def encode_videos(self, batch: dict[str, Any]) -> Tensor:
        if "frame_mask" in batch and not batch["frame_mask"].all():
            raise ModelError("This model takes whole clips and the data pads short videos; leave data.fps out.")
        return self(batch["video"])

    @override
    def loss_of(self, text: Tensor, video: Tensor, group: Tensor | None) -> Tensor:
        if self.training_arguments["loss"] == "max_margin":
            return max_margin_loss(text, video, self.training_arguments["margin"], group)
        return contrastive_loss(text, video, self.net.logit_scale.exp(), group)

    def adapt_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of another one of these at other frames or another resolution.

        Those of a model with a video network of this kind do too; around it everything keeps its values.
        """
        ours = "net.vision."
        prefix = ours if any(name.startswith(ours) for name in state_dict) else "net."
        tower = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        rest = state_dict if any(name.startswith("net.text.") for name in state_dict) else self.state_dict()
        rest = {name: tensor for name, tensor in rest.items() if not name.startswith(ours)}
        return rest | {ours + name: tensor for name, tensor in adapt_tower(self.net.vision, tower).items()}
