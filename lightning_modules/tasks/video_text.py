"""VideoMamba with language: pretraining on pairs, zero-shot retrieval."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from lightning_modules.base import IMAGENET_MEAN, IMAGENET_STD
from lightning_modules.errors import ModelError
from lightning_modules.nets.bert import BertWords, build_bert, load_bert, pretrained_sizes
from lightning_modules.nets.masked_videomamba import take
from lightning_modules.nets.masking import draw_visible, num_visible
from lightning_modules.nets.video_text import TextOutput, VideoOutput, VideoTextNet, VideoTower
from lightning_modules.nets.videomamba import adapt_state_dict
from lightning_modules.tasks.taught_by_clip import TaughtByClip
from lightning_modules.tasks.text_video import TEXTS_AT_ONCE, learn_words
from lightning_modules.training.graded_retrieval import RetrievalScores
from lightning_modules.training.losses import alignment_loss
from lightning_modules.training.optim import Optim
from lightning_modules.training.reranking import Reranker

__all__ = ["VideoTextPretraining", "draw_negatives", "hide_words", "multi_positive_loss"]

TEMPERATURES = (0.001, 0.5)
IGNORED = -100
"""Target of words that are not to be guessed; what `torch.nn.functional.cross_entropy` leaves out."""


class VideoTextPretraining(TaughtByClip):
    """Learns videos, still images and their captions together (VideoMamba, section 3.4).

    Four losses, each with weight 1 (docs/protocol.md, section 12):

    - VTC, contrast: vectors of pairs are near, those of all others in the batches of all processes are far.
    - VTM, matching: the fusion encoder tells a pair from one with another text or video, preferably a likely one, of
      the process (or of all, with ``global_batch``).
    - MLM, masked words: the fusion encoder guesses hidden words from the others and the video.
    - UTA, alignment: as in masked pretraining, tokens are drawn towards those of a frozen CLIP.

    With a `teacher`, videos and images are masked and all four are learned. Without one nothing is masked and UTA is
    left out: the unmasked tuning that follows. Trained, it finds videos by text and the other way round.

    Videos of a masked batch have one vector, otherwise one for each frame; the similarity to a text is the mean of the
    frames' cosines. A batch holds clips of ``num_frames`` frames, or images as clips of one frame.

    Args:
        embed_dim: width of a video's tokens; the paper's M has 576.
        depth: number of blocks; the paper's M has 32.
        num_frames: frames of a clip.
        image_size: side of the square input in pixels.
        patch_size: side of a patch in pixels.
        text: sizes of BERT, see `lightning_modules.nets.bert.build_bert`; None takes those of ``text_weights``.
        fusion_layers: how many of BERT's upper layers see the video.
        dim: width of the shared space.
        max_words: tokens that a text is cut to, start and end included.
        mean: per channel, of inputs in [0, 1].
        std: per channel, of inputs in [0, 1].
        short_side: pixels of the short side before cropping; None means ``image_size``.
        sampling: how frames are picked, see `datamodules.video.sampling`.
        frame_stride: frames between two picked ones where ``sampling`` is "dense".
        interpolation: "bicubic", "bicubic-plain" (without antialiasing, as the released models have it) or "bilinear".
        resize: "crop" the middle of a frame in evaluation, or "squeeze" all of it to a square, as the released models.
        text_weights: BERT checkpoint to start from, ``google-bert/bert-base-uncased`` or a folder; its tokenizer is
            taken too. Without one, word pieces are learned from the DataModule's ``captions``.
        target_dim: width of the teacher's features after its projection: 512 of CLIP's B/16.
        variant: "all_blocks" or "official", as `lightning_modules.MaskedPretraining` has them.
        image_mask_ratio: the same of images.
        word_ratio: share of words that are to be guessed.
        global_batch: draw the wrong answers of matching from all processes and average words over them, so that a step
            is that of one process with all pairs (docs/video_text.md). False, as published, stays in each process.
        rerank: candidates that the matching head puts in order in a test; 0 tests the vectors alone.
        checkpoint_text: recompute BERT's layers too.
        optim: optimiser and schedule, see `lightning_modules.Optim`.
        taught: start, teacher and masks, see `lightning_modules.tasks.taught_by_clip.TaughtByClip`. Without a teacher
            it is unmasked tuning. ``init_from`` is another one of these, or a model whose video tower alone is taken.

    Raises:
        ModelError: options that do not exist or do not fit together.
    """

    training_weights = ("net.vision.clip_decoder.",)
    init_stages = ("fit", "validate", "test")
    """In which of the command's stages `init_from` is read: a released model is tested by the same recipe."""

    net: VideoTextNet

    def __init__(
        self,
        embed_dim: int = 576,
        depth: int = 32,
        num_frames: int = 8,
        image_size: int = 224,
        patch_size: int = 16,
        text: dict | None = None,
        fusion_layers: int = 3,
        dim: int = 512,
        max_words: int = 32,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        short_side: int | None = None,
        sampling: str = "sparse",
        frame_stride: int = 4,
        interpolation: str = "bicubic",
        resize: str = "crop",
        *,
        text_weights: str | None = None,
        target_dim: int = 512,
        variant: str = "all_blocks",
        image_mask_ratio: float = 0.5,
        word_ratio: float = 0.5,
        global_batch: bool = False,
        rerank: int = 128,
        checkpoint_text: bool = False,
        optim: Optim = Optim(lr=4e-4, min_lr=4e-6, warmup_lr=0.0, warmup_epochs=1.0),
        **taught: Any,
    ) -> None:
        super().__init__(**taught)
        self.save_config(locals())
        args = self.training_arguments
        if text is None:
            if text_weights is None:
                raise ModelError("text and text_weights are both missing; name a BERT checkpoint in text_weights, or "
                                 "give the sizes in text ({} is BERT-base).")  # fmt: skip
            text = self.hparams["text"] = pretrained_sizes(text_weights)
        bert = build_bert(text, fusion_layers, embed_dim)
        if max_words > bert.config.max_position_embeddings:
            raise ModelError(f"BERT has {bert.config.max_position_embeddings} positions; max_words {max_words} may not "
                             "exceed them.")  # fmt: skip
        words = BertWords(bert.config.vocab_size, max_words)
        if text_weights is not None:
            words.set_pieces(load_bert(bert, text_weights))
        tower = VideoTower(
            embed_dim, depth, num_frames, image_size, patch_size,
            None if args["teacher"] is None else target_dim, variant,
            drop_path=args["drop_path"], init=args["init"], activations=args["activations"],
        )  # fmt: skip
        for frames, ratio in ((num_frames, args["mask_ratio"]), (1, image_mask_ratio)):
            num_visible(args["mask_type"], ratio, frames, tower.grid_size)
        self.net = VideoTextNet(tower, bert, words, dim, checkpoint_text)
        self.set_normalisation(mean, std)
        self.scores = RetrievalScores()
        self.reranker = Reranker(rerank)

    def setup(self, stage: str) -> None:
        """Fetches a teacher given by its name, and learns word pieces where there is no pretrained tokenizer."""
        if stage != "fit":
            return
        if self.training_arguments["teacher"] is not None:
            self.teacher  # noqa: B018
        learn_words(self.net.words, self._data, "name a BERT checkpoint in text_weights")

    @property
    @override
    def preprocessing(self) -> dict[str, Any]:
        return {**super().preprocessing, "resize": self.hparams.resize}

    # Using it -------------------------------------------------------------------------------------------------------

    def forward(self, video: Tensor) -> Tensor:
        """Videos -> unit vectors (B, dim), float32: the directions of the means of the frames' vectors.

        Videos are (B, 3, T, H, W) of ``num_frames`` frames or of one, uint8 0..255 or float 0..1 (not clipped).
        """
        return F.normalize(self.net.encode_video(self.normalise(video)).mean, dim=-1)

    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """Texts -> unit vectors (M, dim), float32; one text gives (1, dim)."""
        parts = self._read([texts] if isinstance(texts, str) else list(texts))
        empty = torch.empty(0, self.net.dim, device=self.device)
        return torch.cat([empty, *(part.vectors for part in parts)])

    def similarity(self, texts: Sequence[str], video: Tensor) -> Tensor:
        """Means of the frames' cosines (M, B) with texts; videos as in `forward`."""
        return self.encode_text(texts) @ self.net.encode_video(self.normalise(video)).mean.T

    def match(self, texts: Sequence[str], video: Tensor) -> Tensor:
        """Probabilities (M, B) that texts and videos as in `forward` belong together, by the fusion encoder; slow."""
        tokens = self.net.encode_video(self.normalise(video)).tokens
        rows = []
        for text in self._read(list(texts)):
            found = [self.net.match(text.hidden, text.mask, one.expand(len(text.ids), -1, -1)) for one in tokens]
            rows.append(torch.stack(found, dim=1).softmax(dim=-1)[..., 1])
        return torch.cat(rows) if rows else tokens.new_empty(0, len(tokens))

    def forward_features(self, video: Tensor, pool: str | None = "cls") -> Tensor:
        """Videos as in `forward` -> their vectors (B, dim), or with ``pool=None`` the frames' (B, T, dim)."""
        return self(video) if pool is not None else self.net.encode_video(self.normalise(video)).vectors

    def _read(self, texts: list[str]) -> list[TextOutput]:
        return [self.net.encode_text(texts[i : i + TEXTS_AT_ONCE]) for i in range(0, len(texts), TEXTS_AT_ONCE)]

    def adapt_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of another one of these, or of a video tower alone, as this model has them.

        The teacher's decoder is left out where there is no teacher. Around a video tower everything keeps its values:
        BERT, the projections and heads, and the norm before the projection.
        """
        own = self.state_dict()
        if not any(name.startswith("net.vision.") for name in state_dict):
            tower = {k.replace("net.", "net.vision.", 1): v for k, v in state_dict.items() if ".head." not in k}
            around = {k: v for k, v in own.items() if not k.startswith("net.vision.") or ".pool_norm." in k}
            state_dict = {**around, **tower}
        unwanted = () if self.training_arguments["teacher"] is not None else self.training_weights
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith(unwanted)}
        net = {k.removeprefix("net.vision."): v for k, v in state_dict.items() if k.startswith("net.vision.")}
        adapted = {f"net.vision.{k}": v for k, v in adapt_state_dict(net, self.net.vision).items()}
        return {**state_dict, **adapted}

    # Training -------------------------------------------------------------------------------------------------------

    @override
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        losses = self.losses(batch)
        loss = torch.stack(list(losses.values())).sum()
        size = len(batch["text"])
        self.log("train/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        self.log_dict({f"train/{name}": v for name, v in losses.items()}, batch_size=size, sync_dist=True)
        return loss

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Losses of a training batch (docs/batches.md), scalars: "vtc", "vtm", "mlm" and, with a teacher, "uta"."""
        with torch.no_grad():
            self.net.temp.clamp_(*TEMPERATURES)
        x, group = self.normalise(batch["video"]), batch["video_index"]
        # What is drawn for a pair (mask, wrong answers, hidden words, in this order) depends on its seed alone.
        seed = batch["seed"] if "seed" in batch else torch.randint(2**32, (len(x),))
        chance = [_generator(number) for number in seed.tolist()]
        visible = target = None
        if self.training_arguments["teacher"] is not None:
            visible, target = self._ask_teacher(x, chance)
        video, text = self.net.encode_video(x, visible), self.net.encode_text(batch["text"])
        with torch.autocast(self.device.type, enabled=False):
            vectors = self.gather(text.vectors), self.gather(video.mean)
            contrast = multi_positive_loss(*vectors, self.net.temp, self.gather(group))
        matching = self._matching_loss(video, text, group, seed.to(self.device), chance)
        losses = {"vtc": contrast, "vtm": matching, "mlm": self._word_loss(video, text, chance)}
        if target is not None and video.aligned is not None:
            losses["uta"] = alignment_loss(video.aligned, target).mean()
        return losses

    def _ask_teacher(self, x: Tensor, chance: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Normalised videos -> the tokens that stay visible (B, 1 + K), and the teacher's features of these."""
        args, official = self.training_arguments, self.training_arguments["variant"] == "official"
        # The official teacher sees pixels as the video tower does; CLIP's own normalisation is another.
        seen = x if official else self.clip_pixels(x)
        side = self.net.vision.grid_size
        found = self.teacher(seen, side, final_norm=not official)
        visible = draw_visible(
            args["mask_type"], args["image_mask_ratio"] if x.shape[2] == 1 else args["mask_ratio"], len(x), x.shape[2],
            side, attention=found.attention, device=x.device, generator=chance,
        )  # fmt: skip
        return visible, self.teacher.project(take(found.hidden[-1], visible))

    def _matching_loss(
        self, video: VideoOutput, text: TextOutput, group: Tensor, seed: Tensor, chance: list[torch.Generator]
    ) -> Tensor:
        """VTM: the B pairs, and as far as there are any a wrong video for each text and a wrong text for each video."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            same = group[:, None] == self._share(group)
            # The numbers of a query are dealt out to the candidates in the order of their seeds, wherever they are.
            place = self._share(seed).argsort().argsort()
            noise = torch.stack([torch.empty(2, len(place)).exponential_(generator=own) for own in chance])
            noise = noise.to(place.device)[..., place]
            to_videos = text.vectors @ self._share(video.mean).T / self.net.temp
            to_texts = video.mean @ self._share(text.vectors).T / self.net.temp
            texts, wrong_video = draw_negatives(to_videos, same, noise[:, 0])
            videos, wrong_text = draw_negatives(to_texts, same, noise[:, 1])
        length = int(self._share(torch.tensor([text.mask.shape[1]], device=self.device)).max())
        hidden = self._share(F.pad(text.hidden, (0, 0, 0, length - text.mask.shape[1])))
        mask = torch.arange(length, device=self.device) < self._share(text.mask.sum(dim=1))[:, None]
        tokens = self._share(video.tokens)
        start = self.global_rank * len(group) if self.training_arguments["global_batch"] else 0
        own = start + torch.arange(len(group), device=self.device)
        words, seen = torch.cat([own, own[texts], wrong_text]), torch.cat([own, wrong_video, own[videos]])
        found = self.net.match(hidden[words], mask[words], tokens[seen])
        belong = torch.zeros(len(words), dtype=torch.int64, device=self.device)
        belong[: len(own)] = 1
        return self._mean(F.cross_entropy(found.float(), belong, reduction="sum"), len(words))

    def _word_loss(self, video: VideoOutput, text: TextOutput, chance: list[torch.Generator]) -> Tensor:
        words = self.net.words
        noise = torch.stack([torch.rand(words.max_words, 3, generator=own) for own in chance]).to(self.device)
        ratio = self.training_arguments["word_ratio"]
        hidden, target = hide_words(
            text.ids, text.mask, len(words.pieces), words.mask_id, ratio, noise[:, : text.ids.shape[1]]
        )
        scores = self.net.guess_words(hidden, text.mask, video.tokens).float()
        total = F.cross_entropy(scores.flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="sum")
        return self._mean(total, (target != IGNORED).sum())

    def _share(self, rows: Tensor) -> Tensor:
        """(B, ...) -> what matching draws from: the same or, with ``global_batch``, those of all processes."""
        return self.gather(rows) if self.training_arguments["global_batch"] else rows

    def _mean(self, total: Tensor, count: Tensor | int) -> Tensor:
        """A sum as the mean over `count`; with ``global_batch``, so that the mean over processes is that over all."""
        count = self._share(torch.as_tensor(count, device=self.device, dtype=total.dtype).view(1)).mean()
        return total / count.masked_fill(count == 0, 1)  # there may be no hidden word in a short batch

    # Evaluation -----------------------------------------------------------------------------------------------------

    def _evaluate(self, batch: dict[str, Any], rerank: bool) -> dict[str, Any] | None:
        if "frame_mask" in batch and not batch["frame_mask"].all():
            raise ModelError("This model takes whole clips and the data pads short videos; leave data.fps out.")
        counts = [len(texts) for texts in batch["text"]]
        video = self.net.encode_video(self.normalise(batch["video"]))
        parts = self._read([text for texts in batch["text"] for text in texts])
        vectors = torch.cat([part.vectors for part in parts]) if parts else video.mean[:0]
        self.scores.update(video.mean, vectors, batch)
        # Where many answers are right, the order of a few candidates decides little.
        if rerank and not self.scores.is_graded:
            words = [hidden[mask] for part in parts for hidden, mask in zip(part.hidden, part.mask, strict=True)]
            self.reranker.update(batch["video_index"], video.mean, video.tokens, counts, vectors, words)
        if self.scores.is_graded:
            return None
        return {"video_vectors": video.mean, "text_vectors": vectors, "scale": 1.0, "dual_softmax": False}

    @override
    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate(batch, rerank=False)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any] | None:
        """What `lightning_modules.callbacks.Report` takes, whose ranks are those of the vectors, before re-ranking."""
        return self._evaluate(batch, rerank=self.training_arguments["rerank"] > 0)

    def log_results(self, stage: str) -> None:
        """Logs the ranks of the vectors (test/t2v_r1, ...) and those after re-ranking (test/reranked_t2v_r1, ...).

        Only a test is ranked again, and no data with graded relevance.
        """
        rerank = stage == "test" and self.training_arguments["rerank"] and not self.scores.is_graded
        result = self.scores.compute()
        if rerank:
            again = self.reranker.compute(lambda *pair: self.net.match(*pair)[:, 1], self.device)
            result |= {f"reranked_{name}": value.to(self.device) for name, value in again.items()}
            self.reranker.reset()
        for name, value in result.items():
            self.log(f"{stage}/{name}", value, prog_bar=name.endswith("_r1"), sync_dist=True)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Unit vectors (B', dim) on the CPU with the paths they belong to; unreadable videos are left out."""
        kept = [i for i, index in enumerate(batch["video_index"].tolist()) if index >= 0]
        return {"path": [batch["path"][i] for i in kept], "embedding": self(batch["video"]).cpu()[kept]}


def multi_positive_loss(text: Tensor, video: Tensor, temperature: Tensor | float, group: Tensor) -> Tensor:
    """VTC: mean of the text-to-video and the video-to-text cross-entropy, all pairs of a group being right answers.

    Args:
        text: (N, E).
        video: (N, E), of the same pairs.
        temperature: that their products are divided by.
        group: int64 (N,); pairs of the same group, such as two captions of one video, share the probability evenly.
    """
    logits = text @ video.T / temperature
    same = (group[:, None] == group[None, :]).to(logits.dtype)
    target = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def draw_negatives(logits: Tensor, same: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """A wrong answer for each query, the likelier the more probable the model finds it (ALBEF, arXiv 2107.07651).

    Args:
        logits: of queries and candidates (B, N).
        same: bool (B, N), which candidates are no wrong answers.
        noise: (B, N), exponentially distributed with rate 1; the answer is the first arrival among independent
            Poisson processes whose rates are the probabilities.

    Returns:
        int64 queries (R,) that have a wrong answer, rising, and the answers drawn for them (R,).
    """
    # The constant keeps what the model thinks impossible from being so.
    weights = (logits.softmax(dim=1) + 1e-4).masked_fill(same, 0.0)
    queries = (~same).any(dim=1).nonzero().flatten()
    return queries, (weights / noise)[queries].argmax(dim=1)


def hide_words(
    ids: Tensor, mask: Tensor, vocab_size: int, mask_id: int, ratio: float, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """MLM: chooses words to be guessed (BERT, section 3.1): of these 80 % are hidden, 10 % another word, 10 % remain.

    Args:
        ids: int64 (M, L).
        mask: bool (M, L), False for padding, which is not chosen; neither is the first token.
        vocab_size: ids of other words are below.
        mask_id: of the token that hides a word.
        ratio: share of words that are chosen, each by itself.
        noise: (M, L, 3), uniform in [0, 1): whether a word is chosen, what becomes of it, and which other one it is.

    Returns:
        the new ids (M, L), and the old ones where they are to be guessed, -100 elsewhere (M, L).
    """
    draw, fate, other = noise.unbind(dim=-1)
    chosen = mask & (draw < ratio)
    chosen[:, 0] = False
    new = ids.masked_fill(chosen & (fate < 0.8), mask_id)
    new = torch.where(chosen & (fate >= 0.9), (other * vocab_size).long(), new)
    return new, ids.masked_fill(~chosen, IGNORED)


def _generator(seed: int) -> torch.Generator:
    """Other numbers than those that the loader drew from the same seed."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, 1]).generate_state(1)[0]))
