"""CLIP's two towers (arXiv 2103.00020), from transformers, and a tokenizer that is saved with the weights."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from lightning_modules.checks import check_sizes
from lightning_modules.errors import ModelError
from lightning_modules.nets.pretrained import fitting_sizes, pretrained_folder
from lightning_modules.nets.saved_tokenizer import BytePairTokenizer, byte_characters

__all__ = [
    "CLIP_SIZES",
    "ClipTokenizer",
    "build_clip",
    "build_image_tower",
    "encode_frames",
    "encode_text",
    "freeze_clip",
    "load_clip",
    "load_image_tower",
    "read_merges",
    "sizes_of",
    "text_tower",
]

_COMMON = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
)
CLIP_SIZES = {
    "text_config": ("vocab_size", "max_position_embeddings", *_COMMON),
    "vision_config": ("image_size", "patch_size", *_COMMON),
}


def build_clip(sizes: dict) -> CLIPModel:
    """Towers with random weights.

    Args:
        sizes: arguments of `transformers.CLIPConfig`: ``projection_dim``, and dicts ``text_config`` and
            ``vision_config``; what is left out is ViT-B/32's, so ``{}`` is ViT-B/32 and
            ``{"vision_config": {"patch_size": 16}}`` is ViT-B/16.

    Raises:
        ModelError: an unknown key or a value that does not fit.
    """
    _check_sizes(sizes)
    text = sizes.get("text_config", {})
    with fitting_sizes("clip"):
        return CLIPModel(CLIPConfig(**{**sizes, "text_config": {**text, **_special_ids(text)}}))


def build_image_tower(sizes: dict) -> CLIPVisionModelWithProjection:
    """The image tower and its projection alone, with random weights; `sizes` and errors as for `build_clip`."""
    _check_sizes(sizes)
    width: Any = sizes.get("projection_dim", CLIPConfig.projection_dim)
    with fitting_sizes("clip"):
        return CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes.get("vision_config", {}), projection_dim=width))


def text_tower(
    kind: type[CLIPTextModel] | type[CLIPTextModelWithProjection], sizes: dict, **others: Any
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """The text tower alone, with random weights, called ``text`` in messages.

    Args:
        kind: its class.
        sizes: those of ``CLIP_SIZES["text_config"]`` that are not ViT-B/32's.
        others: further arguments of `transformers.CLIPTextConfig`; `sizes` override them.

    Raises:
        ModelError: an unknown key or a value that does not fit.
    """
    check_sizes("text", sizes, CLIP_SIZES["text_config"])
    with fitting_sizes("text"):
        return kind(CLIPTextConfig(**{**others, **sizes, **_special_ids(sizes)}))


def _special_ids(text: dict) -> dict[str, int]:
    end = text.get("vocab_size", CLIPTextConfig.vocab_size) - 1
    return {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}


def _check_sizes(sizes: dict) -> None:
    # transformers keeps whatever it is given, so a misspelt size would go unnoticed.
    parts = {key: sizes[key] for key in CLIP_SIZES if key in sizes}
    check_sizes("clip", {k: v for k, v in sizes.items() if k not in parts}, (*CLIP_SIZES, "projection_dim"))
    for key, part in parts.items():
        check_sizes(f"clip.{key}", part, CLIP_SIZES[key])


def sizes_of(clip: CLIPModel) -> dict:
    """The sizes of towers, written out in full, as `build_clip` takes them."""
    config = clip.config
    sizes = {key: {name: getattr(getattr(config, key), name) for name in names} for key, names in CLIP_SIZES.items()}
    return {**sizes, "projection_dim": config.projection_dim}


def load_clip(source: str) -> tuple[CLIPModel, Tensor]:
    """Pretrained towers and tokenizer.

    Args:
        source: repository of a CLIP model on the Hugging Face Hub (``openai/clip-vit-base-patch32``), or a folder that
            transformers wrote; see `lightning_modules.nets.pretrained`.

    Returns:
        the towers in float32 and the word pieces as `ClipTokenizer` keeps them.

    Raises:
        ModelError: it cannot be fetched, or holds something else.
    """
    with pretrained_folder("CLIP", source) as folder:
        clip = CLIPModel.from_pretrained(folder, dtype=torch.float32)
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    return clip.train(), merges_of(tokenizer, source)  # from_pretrained leaves it in eval mode


def load_image_tower(source: str) -> CLIPVisionModelWithProjection:
    """The pretrained image tower and its projection alone, in float32; `source` and errors as for `load_clip`."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it would list the text tower's weights as left over
    try:
        # Some checkpoints note the width of the projection for both towers together only.
        with pretrained_folder("CLIP", source) as folder:
            width = AutoConfig.from_pretrained(folder, trust_remote_code=False).projection_dim
            tower, found = CLIPVisionModelWithProjection.from_pretrained(
                folder, dtype=torch.float32, projection_dim=width, output_loading_info=True
            )
            if found["missing_keys"]:
                raise KeyError(f"it has no {min(found['missing_keys'])}")
    finally:
        logging.set_verbosity(level)
    return tower


def encode_frames(clip: CLIPModel, images: Tensor, patches: bool) -> Tensor:
    """Normalised images (M, 3, H, W) -> projected tokens (M, 1 + h * w, D), class token first, patches in raster order.

    As CLIP does for the class token alone, every token goes through the last norm and the projection (docs/protocol.md,
    section 16). Without `patches` it is only the class token (M, 1, D).
    """
    hidden = clip.vision_model(pixel_values=images).last_hidden_state
    hidden = hidden if patches else hidden[:, :1]
    return clip.visual_projection(clip.vision_model.post_layernorm(hidden))


def encode_text(clip: CLIPModel | CLIPTextModelWithProjection, ids: Tensor) -> Tensor:
    """Token ids (M, L) as `ClipTokenizer` makes them -> projected features of the end token (M, D)."""
    hidden = clip.text_model(input_ids=ids).last_hidden_state
    # The end token has the largest id and padding repeats it: the first one ends the text.
    return clip.text_projection(hidden[torch.arange(ids.shape[0], device=ids.device), ids.argmax(dim=1)])


def freeze_clip(clip: CLIPModel, layers: int) -> None:
    """Freeze the embeddings and the first `layers` blocks of both towers, as CLIP4Clip's freeze_layer_num.

    The final norms, the projections and the temperature stay trainable (docs/protocol.md, section 16).

    Raises:
        ModelError: fewer than 0 or more layers than the deeper tower has.
    """
    towers = (clip.text_model, clip.vision_model)
    most = max(len(tower.encoder.layers) for tower in towers)
    if not 0 <= layers <= most:
        raise ModelError(f"freeze_layers is {layers}; choose 0 to {most}, or null to train everything.")
    for tower in towers:
        tower.embeddings.requires_grad_(False)
        tower.encoder.layers[:layers].requires_grad_(False)
    clip.vision_model.pre_layrnorm.requires_grad_(False)


class ClipTokenizer(BytePairTokenizer):
    """CLIP's byte-pair tokenizer with its word pieces in a buffer, so that they are saved and loaded with the weights.

    Ids are CLIP's: 256 bytes, the same 256 at the end of a word, one per word piece in the order in which pieces are
    joined, start, end. The buffer ``merges`` (int32, (pieces, 2)) has the ids of the two parts of each piece; its
    length follows from the vocabulary. A vocabulary of 514 has no pieces: each byte is a token. Otherwise the pieces
    come with loaded weights, or from `learn`; unused ones are -1.

    Args:
        vocab_size: of the text tower; at least 514.
        max_words: tokens that a text is cut to, start and end included.

    Raises:
        ModelError: a vocabulary too small for bytes.
    """

    START = "a CLIP checkpoint (clip_weights)"

    def __init__(self, vocab_size: int, max_words: int) -> None:
        super().__init__(max_words)
        pieces = vocab_size - 2 * self.BYTES - 2
        if pieces < 0 or max_words < 3:
            raise ModelError(f"vocab_size {vocab_size} and max_words {max_words} have to be at least "
                             f"{2 * self.BYTES + 2} and 3: bytes, start and end.")  # fmt: skip
        self.vocab_size = vocab_size
        self.register_buffer("merges", torch.full((pieces, 2), -1, dtype=torch.int32))

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Texts -> ids int64 (len(texts), L), L at most ``max_words``: start, words, end, padded with end.

        Raises:
            ModelError: the tokenizer has no word pieces.
        """
        ids = self._made()(
            list(texts), padding=True, truncation=True, max_length=self.max_words, return_tensors="pt"
        ).input_ids
        return ids.to(self.merges.device)

    def learn(self, texts: Iterable[str]) -> None:
        """Take the most frequent word pieces of `texts` (byte-pair encoding); the same texts give the same ones."""
        from tokenizers import Tokenizer
        from tokenizers.models import BPE
        from tokenizers.trainers import BpeTrainer

        clip = CLIPTokenizer().backend_tokenizer
        tokenizer = Tokenizer(BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
        tokenizer.normalizer, tokenizer.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
        trainer = BpeTrainer(
            vocab_size=self.vocab_size,
            initial_alphabet=byte_characters(),
            end_of_word_suffix="</w>",
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        pairs = json.loads(tokenizer.to_str())["model"]["merges"]
        self.set_merges(_pair_ids(pairs[: len(self.merges)]))

    def _build(self) -> CLIPTokenizer:
        tokens = _byte_tokens()
        vocab = {token: i for i, token in enumerate(tokens)}
        pairs = []
        for left, right in self.merges.tolist():
            if left < 0:
                break
            pairs.append((tokens[left], tokens[right]))
            tokens.append(tokens[left] + tokens[right])
            vocab.setdefault(tokens[-1], len(tokens) - 1)
        vocab |= {"<|startoftext|>": self.vocab_size - 2, "<|endoftext|>": self.vocab_size - 1}
        # Pairs are what the class of tokenizers itself takes.
        return CLIPTokenizer(vocab=vocab, merges=pairs)


def merges_of(tokenizer: CLIPTokenizer, source: str | Path) -> Tensor:
    """Word pieces (n, 2) of a tokenizer in transformers' form.

    Raises:
        ModelError: its ids are not in CLIP's order.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocab, pairs = model["vocab"], model["merges"]
    expected = [*_byte_tokens(), *(left + right for left, right in pairs), "<|startoftext|>", "<|endoftext|>"]
    if sorted(vocab, key=vocab.__getitem__) != expected:
        raise ModelError(f"The tokenizer of {str(source)!r} does not number its word pieces as CLIP's; take a "
                         "checkpoint with CLIP's own tokenizer.")  # fmt: skip
    return _pair_ids(pairs)


def read_merges(path: str | Path) -> Tensor:
    """Word pieces (n, 2) of a ``merges.txt``: a line with the version, then a pair on each line.

    Raises:
        ModelError: it is another file.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    try:
        return _pair_ids(pairs)
    except (KeyError, ValueError) as error:
        raise ModelError(f"{path} does not list the word pieces of CLIP's tokenizer; take its merges.txt.") from error


def _pair_ids(pairs: Sequence[Sequence[str]]) -> Tensor:
    """Pairs of tokens -> pairs of ids (n, 2)."""
    ids = {token: i for i, token in enumerate(_byte_tokens())}
    found = []
    for left, right in pairs:
        found.append((ids[left], ids[right]))
        ids.setdefault(left + right, 2 * ClipTokenizer.BYTES + len(found) - 1)
    return torch.tensor(found, dtype=torch.int32).reshape(-1, 2)


def _byte_tokens() -> list[str]:
    alphabet = byte_characters()
    return [*alphabet, *(f"{character}</w>" for character in alphabet)]
