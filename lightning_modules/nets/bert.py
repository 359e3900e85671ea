"""BERT (arXiv 1810.04805) from transformers as a text encoder with a fusion encoder on top, and its tokenizer.

The lower layers read the text alone; the upper ones attend to the tokens of a video too (ALBEF, arXiv 2107.07651)::

    ids -- embeddings -- layers 0 .. n-1 ---- encode_words
                             |
                         layers n .. end, each with cross-attention to the context ---- fuse

Legend of shapes: M texts, L words, D width of BERT, K tokens of a context, C their width.
"""

import copy
import re
from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertForMaskedLM, BertTokenizer
from transformers.models.bert.modeling_bert import BertLayer
from typing_extensions import override

from lightning_modules.checks import check_sizes
from lightning_modules.errors import ModelError
from lightning_modules.nets.pretrained import BERT_SIZES, fitting_sizes, pretrained_folder
from lightning_modules.nets.saved_tokenizer import SavedTokenizer

__all__ = ["BertWords", "build_bert", "clean_text", "encode_words", "fuse", "load_bert", "predict_words",
           "pretrained_sizes"]  # fmt: skip


def build_bert(sizes: dict, fusion_layers: int, context_dim: int) -> BertForMaskedLM:
    """BERT with random weights, its upper layers with cross-attention.

    Parameter names are transformers' (``bert.embeddings``, ``bert.encoder.layer.N``, ``cls.predictions``), which are
    those of the official checkpoints too. What maps words back to the vocabulary is the embedding, see `predict_words`.

    Args:
        sizes: arguments of `transformers.BertConfig`; what is left out is BERT-base's, so ``{}`` is BERT-base.
        fusion_layers: how many of the upper layers are the fusion encoder.
        context_dim: C, width of the tokens they attend to.

    Raises:
        ModelError: an unknown key or a value that does not fit.
    """
    check_sizes("text", sizes, BERT_SIZES)
    with fitting_sizes("text"):
        config = BertConfig(**sizes, attn_implementation="sdpa")
        bert = BertForMaskedLM(config)
    depth = bert.config.num_hidden_layers
    if not 0 < fusion_layers < depth:
        raise ModelError(f"fusion_layers is {fusion_layers}; with {depth} layers of BERT choose 1 to {depth - 1}.")
    # For transformers only a decoder has cross-attention. Its layers look ahead all the same where the mask says so.
    config = copy.deepcopy(bert.config)
    config.is_decoder = config.add_cross_attention = True
    for i in range(depth - fusion_layers, depth):
        layer = BertLayer(config, layer_idx=i)
        attention = layer.crossattention.self
        attention.key = nn.Linear(context_dim, attention.all_head_size)
        attention.value = nn.Linear(context_dim, attention.all_head_size)
        layer.attention.self.is_causal = False
        layer.apply(bert._init_weights)
        bert.bert.encoder.layer[i] = layer
    # It would hold the word embedding a second time.
    bert.cls.predictions.decoder = nn.Identity()  # `predict_words` does without
    return bert


def pretrained_sizes(source: str) -> dict:
    """The sizes of a pretrained BERT, written out in full, as `build_bert` takes them; arguments as for `load_bert`."""
    with pretrained_folder("BERT", source, weights=False) as folder:
        config = BertConfig.from_pretrained(folder)
    return {name: getattr(config, name) for name in BERT_SIZES}


def load_bert(bert: BertForMaskedLM, source: str) -> list[str]:
    """Give `bert` pretrained weights; cross-attention stays as it is.

    Args:
        bert: of the same sizes, from `build_bert`.
        source: repository of a BERT with a head for masked words on the Hugging Face Hub
            (``google-bert/bert-base-uncased``), or a folder that transformers wrote; see
            `lightning_modules.nets.pretrained`.

    Returns:
        the word pieces of its tokenizer, in the order of their ids.

    Raises:
        ModelError: it cannot be fetched, or holds something else.
    """
    with pretrained_folder("BERT", source) as folder:
        donor, found = BertForMaskedLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        if found["missing_keys"]:
            raise KeyError(f"it has no {min(found['missing_keys'])}")
        vocabulary = BertTokenizer.from_pretrained(folder).get_vocab()
    weights = {name: weight for name, weight in donor.state_dict().items() if ".decoder." not in name}
    own = bert.state_dict()
    weights |= {name: weight for name, weight in own.items() if ".crossattention." in name}
    if {name: w.shape for name, w in weights.items()} != {name: w.shape for name, w in own.items()}:
        raise ModelError(f"text and {source!r} have different sizes; set model.text to null to take those of "
                         "the checkpoint.")  # fmt: skip
    bert.load_state_dict(weights)
    return sorted(vocabulary, key=vocabulary.__getitem__)


def encode_words(bert: BertForMaskedLM, ids: Tensor, mask: Tensor, recompute: bool = False) -> Tensor:
    """Token ids and mask (M, L) as `BertWords` makes them -> what the text layers say of each word (M, L, D).

    With `recompute`, layers are run again in the backward pass in place of keeping what they held.
    """
    return _run(bert, recompute, bert.bert.embeddings(input_ids=ids), mask)


def fuse(bert: BertForMaskedLM, hidden: Tensor, mask: Tensor, context: Tensor, recompute: bool = False) -> Tensor:
    """Words that attend to a video each.

    Args:
        bert: from `build_bert`.
        hidden: from `encode_words`, (M, L, D).
        mask: bool (M, L), False for padding.
        context: tokens of the video that belongs to each text, (M, K, C).
        recompute: see `encode_words`.

    Returns:
        (M, L, D).
    """
    return _run(bert, recompute, hidden, mask, context)


def _run(bert: BertForMaskedLM, recompute: bool, hidden: Tensor, mask: Tensor, *context: Tensor) -> Tensor:
    """The text layers or, where there is a context, the fusion layers."""
    # (M, 1, L, L): every word attends to every one that is not padding, to later ones too.
    mask = mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
    for layer in cast("Iterable[BertLayer]", bert.bert.encoder.layer):
        if layer.add_cross_attention != bool(context):
            continue
        if recompute and torch.is_grad_enabled():
            hidden = checkpoint(layer, hidden, mask, *context, use_reentrant=False)
        else:
            hidden = layer(hidden, mask, *context)
    return hidden


def predict_words(bert: BertForMaskedLM, hidden: Tensor) -> Tensor:
    """Words (..., D) -> scores of the whole vocabulary at each place (..., vocab_size)."""
    head = bert.cls.predictions
    return F.linear(head.transform(hidden), bert.bert.embeddings.word_embeddings.weight, head.bias)


def clean_text(text: str) -> str:
    """Clean a caption as for the published models: lower case, without punctuation (docs/protocol.md, section 14).

    >>> clean_text("<person> re-opens  the door (slowly)!")
    'person re opens the door slowly'
    """
    text = re.sub(r"""[,.'!?"()*#:;~]""", "", text.lower())
    text = text.replace("-", " ").replace("/", " ").replace("<person>", "person")
    return " ".join(text.split())


class BertWords(SavedTokenizer):
    """BERT's tokenizer with its word pieces in a buffer, so that they are saved and loaded with the weights.

    The buffer ``pieces``, uint8 (vocab_size, 32), has the UTF-8 bytes of each piece, filled up with 0; the number of a
    row is its id. Rows of zeros are not used. The pieces come with loaded weights, from `set_pieces` or from `learn`.

    Args:
        vocab_size: of BERT; at least 5.
        max_words: tokens that a text is cut to, start and end included.

    Raises:
        ModelError: a vocabulary or texts too short for the special tokens.
    """

    START = "a BERT checkpoint (text_weights)"
    SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    BYTES = 32
    pieces: Tensor

    def __init__(self, vocab_size: int, max_words: int) -> None:
        super().__init__(max_words)
        if vocab_size < len(self.SPECIAL) or max_words < 3:
            raise ModelError(f"vocab_size {vocab_size} and max_words {max_words} have to be at least "
                             f"{len(self.SPECIAL)} and 3: {', '.join(self.SPECIAL)}; start, a word, end.")  # fmt: skip
        self.register_buffer("pieces", torch.zeros(vocab_size, self.BYTES, dtype=torch.uint8))

    @property
    @override
    def is_empty(self) -> bool:
        return not bool(self.pieces.any())

    @property
    def mask_id(self) -> int:
        """Id of the token that stands for a hidden word."""
        return self._made().mask_token_id

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts, cleaned by `clean_text` -> ids int64 and mask bool, both (M, L), L at most ``max_words``.

        A row is start, words, end, padding; the mask is False for the last.

        Raises:
            ModelError: the tokenizer has no word pieces.
        """
        cleaned = [clean_text(text) for text in texts]
        found = self._made()(cleaned, padding=True, truncation=True, max_length=self.max_words, return_tensors="pt")
        device = self.pieces.device
        return found.input_ids.to(device), found.attention_mask.bool().to(device)

    def learn(self, texts: Iterable[str]) -> None:
        """Learn word pieces from texts: as many as there is room for, the most frequent first.

        The same texts give the same ones, in every process.
        """
        from tokenizers.trainers import WordPieceTrainer

        tokenizer = BertTokenizer().backend_tokenizer
        cleaned = [clean_text(text) for text in texts]
        split, plain = tokenizer.pre_tokenizer.pre_tokenize_str, tokenizer.normalizer.normalize_str
        words = {word for text in cleaned for word, _ in split(plain(text))}
        # The trainer finds letters in no particular order, and its choice between pairs equally frequent follows it.
        letters = sorted({*"".join(words)}) + sorted({f"##{letter}" for word in words for letter in word[1:]})
        trainer = WordPieceTrainer(
            vocab_size=len(self.pieces), special_tokens=[*self.SPECIAL, *letters], show_progress=False,
            continuing_subword_prefix="##",
        )  # fmt: skip
        tokenizer.train_from_iterator(cleaned, trainer)
        vocabulary = tokenizer.get_vocab()
        learned = sorted(vocabulary, key=vocabulary.__getitem__)
        self.set_pieces([piece for piece in learned if len(piece.encode()) <= self.BYTES][: len(self.pieces)])

    @torch.no_grad()
    def set_pieces(self, pieces: Sequence[str]) -> None:
        """Take word pieces in the order of their ids, as many as there is room for at most.

        Raises:
            ModelError: too many, too long, or a special token is not among them.
        """
        encoded = [piece.encode() for piece in pieces]
        missing = [token for token in self.SPECIAL if token not in pieces]
        if missing or len(encoded) > len(self.pieces) or any(not 0 < len(piece) <= self.BYTES for piece in encoded):
            raise ModelError(
                f"A vocabulary for this model has at most {len(self.pieces)} pieces of 1 to {self.BYTES} bytes, "
                f"{', '.join(self.SPECIAL)} among them; this one has {len(encoded)}"
                f"{' and no ' + missing[0] if missing else ''}; take that of an uncased BERT."
            )
        table = b"".join(piece.ljust(self.BYTES, b"\0") for piece in encoded)
        rows = torch.frombuffer(bytearray(table), dtype=torch.uint8).view(-1, self.BYTES)
        self.pieces.zero_()
        self.pieces[: len(rows)] = rows.to(self.pieces.device)
        self._tokenizer = None

    def _build(self) -> BertTokenizer:
        rows = (bytes(row).rstrip(b"\0").decode() for row in self.pieces.cpu().numpy())
        return BertTokenizer(vocab={piece: i for i, piece in enumerate(rows) if piece})
