"""What models of text and video vectors share: pairs to train on, ranks of a split, word pieces, vectors of texts."""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_modules.base import BaseModule
from lightning_modules.errors import ModelError
from lightning_modules.training.graded_retrieval import RetrievalScores

if TYPE_CHECKING:
    from lightning_modules.nets.bert import BertWords
    from lightning_modules.nets.clip4clip import TextVideoNet
    from lightning_modules.nets.clip_tower import ClipTokenizer
    from lightning_modules.nets.dual_encoder import DualEncoderNet
    from lightning_modules.nets.roberta import RobertaWords

__all__ = ["TextVideoModule", "learn_words"]

TEXTS_AT_ONCE = 256


class TextVideoModule(BaseModule):
    """Abstract base of modules that make unit vectors of videos and texts in one space.

    A subclass builds ``self.net``, which has a ``tokenizer``, a ``logit_scale``, a ``dim`` and ``encode_text``, makes
    the vectors of a batch's videos in `encode_videos`, and says in `loss_of` what a batch of pairs costs.

    Attributes:
        scores: what a split's vectors are collected in.
        word_pieces: what the tokenizer needs, for the error without it.
    """

    net: "TextVideoNet | DualEncoderNet"
    scores: RetrievalScores
    word_pieces: ClassVar[str]

    @abstractmethod
    def encode_videos(self, batch: dict[str, Any]) -> Tensor:
        """Unit vectors (B, D) of the videos of a batch (docs/batches.md)."""

    @abstractmethod
    def loss_of(self, text: Tensor, video: Tensor, group: Tensor | None) -> Tensor:
        """Loss of all processes' pairs of unit vectors (N, D); those of a `group`, int64 (N,), are not pushed apart."""

    def setup(self, stage: str) -> None:
        """Learns word pieces from the data's captions where there is no pretrained tokenizer."""
        if stage == "fit":
            learn_words(self.net.tokenizer, self._data, self.word_pieces)

    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """Texts -> unit vectors (M, D), float32; one text gives (1, D)."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        parts = [self.net.encode_text(texts[i : i + TEXTS_AT_ONCE]) for i in range(0, len(texts), TEXTS_AT_ONCE)]
        return torch.cat(parts) if parts else torch.empty(0, self.net.dim, device=self.device)

    def similarity(self, texts: Sequence[str], video: Tensor) -> Tensor:
        """Cosines (M, B) of texts and videos; videos as in `forward`."""
        return self.encode_text(texts) @ self(video).T

    @override
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        text, video = self.encode_text(batch["text"]), self.encode_videos(batch)
        group = None if self.training_arguments["same_video_negatives"] else self.gather(batch["video_index"])
        # Every process computes the whole loss; averaging the gradients over processes makes up for what gathering
        # sums, so the step is that of one process with all samples.
        loss = self.loss_of(self.gather(text), self.gather(video), group)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(text), sync_dist=True)
        return loss

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any] | None:
        """What `lightning_modules.callbacks.Report` takes; nothing of data with graded relevance."""
        text, video = self.encode_text([text for texts in batch["text"] for text in texts]), self.encode_videos(batch)
        # With the temperature, the products of the two are the logits, which the dual softmax needs.
        scale = self.net.logit_scale.exp()
        self.scores.update(video, scale * text, batch)
        if self.scores.is_graded:  # a rank is no measure of it
            return None
        dual_softmax = self.scores.ranks.dual_softmax
        return {"video_vectors": video, "text_vectors": text, "scale": scale.item(), "dual_softmax": dual_softmax}

    @override
    def log_results(self, stage: str) -> None:
        for name, value in self.scores.compute().items():
            self.log(f"{stage}/{name}", value, prog_bar=name.endswith(("_r1", "map")), sync_dist=True)

    @override
    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.test_step(batch, batch_idx)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Vectors (B', D) on the CPU with the paths they belong to; unreadable videos are left out."""
        kept = [i for i, index in enumerate(batch["video_index"].tolist()) if index >= 0]
        embedding = self.encode_videos(batch).cpu()
        return {"path": [batch["path"][i] for i in kept], "embedding": embedding[kept]}


def learn_words(
    tokenizer: "BertWords | ClipTokenizer | RobertaWords", data: object, remedy: str, more: Sequence[str] = ()
) -> None:
    """Let a tokenizer without word pieces learn them from a DataModule's ``captions`` and from `more` texts.

    Raises:
        ModelError: the data has no captions; the sentence ends with the remedy.
    """
    if tokenizer.is_empty:
        captions = getattr(data, "captions", None)
        if captions is None:
            raise ModelError(f"The tokenizer has no word pieces and the data no captions to learn them from; {remedy}.")
        tokenizer.learn(chain(captions, more))
