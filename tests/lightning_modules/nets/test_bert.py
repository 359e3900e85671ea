"""BERT's halves against transformers' own model, and the tokenizer that travels with the weights."""

import copy
import pickle

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from lightning_modules.errors import ModelError
from lightning_modules.nets.bert import (
    BertWords,
    build_bert,
    clean_text,
    encode_words,
    fuse,
    load_bert,
    predict_words,
    pretrained_sizes,
)

SIZES = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
         "intermediate_size": 64, "max_position_embeddings": 24}  # fmt: skip
CAPTIONS = ["a red circle moves left", "a red square moves right", "a green circle grows", "a red star moves left"]


def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 120, (3, 7), generator=generator)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, 5:] = mask[2, 3:] = False
    return ids.masked_fill(~mask, 0), mask


def test_the_text_layers_are_transformers_bert_cut_off():
    torch.manual_seed(0)
    bert = build_bert(SIZES, 1, 20).eval()
    donor = BertForMaskedLM(BertConfig(**SIZES)).eval()
    weights = {name: weight for name, weight in bert.state_dict().items() if ".crossattention." not in name}
    missing, unexpected = donor.load_state_dict(weights, strict=False)
    assert not unexpected and all(".decoder." in name for name in missing)
    donor.tie_weights()
    ids, mask = batch()
    with torch.no_grad():
        whole = donor(ids, attention_mask=mask.long(), output_hidden_states=True)
        hidden = encode_words(bert, ids, mask)
        torch.testing.assert_close(hidden[mask], whole.hidden_states[3][mask])
        # The masked-word head is transformers' on whatever the last layer gives.
        scores = predict_words(bert, whole.hidden_states[-1])
        torch.testing.assert_close(scores, whole.logits)


def test_the_fusion_layers_are_transformers_decoder_with_a_mask_that_hides_padding_alone():
    """An independent way: the whole BertModel with cross-attention, given a four-dimensional mask."""
    torch.manual_seed(0)
    bert = build_bert(SIZES, 2, 32).eval()  # a context as wide as BERT, so that transformers can have it too
    context, (ids, mask) = torch.randn(3, 9, 32), batch()
    with torch.no_grad():
        hidden = encode_words(bert, ids, mask)
        fused = fuse(bert, hidden, mask, context)
        expected = hidden
        for layer in bert.bert.encoder.layer[2:]:
            first = layer.attention.self
            heads = [w(expected).unflatten(-1, (2, -1)).transpose(1, 2) for w in (first.query, first.key, first.value)]
            scores = heads[0] @ heads[1].transpose(2, 3) / 4
            scores = scores.masked_fill(~mask[:, None, None], float("-inf")).softmax(-1)
            x = layer.attention.output((scores @ heads[2]).transpose(1, 2).flatten(2), expected)
            cross = layer.crossattention.self
            q = cross.query(x).unflatten(-1, (2, -1)).transpose(1, 2)
            k, v = (w(context).unflatten(-1, (2, -1)).transpose(1, 2) for w in (cross.key, cross.value))
            seen = ((q @ k.transpose(2, 3) / 4).softmax(-1) @ v).transpose(1, 2).flatten(2)
            x = layer.crossattention.output(seen, x)
            expected = layer.output(layer.intermediate(x), x)
        torch.testing.assert_close(fused[mask], expected[mask], rtol=1e-4, atol=1e-5)
        # A word sees those behind it, and padding changes nothing.
        later = hidden.clone()
        later[0, 6] += 1
        assert (fuse(bert, later, mask, context)[0, 0] - fused[0, 0]).abs().max() > 1e-4
        later = hidden.clone()
        later[1, 5:] = 100
        torch.testing.assert_close(fuse(bert, later, mask, context)[1, :5], fused[1, :5])
        assert (fuse(bert, hidden, mask, context.flip(0))[0] - fused[0]).abs().max() > 1e-3


def test_cross_attention_has_the_contexts_width_and_bert_base_is_the_default():
    with torch.device("meta"):
        bert = build_bert({}, 3, 576)
    layers = bert.bert.encoder.layer
    assert [hasattr(layer, "crossattention") for layer in layers] == [False] * 9 + [True] * 3
    assert layers[9].crossattention.self.key.weight.shape == (768, 576)
    assert bert.bert.embeddings.word_embeddings.weight.shape == (30522, 768)
    names = set(bert.state_dict())
    assert "cls.predictions.transform.LayerNorm.weight" in names and "cls.predictions.bias" in names
    assert not any("decoder" in name or "pooler" in name for name in names)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder as transformers writes it, of a tiny BERT and its tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(2)
    BertForMaskedLM(BertConfig(**SIZES)).save_pretrained(folder)
    words = BertWords(120, 16)
    words.learn(CAPTIONS)
    words._made().save_pretrained(folder)
    return folder


def test_a_checkpoint_of_transformers_is_read_whole(checkpoint):
    source = str(checkpoint)
    sizes = pretrained_sizes(source)
    assert sizes.items() >= SIZES.items() and sizes["hidden_act"] == "gelu"
    bert = build_bert(sizes, 2, 20)
    before = {name: weight.clone() for name, weight in bert.state_dict().items()}
    words = BertWords(120, 16)
    words.set_pieces(load_bert(bert, source))
    donor = BertForMaskedLM.from_pretrained(source).state_dict()
    for name, weight in bert.state_dict().items():
        assert torch.equal(weight, before[name] if ".crossattention." in name else donor[name]), name
    theirs = BertTokenizer.from_pretrained(source)
    texts = ["a red circle moves left", "Zebra's 42 naïve cafés", "", "GREEN\nstar"]
    expected = theirs([clean_text(text) for text in texts], padding=True, truncation=True, max_length=16)
    ids, mask = words(texts)
    assert ids.tolist() == expected.input_ids and mask.int().tolist() == expected.attention_mask
    with pytest.raises(ModelError, match=r"have different sizes; set model\.text to null"):
        load_bert(build_bert({**SIZES, "intermediate_size": 32}, 2, 20), source)


def test_word_pieces_are_learned_saved_and_copied():
    words = BertWords(120, 8)
    assert words.is_empty
    with pytest.raises(ModelError, match="no word pieces yet"):
        words(["a"])
    words.learn(CAPTIONS)
    ids, mask = words(["a red circle moves left", "RED!"])
    assert ids.shape == (2, 7) and mask.sum(1).tolist() == [7, 3]
    assert ids[0, 0] == 2 and ids[0, -1] == ids[1, 2] == 3 and ids[1, 3:].eq(0).all() and words.mask_id == 4
    assert ids[1, 1] == ids[0, 2]
    again = BertWords(120, 8)
    again.learn(CAPTIONS)
    assert torch.equal(again.pieces, words.pieces)
    long, _ = words(["red " * 30])
    assert long.shape == (1, 8) and long[0, -1] == 3
    other = BertWords(120, 8)
    other.load_state_dict(words.state_dict())
    for twin in (other, copy.deepcopy(words), pickle.loads(pickle.dumps(words))):
        assert torch.equal(twin(["a red circle moves left"])[0], ids[:1])
    other.set_pieces([*BertWords.SPECIAL, "zebra", "##s", "größe"])
    assert other(["zebras größe red"])[0].tolist() == [[2, 5, 6, 1, 1, 3]]  # accents are taken off
    other.load_state_dict(words.state_dict())
    assert torch.equal(other(["a red circle moves left"])[0], ids[:1])


def test_captions_are_cleaned_as_published():
    assert clean_text("<person> re-opens  the and/or door (slowly)!") == "person re opens the and or door slowly"
    assert clean_text('It\'s "A": ~b; #c* d?, e.') == "its a b c d e"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_bert({"width": 3}, 1, 8), "text has no entry 'width'; it takes vocab_size"),
        (lambda: build_bert({"hidden_size": 30}, 1, 8), "do not fit together"),
        (lambda: build_bert(SIZES, 4, 8), "fusion_layers is 4; with 4 layers of BERT choose 1 to 3"),
        (lambda: BertWords(4, 8), "vocab_size 4 and max_words 8 have to be at least 5 and 3"),
        (lambda: BertWords(120, 8).set_pieces(["a"]), "no \\[PAD\\]"),
        (lambda: BertWords(6, 8).set_pieces([*BertWords.SPECIAL, "a", "b"]), "at most 6 pieces"),
        (lambda: BertWords(6, 8).set_pieces([*BertWords.SPECIAL, "a" * 33]), "1 to 32 bytes"),
        (lambda: pretrained_sizes("/nowhere/at/all"), "The BERT checkpoint '/nowhere/at/all' cannot be read"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ModelError, match=message):
        call()
