"""VideoMamba against the official implementation (golden tensors) and against independent definitions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_modules.checks import ACTIVATIONS
from lightning_modules.nets.bimamba import BiMamba, set_activations
from lightning_modules.nets.videomamba import (
    PatchEmbed,
    VideoMamba,
    adapt_state_dict,
    inflate_patch_embedding,
    resize_frames,
    resize_grid,
)
from lightning_modules.ops import available_backends, dense, use_backend

BACKENDS = available_backends("cpu")


@pytest.fixture
def official(golden):
    """Of a golden file: all tensors, the weights under their own names, and the constructor's arguments."""

    def read(name):
        tensors, sidecar = golden(name)
        weights = {k.removeprefix("state_dict."): v for k, v in tensors.items() if k.startswith("state_dict.")}
        return tensors, weights, sidecar["constructor"]

    return read


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def build(constructor, image=False):
    return VideoMamba(
        num_classes=constructor["num_classes"],
        embed_dim=constructor["embed_dim"],
        depth=constructor["depth"],
        num_frames=None if image else constructor["num_frames"],
        image_size=constructor["img_size"],
        tubelet_size=constructor.get("kernel_size", 1),
    ).eval()


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixer_equals_the_official_one(official, backend):
    tensors, weights, constructor = official("bimamba_mixer")
    mixer = BiMamba(constructor["d_model"])
    mixer.load_state_dict(weights)
    x = tensors["input"].requires_grad_()
    with use_backend(backend):
        y = mixer(x)
        (y * tensors["grad_output"] if "grad_output" in tensors else y).sum().backward()
    close(y, tensors["output"])
    close(x.grad, tensors["grad_input"])
    for name, parameter in mixer.named_parameters():
        close(parameter.grad, tensors[f"grad.{name}"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["videomamba_image", "videomamba_video", "videomamba_video_k2"])
def test_network_equals_the_official_one(official, name, backend):
    tensors, weights, constructor = official(name)
    net = build(constructor, image=name == "videomamba_image")
    net.load_state_dict(weights)
    seen = {}
    for i, block in enumerate(net.layers):
        block.register_forward_hook(lambda _m, _i, out, i=i: seen.update({i: out}))
    with use_backend(backend):
        logits = net(tensors["input"])
        assert sorted(seen) == list(range(constructor["depth"]))
        for i, (hidden, residual) in seen.items():
            close(hidden, tensors[f"block{i}.hidden"])
            close(residual, tensors[f"block{i}.residual"])
        close(net.embed(tensors["input"]), tensors["tokens"])
        close(net.forward_features(tensors["input"]), tensors["features"])
        close(net.forward_tokens(tensors["input"])[:, 0], tensors["features"])
        logits.sum().backward()
    close(logits, tensors["logits"])
    gradients = {k.removeprefix("grad."): v for k, v in tensors.items() if k.startswith("grad.")}
    assert gradients
    for key, expected in gradients.items():
        close(net.get_parameter(key).grad, expected)


@pytest.mark.parametrize("case", ["grow", "shrink", "odd"])
def test_position_embeddings_resize_as_official(official, case):
    tensors, _, _ = official("checkpoint_adaptation")
    new = tensors[f"{case}.pos_embed_new"]
    close(resize_grid(tensors[f"{case}.pos_embed_old"], math.isqrt(new.shape[1] - 1)), new)
    new = tensors[f"{case}.temporal_new"]
    close(resize_frames(tensors[f"{case}.temporal_old"], new.shape[1]), new)


@pytest.mark.parametrize("tubelet_size", [1, 2, 3])
def test_patch_embedding_inflates_as_official(official, tubelet_size):
    tensors, _, _ = official("checkpoint_adaptation")
    weight = tensors["inflate.weight_2d"]
    assert torch.equal(inflate_patch_embedding(weight, tubelet_size), tensors[f"inflate.center_k{tubelet_size}"])
    close(inflate_patch_embedding(weight, tubelet_size, center=False), tensors[f"inflate.average_k{tubelet_size}"])


def tiny(**kwargs):
    defaults = dict(num_classes=5, embed_dim=32, depth=2, num_frames=4, image_size=32)
    return VideoMamba(**{**defaults, **kwargs}).eval()


def test_still_video_through_inflated_image_weights_gives_the_image_models_tokens():
    torch.manual_seed(0)
    image_net, video_net = tiny(num_frames=None), tiny(num_frames=2)
    video_net.load_state_dict(adapt_state_dict(image_net.state_dict(), video_net))
    image = torch.randn(1, 3, 32, 32)
    tokens = image_net.embed(image)
    clip_tokens = video_net.embed(image.unsqueeze(2).expand(-1, -1, 2, -1, -1))
    torch.testing.assert_close(clip_tokens, torch.cat([tokens, tokens[:, 1:]], dim=1))


def test_adapting_to_the_same_shape_changes_nothing():
    net = tiny()
    for key, value in adapt_state_dict(net.state_dict(), net).items():
        assert torch.equal(value, net.state_dict()[key]), key


@pytest.mark.parametrize(
    ("tubelet_size", "shape"), [(None, (2, 3, 32, 48)), (1, (2, 3, 4, 32, 32)), (2, (1, 3, 4, 32, 16))]
)
def test_patch_embedding_is_the_convolution(tubelet_size, shape):
    torch.manual_seed(0)
    embed = PatchEmbed(8, 16, tubelet_size)
    x = torch.randn(shape)
    expected = embed.proj(x)
    expected = expected.flatten(2).transpose(1, 2) if tubelet_size is None else expected.flatten(3).permute(0, 2, 3, 1)
    torch.testing.assert_close(embed(x).flatten(1, 2), expected.reshape(shape[0], -1, 8))


def test_tokens_are_frame_by_frame_in_raster_order_with_positions():
    net = tiny(num_frames=2)
    with torch.no_grad():
        net.pos_embed.copy_(torch.arange(5.0)[None, :, None])
        net.temporal_pos_embedding.copy_(torch.tensor([0.0, 100.0])[None, :, None])
        nn.init.zeros_(net.patch_embed.proj.weight)
        nn.init.zeros_(net.patch_embed.proj.bias)
    tokens = net.embed(torch.zeros(1, 3, 2, 32, 32))[0, :, 0]
    assert tokens.tolist() == [0, 1, 2, 3, 4, 101, 102, 103, 104]


def test_stochastic_depth_drops_whole_samples_at_the_linear_rates():
    torch.manual_seed(0)
    net = tiny(depth=3, drop_path=0.5).train()
    assert net.drop_rates == [0.0, 0.25, 0.5]
    x = torch.ones(4000, 1, 1)
    dropped = net._drop_path(x, 0.25).flatten()
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 4 / 3]))
    assert dropped.eq(0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(net.eval()._drop_path(x, 0.25), x)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_what_is_kept_changes_no_gradient(backend, monkeypatch):
    monkeypatch.setattr(dense, "_onednn_is_faster", lambda: False)  # the same products with each setting
    torch.manual_seed(0)
    net = tiny(drop_path=0.3).train()
    x = torch.randn(2, 3, 4, 32, 32)
    gradients = []
    for activations in ACTIVATIONS:
        set_activations(net, activations)
        net.zero_grad()
        torch.manual_seed(1)
        with use_backend(backend):
            net(x).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in net.named_parameters()})
    for name in gradients[0]:
        speed, balanced, memory = (found[name] for found in gradients)
        # Kernels give what out_proj multiplied again, to other roundings.
        assert torch.equal(speed, balanced) or (backend == "numba" and name.endswith("out_proj.weight"))
        torch.testing.assert_close(speed, balanced)
        torch.testing.assert_close(speed, memory)


def test_layers_in_the_place_of_ours_are_called():
    """An adapter or a hook at in_proj or out_proj has its effect with each setting."""
    torch.manual_seed(0)
    net = tiny().train()
    x = torch.randn(1, 3, 4, 32, 32)
    results = []
    for activations in ACTIVATIONS:
        set_activations(net, activations)
        plain = net(x).detach()
        mixer = net.layers[0].mixer
        handle = mixer.out_proj.register_forward_hook(lambda layer, given, result: result * 2)
        hooked = net(x).detach()
        handle.remove()
        old, mixer.in_proj = mixer.in_proj, nn.Sequential(mixer.in_proj, nn.Tanh())
        replaced = net(x).detach()
        mixer.in_proj = old
        assert not torch.allclose(plain, hooked) and not torch.allclose(plain, replaced)
        results.append((plain, hooked, replaced))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


@pytest.mark.parametrize(("activations", "floats"), [("speed", 18), ("balanced", 6.0), ("memory", 2.1)])
def test_what_a_block_of_the_smallest_size_keeps(activations, floats):
    """Numbers of float32 per token and unit of width that lie between the passes, on the backend for CPUs."""
    clip = torch.randn(1, 3, 8, 224, 224)

    def kept(depth: int) -> int:
        net = VideoMamba(0, 192, depth, 8, activations=activations)
        weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
        storages = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes() // 4
            return tensor

        with use_backend("numba"), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = net(clip)
        assert output.grad_fn is not None  # so that no storage was given away twice
        return sum(size for place, size in storages.items() if place not in weights)

    assert (kept(3) - kept(1)) / 2 / 192 / (1 + 8 * 196) <= floats


def test_initialisations_are_those_of_the_papers():
    torch.manual_seed(0)
    mamba, official = BiMamba(64), BiMamba(64, init="official")
    steps = F.softplus(mamba.dt_proj.bias)
    assert steps.min() >= 1e-3 * 0.999 and steps.max() <= 0.1 * 1.001
    assert official.dt_proj.bias.eq(0).all()
    assert official.dt_proj.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert torch.equal(mamba.A_log[5].exp().round(), torch.arange(1.0, 17.0))
    bound = 1 / math.sqrt(128) / math.sqrt(2)  # Kaiming uniform over 128 inputs, divided by the root of the depth
    weight = tiny(embed_dim=64, depth=2).layers[0].mixer.out_proj.weight
    assert bound * 0.95 < weight.abs().max().item() <= bound


def test_a_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"shape \(batch, 3, 4, 32, 32\), this one is \(1, 3, 5, 32, 32\)"):
        tiny()(torch.zeros(1, 3, 5, 32, 32))
    with pytest.raises(ValueError, match="image_size 30 is not a multiple of patch_size 16"):
        tiny(image_size=30)
    with pytest.raises(ValueError, match="num_frames 3 is not a positive multiple of tubelet_size 2"):
        tiny(num_frames=3, tubelet_size=2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_a_graph_break_and_exports(backend):
    torch.manual_seed(0)
    net = tiny()
    x = torch.randn(2, 3, 4, 32, 32)
    with use_backend(backend):
        expected = net(x)
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected)
        compiled(x).sum().backward()
        gradient = net.patch_embed.proj.weight.grad.clone()
        net.zero_grad()
        net(x).sum().backward()
        torch.testing.assert_close(gradient, net.patch_embed.proj.weight.grad, rtol=1e-4, atol=1e-6)
        exported = torch.export.export(net, (x,)).module()
    torch.testing.assert_close(exported(x), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_works_under_autocast_and_inference_mode(backend):
    torch.manual_seed(0)
    net = tiny(embed_dim=64)
    x = torch.randn(2, 3, 4, 32, 32)
    with use_backend(backend):
        expected = net(x)
        with torch.inference_mode():
            torch.testing.assert_close(net(x), expected)
        with torch.autocast("cpu", torch.bfloat16):
            low = net(x)
            low.float().sum().backward()
    assert low.dtype == torch.bfloat16
    assert (low.float() - expected).abs().max() < 0.03 * expected.abs().max()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
