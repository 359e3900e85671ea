"""Names of the official files with language, and what of them is left out."""

import pytest
import torch

from hub.convert.videomamba_text import to_zoo
from hub.errors import HubError

WORDS = "text_encoder.bert.embeddings.word_embeddings.weight"
OFFICIAL = {
    "vision_encoder.patch_embed.proj.weight": torch.ones(1),
    "vision_encoder.norm.weight": torch.ones(2),
    "vision_encoder.pool_norm.bias": torch.ones(3),
    "vision_encoder.layers.3.norm.weight": torch.ones(4),
    WORDS: torch.arange(6.0),
    "text_encoder.bert.encoder.layer.9.crossattention.self.key.weight": torch.ones(5),
    "text_encoder.cls.predictions.bias": torch.arange(3.0),
    "vision_proj.weight": torch.ones(6),
    "text_proj.bias": torch.ones(7),
    "itm_head.weight": torch.ones(8),
    "temp": torch.tensor(0.05),
}
ZOO = ["net.vision.patch_embed.proj.weight", "net.vision.norm_f.weight", "net.vision.pool_norm.bias",
       "net.vision.layers.3.norm.weight", "net.text.bert.embeddings.word_embeddings.weight",
       "net.text.bert.encoder.layer.9.crossattention.self.key.weight", "net.text.cls.predictions.bias",
       "net.vision_proj.weight", "net.text_proj.bias", "net.itm_head.weight", "net.temp"]  # fmt: skip
EXTRAS = {
    "clip_teacher.transformer.resblocks.0.ln_1.weight": torch.ones(1),
    "vision_encoder.clip_decoder.0.head.weight": torch.ones(1),
    "text_encoder.bert.embeddings.position_ids": torch.arange(5)[None],
    "text_encoder.cls.predictions.decoder.weight": torch.arange(6.0),
    "text_encoder.cls.predictions.decoder.bias": torch.arange(3.0),
}


@pytest.mark.parametrize("extras", [{}, EXTRAS], ids=["bare", "with the teacher"])
def test_every_tensor_gets_its_name(extras):
    found = to_zoo({**OFFICIAL, **extras})
    assert sorted(found) == sorted(ZOO)
    for name, tensor in zip(ZOO, OFFICIAL.values(), strict=True):
        assert found[name] is tensor


def test_what_is_not_known_stays_to_be_refused():
    assert "net.vision.something_new" in to_zoo({**OFFICIAL, "vision_encoder.something_new": torch.ones(1)})


@pytest.mark.parametrize("name", [name for name in EXTRAS if name.startswith("text_encoder.")])
def test_copies_that_are_none_are_refused(name):
    with pytest.raises(HubError, match=name):
        to_zoo({**OFFICIAL, name: EXTRAS[name].flip(-1)})
