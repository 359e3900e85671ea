"""Official MambaVL files: names, what is left out, and what the file says of the model."""

import warnings

import pytest
import torch

from hub import HubError
from hub.convert.mambavl import to_zoo

FUSION = {"A_log": torch.randn(8, 16), "head0.weight": torch.randn(5, 4), "mamba_text.D": torch.randn(8),
          "text_model.embeddings.word_embeddings.weight": torch.randn(7, 3)}  # fmt: skip
BLOCK = "orvit.transformer.resblocks.1"
TOWER = {"orvit.class_embedding": torch.randn(4), f"{BLOCK}.attn.Wqkv.weight": torch.randn(12, 4),
         f"{BLOCK}.attn.Wqkv.bias": torch.randn(12), f"{BLOCK}.attn.out_proj.bias": torch.randn(4),
         f"{BLOCK}.ln_1.weight": torch.randn(4), f"{BLOCK}.mlp.fc2.weight": torch.randn(4, 16)}  # fmt: skip


def test_names():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = to_zoo({f"module.{name}": tensor for name, tensor in (FUSION | TOWER).items()}, "a.pyth")
    assert found.width == 4 and found.has_tower
    weights = found.weights
    for name in FUSION:
        assert torch.equal(weights.pop(f"net.{name}"), FUSION[name])
    own = "net.vision.layers.1"
    for number, letter in enumerate("qkv"):
        for kind in ("weight", "bias"):
            rows = TOWER[f"{BLOCK}.attn.Wqkv.{kind}"][4 * number : 4 * number + 4]
            assert torch.equal(weights.pop(f"{own}.self_attn.{letter}_proj.{kind}"), rows)
    assert weights.keys() == {"net.vision.class_embedding", f"{own}.self_attn.out_proj.bias",
                              f"{own}.layer_norm1.weight", f"{own}.mlp.fc2.weight"}  # fmt: skip


def test_what_the_model_is_without_is_named():
    names = ("text_model.encoder.layer.0.output.dense.weight", "text_model.pooler.dense.bias", "B_log", "pos_embed",
             "text_model.embeddings.position_ids", "blocks.6.motion_mlp.fc1.weight", "norm.bias")  # fmt: skip
    extras = {name: torch.ones(1) for name in names}
    with pytest.warns(UserWarning) as caught:
        found = to_zoo(FUSION | extras, "b.pyth")
    assert not found.has_tower and found.weights.keys() == {f"net.{name}" for name in FUSION}
    (sentence,) = (str(warning.message) for warning in caught)
    assert sentence.startswith("b.pyth has ")
    for part in ("3 tensors of layers of RoBERTa", "1 tensors of B_log, which the official code never uses",
                 "3 tensors of ORViT-Motionformer", "no AVION tower"):  # fmt: skip
        assert part in sentence


def test_what_nobody_knows_stays_for_the_comparison_with_the_model():
    found = to_zoo(FUSION | TOWER | {"head2.weight": torch.ones(1), f"{BLOCK}.attn.rope.weight": torch.ones(1)}, "c")
    assert {"net.head2.weight", "net.vision.layers.1.attn.rope.weight"} <= found.weights.keys()


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({f"{BLOCK}.attn.Wqkv.weight": torch.ones(13, 4)}, r"has the shape \(13, 4\), which is not queries"),
        ({f"{BLOCK}.attn.Wqkv.bias": torch.tensor(1.0)}, r"has the shape \(\), which is not queries"),
        ({"module.A_log": torch.ones(1)}, "two tensors for net.A_log"),
    ],
)
def test_damaged_files(extra, sentence):
    with pytest.raises(HubError, match=sentence):
        to_zoo(FUSION | TOWER | extra, "d.pyth")
