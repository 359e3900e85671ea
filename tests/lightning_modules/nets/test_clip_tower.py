"""CLIP's towers against transformers' own features, and the tokenizer that travels with the weights."""

import copy
import json
import pickle

import pytest
import torch
from transformers import CLIPTokenizer

from lightning_modules.errors import ModelError
from lightning_modules.nets.clip_tower import (
    ClipTokenizer,
    build_clip,
    encode_frames,
    encode_text,
    freeze_clip,
    load_clip,
    read_merges,
    sizes_of,
)

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {
    "projection_dim": 24,
    "text_config": {"vocab_size": 560, "max_position_embeddings": 16, **TOWER},
    "vision_config": {"image_size": 32, "patch_size": 8, **TOWER},
}
CAPTIONS = ["a red circle moves left", "a red square moves right", "a green circle grows", "a red star moves left"]


def learned(vocab_size=560, max_words=16):
    tokenizer = ClipTokenizer(vocab_size, max_words)
    tokenizer.learn(CAPTIONS)
    return tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder as transformers writes it, of a tiny CLIP and its tokenizer; and both."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    clip, tokenizer = build_clip(SIZES), learned()
    clip.save_pretrained(folder)
    tokenizer("x")
    tokenizer._tokenizer.save_pretrained(folder)
    return folder, clip.eval(), tokenizer


def test_features_are_those_of_transformers(checkpoint):
    _, clip, tokenizer = checkpoint
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        tokens = encode_frames(clip, images, patches=True)
        assert tokens.shape == (3, 1 + 16, 24)
        torch.testing.assert_close(tokens[:, 0], clip.get_image_features(images).pooler_output)
        torch.testing.assert_close(encode_frames(clip, images, patches=False), tokens[:, :1])
        hidden = clip.vision_model(images).last_hidden_state[:, 5]
        expected = clip.visual_projection(clip.vision_model.post_layernorm(hidden))
        torch.testing.assert_close(tokens[:, 5], expected)

        ids = tokenizer(CAPTIONS)
        torch.testing.assert_close(encode_text(clip, ids), clip.get_text_features(ids).pooler_output)
        # Padding changes nothing.
        torch.testing.assert_close(encode_text(clip, tokenizer(CAPTIONS[2:3])), encode_text(clip, ids)[2:3])


def test_a_checkpoint_of_transformers_is_read_whole(checkpoint):
    folder, clip, tokenizer = checkpoint
    again, merges = load_clip(str(folder))
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in clip.state_dict().items()}
    for key, value in clip.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    other = ClipTokenizer(560, 16)
    other.set_merges(merges)
    assert torch.equal(other.merges, tokenizer.merges)
    theirs = CLIPTokenizer.from_pretrained(folder)
    texts = ["A red circle, moves left!", "zebra's 42 naïve cafés", "", "green  GREEN\nstar"]
    expected = theirs(texts, padding=True, truncation=True, max_length=16, return_tensors="pt").input_ids
    assert torch.equal(other(texts), expected)
    # Written out, the sizes make the same towers again.
    assert sizes_of(build_clip(sizes_of(again))) == sizes_of(clip)
    assert sizes_of(clip)["vision_config"]["patch_size"] == 8


def test_default_sizes_are_vit_b_32():
    with torch.device("meta"):
        sizes = sizes_of(build_clip({}))
    assert sizes["projection_dim"] == 512
    assert sizes["vision_config"]["patch_size"] == 32 and sizes["vision_config"]["hidden_size"] == 768
    assert sizes["text_config"]["vocab_size"] == 49408 and sizes["text_config"]["max_position_embeddings"] == 77


def test_bytes_without_word_pieces():
    """Printable characters count from "!"; 256 more for the last of a word; then start and end."""
    tokenizer = ClipTokenizer(514, 8)
    assert not tokenizer.is_empty and tokenizer.merges.shape == (0, 2)
    a, b = ord("a") - ord("!"), ord("b") - ord("!")
    assert tokenizer(["AB a", "b"]).tolist() == [[512, a, b + 256, a + 256, 513], [512, b + 256, 513, 513, 513]]
    long = tokenizer(["abababababab"])[0].tolist()
    assert len(long) == 8 and long[0] == 512 and long[-1] == 513


def test_word_pieces_are_learned_saved_and_copied():
    tokenizer = learned()
    pieces = int((tokenizer.merges[:, 0] >= 0).sum())
    assert 10 < pieces <= 560 - 514
    assert torch.equal(tokenizer.merges, learned().merges)
    ids = tokenizer(["a red circle moves left"])
    assert ids.shape[1] <= 7 + 3  # words, not letters
    other = ClipTokenizer(560, 16)
    assert other.is_empty
    with pytest.raises(ModelError, match="no word pieces yet"):
        other(["a"])
    other.load_state_dict(tokenizer.state_dict())
    for twin in (other, copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert torch.equal(twin(["a red circle moves left"]), ids)
    # Loading other pieces into a tokenizer in use takes effect.
    other.learn(["zebra zebra zebra"])
    zebra = other(["zebra"])
    assert zebra.shape == (1, 3)
    other.load_state_dict(tokenizer.state_dict())
    assert torch.equal(other(["a red circle moves left"]), ids) and other(["zebra"]).shape[1] > 3


def test_ids_count_the_pieces_in_order():
    tokenizer = ClipTokenizer(520, 8)
    r, e, d = (ord(c) - ord("!") for c in "red")
    tokenizer.set_merges(torch.tensor([[e, d + 256], [r, 512]]))  # "ed</w>" is 512, "red</w>" 513
    assert tokenizer(["red ed re"]).tolist() == [[518, 513, 512, r, e + 256, 519]]


def test_a_tokenizer_in_another_order_is_refused(tmp_path, checkpoint):
    _, clip, _ = checkpoint
    clip.save_pretrained(tmp_path)
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "b": 3, "a": 4, "ba</w>": 5}
    CLIPTokenizer(vocab=vocab, merges=[("b", "a</w>")]).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="does not number its word pieces as CLIP's"):
        load_clip(str(tmp_path))


def test_freezing_layer_by_layer():
    clip = build_clip(SIZES)
    freeze_clip(clip, 1)
    trained = {name for name, p in clip.named_parameters() if p.requires_grad}
    assert not any(".embeddings." in name or ".layers.0." in name or "pre_layrnorm" in name for name in trained)
    for tower in ("text_model", "vision_model"):
        assert sum(name.startswith(f"{tower}.encoder.layers.1.") for name in trained) == 16
    for kept in ("text_model.final_layer_norm.weight", "vision_model.post_layernorm.weight", "text_projection.weight",
                 "visual_projection.weight", "logit_scale"):  # fmt: skip
        assert kept in trained


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_clip({"vision": {}}), "clip has no entry 'vision'; it takes text_config, vision_config"),
        (lambda: build_clip({"text_config": {"width": 3}}), "clip.text_config has no entry 'width'"),
        (lambda: build_clip({"text_config": {"hidden_size": 30}}), "do not fit together"),
        (lambda: freeze_clip(build_clip(SIZES), 3), "freeze_layers is 3; choose 0 to 2"),
        (lambda: ClipTokenizer(513, 8), "vocab_size 513 and max_words 8 have to be at least 514 and 3"),
        (lambda: load_clip("/nowhere/at/all"), "The CLIP checkpoint '/nowhere/at/all' cannot be read"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ModelError, match=message):
        call()


def test_word_pieces_of_a_list_are_those_of_the_tokenizer(checkpoint, tmp_path):
    folder, _, tokenizer = checkpoint
    _, merges = load_clip(str(folder))
    lines = [" ".join(pair) for pair in json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")
    found = read_merges(tmp_path / "merges.txt")
    assert torch.equal(found, merges) and torch.equal(found, tokenizer.merges[: len(found)])
    for text in ("no pieces", "three parts here", "<html>"):
        (tmp_path / "other.txt").write_text(text, encoding="utf-8")
        with pytest.raises(ModelError, match=r"not list the word pieces of CLIP's tokenizer; take its merges\.txt"):
            read_merges(tmp_path / "other.txt")
