"""RoBERTa's tokenizer against files in transformers' format, and its embedding layer."""

import json

import pytest
import torch
from transformers import RobertaConfig, RobertaForMaskedLM, RobertaTokenizer

from lightning_modules.errors import ModelError
from lightning_modules.nets.roberta import RobertaWords, build_roberta, load_roberta, pretrained_sizes, read_words

TEXTS = ["what is the person cutting ?", "what is the <mask> doing with the knife ?", "Käse, naïve — 3 eggs!", ""]
SIZES = {"vocab_size": 300, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1,
         "intermediate_size": 16, "max_position_embeddings": 48}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small RoBERTa as transformers writes it, its tokens numbered by frequency and not in the order of joining."""
    path = tmp_path_factory.mktemp("roberta")
    words = RobertaWords(300, 16)
    words.learn(["what is the person doing ?", "the knife cuts the bread with the other knife"] * 3)
    tokenizer = words._build()
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = [token for token in state["vocab"] if token not in (*RobertaWords.SPECIAL, "<mask>")]
    shuffled = [tokens[i] for i in torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0)).tolist()]
    vocabulary = {token: i for i, token in enumerate([*RobertaWords.SPECIAL, *shuffled])}
    vocabulary["<mask>"] = 299  # rows in between are unused, as madeupword0000 is
    (path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    pairs = [" ".join(pair) for pair in state["merges"]]
    (path / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]), encoding="utf-8")
    torch.manual_seed(0)
    config = RobertaConfig(**{**SIZES, "type_vocab_size": 1, "layer_norm_eps": 1e-5}, pad_token_id=1)
    RobertaForMaskedLM(config).save_pretrained(path)
    return path


def test_ids_are_those_of_transformers(folder):
    words = RobertaWords(300, 40)
    words.set_pieces(read_words(folder / "vocab.json", folder / "merges.txt"))
    theirs = RobertaTokenizer.from_pretrained(str(folder))
    expected = theirs(TEXTS, padding="max_length", truncation=True, max_length=40, return_tensors="pt").input_ids
    assert torch.equal(words(TEXTS), expected)
    assert words(TEXTS)[1].tolist().count(299) == 1 and words(TEXTS)[3].tolist() == [0, 2] + [1] * 38


def test_long_texts_are_cut_with_their_end(folder):
    words = RobertaWords(300, 6)
    words.set_pieces(read_words(folder / "vocab.json", folder / "merges.txt"))
    ids = words(["the knife " * 20])
    assert ids.shape == (1, 6) and ids[0, 0] == 0 and ids[0, -1] == 2


def test_word_pieces_are_saved_with_the_weights(folder):
    words = RobertaWords(300, 16)
    assert words.is_empty
    with pytest.raises(ModelError, match="no word pieces yet"):
        words(["what ?"])
    words.set_pieces(read_words(folder / "vocab.json", folder / "merges.txt"))
    again = RobertaWords(300, 16)
    again.load_state_dict(words.state_dict())
    assert torch.equal(again(TEXTS), words(TEXTS))


def test_learned_pieces_are_the_same_each_time():
    first, second, plain = RobertaWords(280, 40), RobertaWords(280, 40), RobertaWords(261, 40)
    for words in (first, second):
        words.learn(TEXTS)
    assert torch.equal(first.merges, second.merges) and not first.is_empty
    assert (first(TEXTS[:1]) != 1).sum() < (plain(TEXTS[:1]) != 1).sum()
    assert not plain.is_empty  # bytes are enough


def test_weights_of_a_checkpoint(folder):
    torch.manual_seed(1)
    roberta = build_roberta(SIZES)
    before = roberta.embeddings.word_embeddings.weight.clone()
    pieces = load_roberta(roberta, str(folder), weights=False)
    assert torch.equal(roberta.embeddings.word_embeddings.weight, before)
    theirs = RobertaForMaskedLM.from_pretrained(str(folder))
    assert torch.equal(load_roberta(roberta, str(folder))[1], pieces[1])
    ids = torch.tensor([[0, 9, 11, 2, 1, 1]])
    expected = theirs.roberta.embeddings.eval()(input_ids=ids)
    assert torch.equal(roberta.eval().embeddings(input_ids=ids), expected)
    assert [name for name, _ in roberta.named_parameters() if not name.startswith("embeddings.")] == []
    whole = build_roberta(SIZES, whole=True)
    load_roberta(whole, str(folder))
    assert torch.equal(whole.encoder.layer[0].output.dense.weight, theirs.roberta.encoder.layer[0].output.dense.weight)
    sizes = pretrained_sizes(str(folder))
    assert sizes["vocab_size"] == 300 and sizes["layer_norm_eps"] == 1e-5
    with pytest.raises(ModelError, match=r"have different sizes; set model\.text to null"):
        load_roberta(build_roberta({**SIZES, "hidden_size": 8}), str(folder))


def test_the_default_is_roberta_base():
    with torch.device("meta"):
        roberta = build_roberta({})
    assert sum(p.numel() for p in roberta.parameters()) == (50_265 + 514 + 1 + 2) * 768
    assert roberta.embeddings.LayerNorm.eps == 1e-5


def test_mistakes(folder, tmp_path):
    with pytest.raises(ModelError, match="text has no entry 'vocab'"):
        build_roberta({"vocab": 3})
    with pytest.raises(ModelError, match="do not fit together"):
        build_roberta({**SIZES, "num_attention_heads": 3}, whole=True)
    with pytest.raises(ModelError, match="have to be at least 261"):
        RobertaWords(260, 16)
    with pytest.raises(ModelError, match="need ids below 269"):
        RobertaWords(270, 16).set_pieces(read_words(folder / "vocab.json", folder / "merges.txt"))
    with pytest.raises(ModelError, match="cannot be read"):
        load_roberta(build_roberta(SIZES), str(tmp_path))
    (tmp_path / "vocab.json").write_text(json.dumps({"<s>": 3}))
    with pytest.raises(ModelError, match="cannot be read as a tokenizer"):
        read_words(tmp_path / "vocab.json", folder / "merges.txt")
