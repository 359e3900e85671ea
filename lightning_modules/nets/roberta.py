"""RoBERTa (arXiv 1907.11692) from transformers as MambaVL reads questions, and a tokenizer saved with the weights."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

from lightning_modules.checks import check_sizes
from lightning_modules.errors import ModelError
from lightning_modules.nets.pretrained import BERT_SIZES, fitting_sizes, pretrained_folder
from lightning_modules.nets.saved_tokenizer import BytePairTokenizer, byte_characters

__all__ = ["RobertaWords", "build_roberta", "load_roberta", "pretrained_sizes", "read_words"]

# RoBERTa-base's sizes that are not the defaults of transformers.
_BASE = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}


def build_roberta(sizes: dict[str, Any], whole: bool = False) -> RobertaModel:
    """RoBERTa with random weights.

    Parameter names are transformers' (``embeddings``, ``encoder.layer.N``, ``pooler``), which are those of the official
    MambaVL files below ``text_model.`` too.

    Args:
        sizes: arguments of `transformers.RobertaConfig`; what is left out is RoBERTa-base's, so ``{}`` is RoBERTa-base.
        whole: with layers and pooler; otherwise the embedding layer is all there is.

    Raises:
        ModelError: an unknown key or a value that does not fit.
    """
    check_sizes("text", sizes, BERT_SIZES)
    sizes = _BASE | sizes
    if not whole:
        sizes["num_hidden_layers"] = 0
    with fitting_sizes("text"):
        config = RobertaConfig(**sizes, attn_implementation="sdpa")
        return RobertaModel(config, add_pooling_layer=whole)


def pretrained_sizes(source: str) -> dict[str, Any]:
    """The sizes of a pretrained RoBERTa, written out in full, as `build_roberta` takes them; see `load_roberta`."""
    with pretrained_folder("RoBERTa", source, weights=False) as folder:
        config = RobertaConfig.from_pretrained(folder)
    return {name: getattr(config, name) for name in BERT_SIZES}


def load_roberta(roberta: RobertaModel, source: str, weights: bool = True) -> tuple[Tensor, Tensor]:
    """Give `roberta` pretrained weights.

    Args:
        roberta: of the same sizes, from `build_roberta`; what it leaves out is left out of the checkpoint too.
        source: repository of a RoBERTa on the Hugging Face Hub (``FacebookAI/roberta-base``), or a folder that
            transformers wrote; see `lightning_modules.nets.pretrained`.
        weights: False reads the word pieces alone.

    Returns:
        the word pieces, as `RobertaWords.set_pieces` takes them.

    Raises:
        ModelError: it cannot be fetched, or holds something else.
    """
    with pretrained_folder("RoBERTa", source, weights=weights) as folder:
        pieces = read_words(Path(folder, "vocab.json"), Path(folder, "merges.txt"))
        if not weights:
            return pieces
        donor, found = RobertaModel.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, add_pooling_layer=False
        )
        if found["missing_keys"]:
            raise KeyError(f"it has no {min(found['missing_keys'])}")
    own, theirs = roberta.state_dict(), donor.state_dict()
    # The pooler belongs to a task that RoBERTa is not trained on, so checkpoints lack it.
    taken = {name: theirs.get(name, weight) for name, weight in own.items()}
    if {name: w.shape for name, w in taken.items()} != {name: w.shape for name, w in own.items()}:
        raise ModelError(f"text and {source!r} have different sizes; set model.text to null to take those of "
                         "the checkpoint.")  # fmt: skip
    roberta.load_state_dict(taken)
    return pieces


class RobertaWords(BytePairTokenizer):
    """RoBERTa's byte-level byte-pair tokenizer with its word pieces in buffers, saved and loaded with the weights.

    Ids are RoBERTa's: start 0, padding 1, end 2, unknown 3, then bytes and word pieces by their frequency, and
    ``<mask>`` last. The buffer ``bytes`` (int32, (256,)) has the id of each byte, in the order of the characters that
    stand for them; ``merges`` (int32, (pieces, 3)) the ids of the two parts of each piece and its own, in the order in
    which pieces are joined, unused ones -1. A vocabulary of 261 has no pieces: each byte is a token.

    Args:
        vocab_size: of the text model; at least 261.
        max_words: tokens that a text is cut and filled up to, start and end included.

    Raises:
        ModelError: a vocabulary too small for bytes.
    """

    START = "a RoBERTa checkpoint (text_weights)"
    SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
    bytes: Tensor

    def __init__(self, vocab_size: int, max_words: int) -> None:
        super().__init__(max_words)
        pieces = vocab_size - self.BYTES - len(self.SPECIAL) - 1
        if pieces < 0 or max_words < 3:
            raise ModelError(f"vocab_size {vocab_size} and max_words {max_words} have to be at least "
                             f"{self.BYTES + len(self.SPECIAL) + 1} and 3: bytes, start, end, <mask>.")  # fmt: skip
        self.vocab_size = vocab_size
        first = len(self.SPECIAL)
        self.register_buffer("bytes", torch.arange(first, first + self.BYTES, dtype=torch.int32))
        self.register_buffer("merges", torch.full((pieces, 3), -1, dtype=torch.int32))

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Texts -> ids int64 (len(texts), max_words): start, words, end, padding; ``<mask>`` hides a word.

        Raises:
            ModelError: the tokenizer has no word pieces.
        """
        found = self._made()(
            list(texts), padding="max_length", truncation=True, max_length=self.max_words, return_tensors="pt"
        )
        return found.input_ids.to(self.merges.device)

    def learn(self, texts: Iterable[str]) -> None:
        """Take the most frequent word pieces of `texts` (byte-pair encoding); the same texts give the same ones."""
        from tokenizers import Tokenizer
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel
        from tokenizers.trainers import BpeTrainer

        tokenizer = Tokenizer(BPE())
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
        trainer = BpeTrainer(
            vocab_size=self.vocab_size - len(self.SPECIAL) - 1, initial_alphabet=byte_characters(), show_progress=False
        )
        tokenizer.train_from_iterator((text.replace("<mask>", "") for text in texts), trainer)
        first = len(self.SPECIAL)
        ids = {character: first + i for i, character in enumerate(byte_characters())}
        rows: list[tuple[int, int, int]] = []
        for left, right in json.loads(tokenizer.to_str())["model"]["merges"][: len(self.merges)]:
            own = ids.setdefault(left + right, first + self.BYTES + len(rows))
            rows.append((ids[left], ids[right], own))
        self.set_pieces((self.bytes.new_tensor([ids[c] for c in byte_characters()]), _rows(rows)))

    @torch.no_grad()
    def set_pieces(self, pieces: tuple[Tensor, Tensor]) -> None:
        """Take ids of the bytes (256,), and word pieces (n, 3) of which there is room for at most ``len(merges)``.

        Raises:
            ModelError: ids that are not in the vocabulary.
        """
        bytes_, merges = pieces
        last = self.vocab_size - 1
        if len(merges) > len(self.merges) or max(int(bytes_.max()), int(merges.max()) if len(merges) else 0) >= last:
            raise ModelError(f"The word pieces need ids below {last} and {len(self.merges)} places, and there are "
                             f"{len(merges)}; take those of the checkpoint that text describes.")  # fmt: skip
        self.bytes.copy_(bytes_)
        self.set_merges(merges)

    def _build(self) -> RobertaTokenizer:
        token_of = dict(zip(self.bytes.tolist(), byte_characters(), strict=True))
        pairs = []
        for left, right, own in self.merges.tolist():
            if left < 0:
                break
            pairs.append((token_of[left], token_of[right]))
            token_of[own] = token_of[left] + token_of[right]
        vocabulary = {token: i for i, token in token_of.items()}
        vocabulary |= {token: i for i, token in enumerate(self.SPECIAL)} | {"<mask>": self.vocab_size - 1}
        # Pairs are what the class of tokenizers itself takes.
        return RobertaTokenizer(vocab=vocabulary, merges=pairs)


def read_words(vocabulary: Path, merges: Path) -> tuple[Tensor, Tensor]:
    """Word pieces of RoBERTa's files vocab.json and merges.txt, as `RobertaWords.set_pieces` takes them.

    Raises:
        ModelError: the files are of another tokenizer.
    """
    try:
        ids = json.loads(vocabulary.read_text(encoding="utf-8"))
        lines = merges.read_text(encoding="utf-8").splitlines()
        pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        special = [ids[token] for token in RobertaWords.SPECIAL]
        found = (
            torch.tensor([ids[character] for character in byte_characters()], dtype=torch.int32),
            _rows([(ids[left], ids[right], ids[left + right]) for left, right in pairs]),
        )
        fits = special == list(range(len(special))) and ids["<mask>"] == max(ids.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{vocabulary.name} and {merges.name} cannot be read as a tokenizer ({error!r}); take those "
                         "of a RoBERTa.") from error  # fmt: skip
    if not fits:
        raise ModelError(f"{vocabulary.name} does not number {', '.join(RobertaWords.SPECIAL)} from 0 and <mask> last; "
                         "take the file of a RoBERTa.")  # fmt: skip
    return found


def _rows(rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32).reshape(-1, 3)
