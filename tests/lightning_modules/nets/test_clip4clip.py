"""The baselines and the pooling by their definitions."""

import pytest
import torch
from torch import nn

from lightning_modules.nets.clip4clip import FirstTokens, FrameTransformer, TextVideoNet, pool_frames
from lightning_modules.nets.clip_tower import ClipTokenizer, build_clip

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {
    "projection_dim": 32,
    "text_config": {"vocab_size": 514, **TOWER},
    "vision_config": {"image_size": 32, "patch_size": 16, **TOWER},
}


def test_pooling_is_the_mean_of_directions():
    features = torch.tensor([[[3.0, 0.0], [0.0, 0.5], [-9.0, 0.0]], [[0.0, 2.0], [0.0, 1.0], [1.0, 0.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    half = 0.5**0.5
    torch.testing.assert_close(pool_frames(features[:1], mask[:1]), torch.tensor([[half, half]]))
    torch.testing.assert_close(pool_frames(features[:1]), torch.tensor([[0.0, 1.0]]))
    assert torch.equal(pool_frames(features, mask)[1], torch.zeros(2))  # no frame at all, and no nan


def test_mean_pooling_is_clip_frame_by_frame():
    torch.manual_seed(0)
    clip = build_clip(SIZES).eval()
    net = TextVideoNet(clip, ClipTokenizer(514, 16), FirstTokens())
    video = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        frames = [clip.get_image_features(video[:, :, t]).pooler_output for t in range(4)]
        frames = [frame / frame.norm(dim=1, keepdim=True) for frame in frames]
        mean = sum(frames) / 4
        torch.testing.assert_close(net(video), mean / mean.norm(dim=1, keepdim=True))
        text = net.encode_text(["a red circle", "b"])
    torch.testing.assert_close(text.norm(dim=1), torch.ones(2))


def test_frame_transformer_is_the_text_towers_start_over_the_frames():
    torch.manual_seed(0)
    text_model = build_clip(SIZES).text_model.eval()
    head = FrameTransformer(text_model, 32, depth=1).eval()
    tokens = torch.randn(2, 5, 3, 32)
    with torch.no_grad():
        layer, frames = text_model.encoder.layers[0], tokens[:, :, 0]
        x = frames + text_model.embeddings.position_embedding.weight[:5]
        h = layer.layer_norm1(x)
        attention = layer.self_attn
        q, k, v = (
            projection(h).unflatten(-1, (2, 16)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        # Both ways in time: no causal mask, unlike in the text tower.
        mixed = ((q @ k.mT) / 16**0.5).softmax(-1) @ v
        x = x + attention.out_proj(mixed.transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.layer_norm2(x))
        torch.testing.assert_close(head(tokens), frames + x)
        nn.init.zeros_(head.position_embedding.weight)  # a copy: the text tower keeps its own
        assert text_model.embeddings.position_embedding.weight.any()


def test_frame_transformer_does_not_look_at_padding():
    torch.manual_seed(0)
    head = FrameTransformer(build_clip(SIZES).text_model, 32, depth=2).eval()
    tokens = torch.randn(2, 4, 1, 32)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    short = head(tokens[:1, :2])
    torch.testing.assert_close(head(tokens, mask)[:1, :2], short)
    torch.testing.assert_close(head(tokens, mask)[1], head(tokens[1:])[0])


def test_a_text_tower_that_does_not_fit_is_refused():
    text_model = build_clip(SIZES).text_model
    with pytest.raises(ValueError, match="32 wide and the shared space 16"):
        FrameTransformer(text_model, 16)
    with pytest.raises(ValueError, match="depth is 3 and the text tower to copy from has 2"):
        FrameTransformer(text_model, 32, depth=3)
