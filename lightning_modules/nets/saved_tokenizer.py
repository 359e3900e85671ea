"""Tokenizers of transformers that are saved and loaded with a model's weights.

A model of the zoo is rebuilt from plain values and its weights alone, without a download: the sizes of a text tower are
a dict, and the word pieces of its tokenizer are buffers.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lightning_modules.errors import ModelError

__all__ = ["BytePairTokenizer", "SavedTokenizer", "byte_characters"]


class SavedTokenizer(nn.Module, ABC):
    """Base of the tokenizers whose word pieces are buffers.

    The tokenizer of transformers is built at the first text, and again after other pieces are loaded or set; setting
    them resets `_tokenizer`.

    Args:
        max_words: tokens that a text is cut to, start and end included.
    """

    START: ClassVar[str]
    """Where word pieces come from, for the error without them: "a CLIP checkpoint (clip_weights)"."""

    def __init__(self, max_words: int) -> None:
        super().__init__()
        self.max_words = max_words
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @property
    @abstractmethod
    def is_empty(self) -> bool:
        """Whether there is room for word pieces and there are none yet."""

    @abstractmethod
    def _build(self) -> PreTrainedTokenizerBase:
        """Build the tokenizer from the buffers."""

    def _made(self) -> PreTrainedTokenizerBase:
        if self._tokenizer is None:
            if self.is_empty:
                raise ModelError(f"The tokenizer has no word pieces yet; load weights, start from {self.START}, or let "
                                 "it learn them from captions.")  # fmt: skip
            # Loader processes are forked after the first text, and tokenizers warns at each if it had threads.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
            self._tokenizer = self._build()
        return self._tokenizer

    def as_json(self) -> str:
        """The tokenizer as the package tokenizers reads it (``Tokenizer.from_str``), without cutting and padding."""
        from tokenizers import Tokenizer

        made = Tokenizer.from_str(self._made().backend_tokenizer.to_str())
        made.no_truncation()
        made.no_padding()
        return made.to_str()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._tokenizer = None


class BytePairTokenizer(SavedTokenizer):
    """Base of those whose word pieces are pairs: a subclass registers the buffer ``merges``, unused rows -1."""

    BYTES = 256
    merges: Tensor

    @property
    @override
    def is_empty(self) -> bool:
        return len(self.merges) > 0 and bool((self.merges < 0).all())

    def once(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (n, L) of the n different texts, and the row that each text has there (len(texts),)."""
        different = list(dict.fromkeys(texts))
        device = self.merges.device
        if device.type == "meta":  # operations are being counted, for which words do not matter
            ids = torch.zeros(len(different), self.max_words, dtype=torch.int64, device=device)
        else:
            ids = self(different)
        return ids, torch.tensor([different.index(text) for text in texts], device=device)

    @torch.no_grad()
    def set_merges(self, merges: Tensor) -> None:
        """Take word pieces, a row each, at most the number there is room for."""
        self.merges.fill_(-1)
        self.merges[: len(merges)] = merges.to(self.merges)
        self._tokenizer = None


def byte_characters() -> list[str]:
    """The 256 characters that represent bytes in CLIP's and RoBERTa's tokenizers, in the order of their code points."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())
