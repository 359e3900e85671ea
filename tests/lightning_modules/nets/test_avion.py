"""AVION's tower: against a clip written out patch by patch, and CLIP's own tower on one frame."""

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from lightning_modules.errors import ModelError
from lightning_modules.nets import AvionTower

SIZES = dict(embed_dim=16, depth=2, heads=2, num_frames=3, image_size=32, patch_size=16)


def build(**changes) -> AvionTower:
    torch.manual_seed(0)
    tower = AvionTower(**{**SIZES, **changes})
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return tower.eval()


def test_tokens_frame_by_frame_class_token_first():
    tower = build(depth=1)
    tower.layers = torch.nn.ModuleList()
    video = torch.randn(2, 3, 3, 32, 32)
    with torch.no_grad():
        found = tower.forward_tokens(video)
        rows = [tower.class_embedding + tower.positional_embedding[0]]
        for frame in range(3):
            for place, (row, column) in enumerate(((0, 0), (0, 16), (16, 0), (16, 16))):
                patch = video[1, :, frame, row : row + 16, column : column + 16].flatten()
                position = tower.positional_embedding[1 + place] + tower.temporal_embedding[frame]
                rows.append(tower.conv1.weight @ patch + position)
        expected = tower.ln_post(tower.ln_pre(torch.stack(rows)))
    assert found.shape == (2, 1 + 3 * 4, 16)
    torch.testing.assert_close(found[1], expected, rtol=1e-4, atol=1e-5)


def test_one_frame_is_clips_tower():
    torch.manual_seed(0)
    config = CLIPVisionConfig(hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                              image_size=32, patch_size=16, hidden_act="gelu", layer_norm_eps=1e-6)  # fmt: skip
    clip = CLIPVisionModelWithProjection(config).eval()
    tower = AvionTower(**{**SIZES, "num_frames": 1}).eval()
    tower.start_from_clip(clip, "tiny")
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = clip.vision_model.post_layernorm(clip.vision_model(pixel_values=image).last_hidden_state)
        torch.testing.assert_close(tower.forward_tokens(image[:, :, None]), expected, rtol=1e-4, atol=1e-5)
    for other in ({"embed_dim": 32}, {"depth": 3}, {"depth": 1}):
        with pytest.raises(ModelError, match="have different sizes"):
            AvionTower(**{**SIZES, **other}).start_from_clip(clip, "tiny")


def test_drop_path_is_the_same_in_every_block_and_off_in_evaluation():
    tower = build(drop_path=0.9)
    video = torch.randn(64, 3, 3, 32, 32)
    still = build()
    with torch.no_grad():
        assert torch.equal(tower.forward_tokens(video), still.forward_tokens(video))
        tower.train()
        torch.manual_seed(0)
        dropped = tower.forward_tokens(video)
        bare = build()
        bare.layers = torch.nn.ModuleList()
        untouched = [torch.allclose(a, b, atol=1e-5) for a, b in zip(dropped, bare.forward_tokens(video), strict=True)]
    assert 0.5 < sum(untouched) / 64 < 0.8  # 0.9 ** 4


def test_recomputed_blocks_change_nothing():
    video = torch.randn(1, 3, 3, 32, 32)
    gradients = []
    for activations in ("balanced", "memory"):
        tower = build(activations=activations)
        tower.forward_tokens(video).square().sum().backward()
        gradients.append({name: p.grad for name, p in tower.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_other_frames_and_resolution():
    tower, larger = build(), build(num_frames=6, image_size=48)
    larger.load_state_dict(larger.adapt_state_dict(tower.state_dict()))
    assert torch.equal(larger.class_embedding, tower.class_embedding)
    assert larger.positional_embedding.shape == (10, 16) and larger.temporal_embedding.shape == (6, 16)
    assert torch.equal(larger.positional_embedding[0], tower.positional_embedding[0])
    assert [tower.layer_id(name) for name in ("conv1.weight", "layers.1.mlp.fc1.bias", "ln_post.weight")] == [0, 2, 3]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"heads": 3}, "embed_dim 16 is not a multiple of heads 3"),
        ({"patch_size": 20}, "image_size 32 is not a multiple of patch_size 20"),
        ({"depth": 0}, "depth is 0"),
        ({"heads": 0}, "heads is 0; it has to be a whole number"),
    ],
)
def test_mistakes(change, sentence):
    with pytest.raises(ModelError, match=sentence):
        AvionTower(**{**SIZES, **change})
    with pytest.raises(ModelError, match=r"inputs of shape \(batch, 3, 3, 32, 32\)"):
        build().forward_tokens(torch.zeros(1, 3, 4, 32, 32))
