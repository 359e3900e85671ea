"""MUSE's head against the official implementation (golden tensors) and against independent definitions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_modules.nets.clip4clip import pool_frames
from lightning_modules.nets.muse import AGGREGATIONS, LEARNERS, Attention, Mamba, Muse, Pyramid, ResidualMixer
from lightning_modules.ops import available_backends, use_backend


@pytest.fixture
def official(golden):
    """The tensors, and the weights under our names."""
    tensors, _ = golden("muse_head")
    weights = {}
    for key, value in tensors.items():
        if key.startswith("state_dict.MS_mamba."):
            name = key.removeprefix("state_dict.MS_mamba.")
            for theirs, ours in ((".mamba.", ".mixer."), ("layer_norm1", "norm"), ("temporal_fc", "fc")):
                name = name.replace(theirs, ours)
            weights[f"blocks.{name}"] = value
        elif key.startswith("unregistered.mamba_stages."):
            weights["pyramid.levels." + key.removeprefix("unregistered.mamba_stages.")] = value
    return tensors, weights


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


# Step by step over 1,000 tokens and back takes the reference half a minute; scan backends have tests of their own.
CASES = [
    pytest.param(aggregation, backend, marks=pytest.mark.slow if backend == "reference" else ())
    for aggregation in AGGREGATIONS
    for backend in available_backends("cpu")
]


@pytest.mark.parametrize(("aggregation", "backend"), CASES)
def test_head_equals_the_official_one(official, aggregation, backend):
    tensors, weights = official
    head = Muse(64, aggregation=aggregation).eval()
    head.load_state_dict(weights)
    tokens = tensors["visual_output"].unflatten(1, (4, 50)).clone().requires_grad_()
    with use_backend(backend):
        features = head(tokens)
        (features * tensors["grad_output"]).sum().backward()
    close(features, tensors[f"{aggregation}.video_features"])
    close(tokens.grad.flatten(1, 2), tensors[f"{aggregation}.grad_input"])
    video = pool_frames(features, tensors["video_mask"].bool())
    text = F.normalize(tensors["sequence_output"][:, 0], dim=-1)
    close(tensors["state_dict.clip.logit_scale"].exp() * text @ video.T, tensors[f"{aggregation}.retrieve_logits"])


def test_parts_equal_the_official_ones(official):
    tensors, weights = official
    head = Muse(64).eval()
    head.load_state_dict(weights)
    tokens = tensors["visual_output"].unflatten(1, (4, 50))
    sequence = head.sequence(tokens)
    close(sequence, tensors["scale_wise.sequence"])
    close(head.blocks[0](sequence)[:, :4], tensors["scale_wise.block0_output_frames"])
    for i, level in enumerate(head.pyramid(tokens[:, :, 1:].reshape(8, 7, 7, 64).permute(0, 3, 1, 2))):
        close(level, tensors[f"scale{i}.map"])
    for aggregation in ("frame_wise", "spatial_wise"):
        length = Muse(64, aggregation=aggregation, depth=0).sequence(tokens).shape
        assert list(length) == tensors[f"{aggregation}.sequence_shape"].tolist()


@pytest.mark.parametrize(
    ("side", "scales", "length"),
    [
        (7, (0.5, 1, 2), 3060),  # ViT-B/32 and B/16, docs/protocol.md, section 17
        (14, (0.5, 1, 2), 12360),
        (4, (0.25, 0.5, 1, 2, 4), 12 + 12 * (1 + 4 + 16 + 64 + 256)),
        (1, (1, 4), 12 + 12 * (1 + 16)),
    ],
)
def test_any_grid_and_scales(side, scales, length):
    head = Muse(16, scales=scales, depth=1)
    tokens = torch.randn(1, 12, 1 + side * side, 16)
    assert head.sequence(tokens).shape == (1, length, 16)
    assert head(tokens).shape == (1, 12, 16)


@pytest.mark.parametrize("scale", [0.25, 4])
def test_outer_scales_by_definition(scale):
    torch.manual_seed(0)
    pyramid, grid = Pyramid(8, [scale]), torch.randn(2, 8, 5, 5)
    weights = dict(pyramid.levels[0].named_parameters())

    def norm(x, name):
        mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
        x = (x - mean) / (variance + 1e-5).sqrt()
        return x * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]

    for name in weights:  # the norms start at 1 and 0, which would hide them
        nn.init.normal_(weights[name])
    if scale < 1:
        x, first = F.max_pool2d(grid, 4), 1
    else:
        x = F.conv_transpose2d(grid, weights["0.weight"], weights["0.bias"], stride=2)
        x = F.conv_transpose2d(F.gelu(norm(x, 1)), weights["3.weight"], weights["3.bias"], stride=2)
        first = 4
    x = F.gelu(norm(F.conv2d(x, weights[f"{first}.weight"], weights[f"{first}.bias"]), first + 1))
    x = norm(F.conv2d(x, weights[f"{first + 3}.weight"], weights[f"{first + 3}.bias"], padding=1), first + 4)
    (level,) = pyramid(grid)
    assert level.shape[-1] == int(5 * scale)
    torch.testing.assert_close(level, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("learner", LEARNERS)
def test_which_tokens_reach_a_frame(learner):
    """The gradient of a frame's feature says what it has seen: with a mixer everything, without itself alone."""
    torch.manual_seed(0)
    head = Muse(16, learner=learner, depth=2, init="official").eval()
    tokens = torch.randn(1, 3, 5, 16, requires_grad=True)
    head(tokens)[0, 1].square().sum().backward()
    seen = tokens.grad[0].abs().sum(-1) > 0
    if learner == "none":
        assert seen.nonzero().tolist() == [[1, 0]]
    elif learner == "mamba":
        # From the last token to the first: the class token of the first frame stands before that of the second.
        assert seen.tolist() == [[False, *[True] * 4], [True] * 5, [True] * 5]
    else:
        assert seen.all()


def test_blocks_start_as_the_identity_or_as_the_official_ones():
    torch.manual_seed(0)
    tokens = torch.randn(2, 3, 10, 64)
    assert torch.equal(Muse(64).eval()(tokens), tokens[:, :, 0])
    official = Muse(64, init="official")
    assert not torch.allclose(official.eval()(tokens), tokens[:, :, 0])
    linears = [m for m in official.blocks.modules() if isinstance(m, nn.Linear)]
    assert len(linears) == 4 * 7
    for linear in linears:
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.15)
        assert linear.bias is None or not linear.bias.any()
    assert [block.dropout.p for block in official.blocks] == pytest.approx([0, 0.1 / 3, 0.2 / 3, 0.1])


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_pyramid_passes_gradients_and_keeps_its_weights(frozen):
    torch.manual_seed(0)
    head = Muse(16, depth=1, init="official", frozen_pyramid=frozen)
    tokens = torch.randn(1, 2, 5, 16, requires_grad=True)
    head(tokens).square().sum().backward()
    assert (tokens.grad[:, :, 1:].abs().sum() > 0).all()
    assert all((p.grad is None) == frozen for p in head.pyramid.parameters())
    assert all(p.grad is not None for p in head.blocks.parameters())
    assert any(name.startswith("pyramid.") for name in head.state_dict())


def test_one_way_mamba_is_the_recurrence_from_the_last_token():
    torch.manual_seed(0)
    mixer, h = Mamba(8, state_size=4).double(), torch.randn(2, 6, 8, dtype=torch.float64)
    x, z = mixer.in_proj(h).flip(1).chunk(2, dim=-1)
    x = F.silu(F.conv1d(F.pad(x.mT, (3, 0)), mixer.conv1d.weight, mixer.conv1d.bias, groups=8).mT)
    dt, b, c = mixer.x_proj(x).split([mixer.dt_rank, 4, 4], dim=-1)
    dt, a, state, steps = F.softplus(mixer.dt_proj(dt)), -mixer.A_log.exp(), torch.zeros(2, 8, 4).double(), []
    for t in range(6):
        state = state * (dt[:, t, :, None] * a).exp() + (dt[:, t] * x[:, t])[..., None] * b[:, t, None]
        steps.append((state * c[:, t, None]).sum(-1) + mixer.D * x[:, t])
    expected = mixer.out_proj(torch.stack(steps, 1) * F.silu(z)).flip(1)
    with use_backend("reference"):
        torch.testing.assert_close(mixer(h), expected, rtol=1e-4, atol=1e-6)


def test_attention_is_torchs():
    torch.manual_seed(0)
    ours, theirs = Attention(128), nn.MultiheadAttention(128, 2, batch_first=True)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.qkv.weight.data, ours.qkv.bias.data
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    h = torch.randn(2, 9, 128)
    torch.testing.assert_close(ours(h), theirs(h, h, h, need_weights=False)[0], rtol=1e-4, atol=1e-5)


def test_residual_mixer_by_definition():
    torch.manual_seed(0)
    block = ResidualMixer(8, nn.Linear(8, 8), dropout=0.5).eval()
    nn.init.normal_(block.fc.weight)
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(block(x), x + block.fc(block.mixer(F.layer_norm(x, (8,)))))


@pytest.mark.parametrize(
    ("arguments", "patches", "message"),
    [
        ({"aggregation": "time_wise"}, 4, "aggregation is 'time_wise'; choose one of scale_wise"),
        ({"learner": "lstm"}, 4, "learner is 'lstm'; choose one of bimamba"),
        ({"init": "zeros"}, 4, "init is 'zeros'"),
        ({"scales": (0.5, 3)}, 4, r"scales are \[0.5, 3\]; choose some of"),
        ({"scales": ()}, 4, r"scales are \[\]"),
        ({}, 5, "5 patches, which form no square"),
        ({"scales": (0.25, 1)}, 9, "Scale 0.25 leaves nothing of a grid of 3 x 3"),
        ({"dim": 100, "learner": "attention"}, 4, None),
        ({"dim": 130, "learner": "attention"}, 4, None),
        ({"dim": 195, "learner": "attention"}, 4, None),
        ({"dim": 193, "learner": "attention"}, 4, "does not split into 3 heads"),
    ],
)
def test_mistakes_are_named(arguments, patches, message):
    def run():
        head = Muse(**{"dim": 16, "depth": 1, **arguments})
        return head(torch.randn(1, 2, 1 + patches, arguments.get("dim", 16)))

    if message is None:
        assert run().isfinite().all()
    else:
        with pytest.raises(ValueError, match=message):
            run()
