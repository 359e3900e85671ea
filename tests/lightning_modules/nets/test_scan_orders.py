"""Every scan order against a literal walk through the clip, one token at a time, in float64."""

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.nets.bimamba import set_activations
from lightning_modules.nets.flops import count_flops
from lightning_modules.nets.scan_orders import SCAN_ORDERS, block_orders, temporal_first
from lightning_modules.nets.videomamba import VideoMamba
from lightning_modules.ops import available_backends, use_backend

FRAMES, SIDE = 3, 2


def tiny(scan_order="spatial_first", **kwargs):
    sizes = dict(num_classes=3, embed_dim=16, depth=3, num_frames=2 * FRAMES, image_size=16 * SIDE, tubelet_size=2)
    torch.manual_seed(0)
    net = VideoMamba(**{**sizes, **kwargs}, scan_order=scan_order)
    with torch.no_grad():
        for parameter in net.parameters():  # so that nothing is 0 or equal in both directions
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return net


# The literal definition ----------------------------------------------------------------------------------------------


def token_at(t, y, x):
    """Place of a patch in the sequence that `embed` makes."""
    return 1 + (t * SIDE + y) * SIDE + x


SPATIAL = [0] + [token_at(t, y, x) for t in range(FRAMES) for y in range(SIDE) for x in range(SIDE)]
TEMPORAL = [0] + [token_at(t, y, x) for y in range(SIDE) for x in range(SIDE) for t in range(FRAMES)]
FORWARD, BACKWARD = "", "_b"
WALKS = {  # weights of which direction, and the tokens in the order they are visited
    "spatial": [(FORWARD, SPATIAL), (BACKWARD, SPATIAL[::-1])],
    "temporal": [(FORWARD, TEMPORAL), (BACKWARD, TEMPORAL[::-1])],
    "v1": [(FORWARD, SPATIAL), (BACKWARD, TEMPORAL[::-1])],
    "v2": [(FORWARD, SPATIAL), (BACKWARD, SPATIAL[::-1]), (FORWARD, TEMPORAL), (BACKWARD, TEMPORAL[::-1])],
}
LITERAL = {  # of three blocks
    "spatial_first": ["spatial", "spatial", "spatial"],
    "temporal_first": ["temporal", "temporal", "temporal"],
    "spatiotemporal_v1": ["v1", "v1", "v1"],
    "spatiotemporal_v2": ["v2", "v2", "v2"],
    "spatial_then_temporal": ["spatial", "temporal", "temporal"],
    "temporal_then_spatial": ["temporal", "spatial", "spatial"],
    "alternating": ["spatial", "temporal", "spatial"],
}


def walk(mixer, suffix, x, visits):
    """x (L, E), visited token by token: convolution over the visited ones, then the recurrence."""
    weight, bias = (getattr(mixer, f"conv1d{suffix}").get_parameter(n).double() for n in ("weight", "bias"))
    x_proj = getattr(mixer, f"x_proj{suffix}").weight.double()
    dt_proj = getattr(mixer, f"dt_proj{suffix}")
    a, d = -getattr(mixer, f"A{suffix}_log").double().exp(), getattr(mixer, f"D{suffix}").double()
    state, out = torch.zeros_like(a), torch.zeros_like(x)
    for n, token in enumerate(visits):
        u = bias.clone()
        for k in range(4):
            if n - k >= 0:
                u = u + weight[:, 0, 3 - k] * x[visits[n - k]]
        u = F.silu(u)
        dt, b, c = (x_proj @ u).split([mixer.dt_rank, mixer.state_size, mixer.state_size])
        dt = F.softplus(dt_proj.weight.double() @ dt + dt_proj.bias.double())
        state = (dt[:, None] * a).exp() * state + (dt * u)[:, None] * b
        out[token] = state @ c + d * u
    return out


def norm(x, weight):
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()


@torch.no_grad()
def literal_tokens(net, tokens, orders):
    """Tokens of one clip (L, D) through the blocks and the final norm."""
    residual = tokens.double()
    for block, order in zip(net.layers, orders, strict=True):
        mixer = block.mixer
        x, z = (norm(residual, block.norm.weight) @ mixer.in_proj.weight.double().T).chunk(2, dim=-1)
        y = sum(walk(mixer, suffix, x, visits) for suffix, visits in WALKS[order])
        residual = residual + (y * F.silu(z)) @ mixer.out_proj.weight.double().T
    return norm(residual, net.norm_f.weight)


@pytest.mark.parametrize("scan_order", SCAN_ORDERS)
def test_every_order_is_the_literal_walk(scan_order):
    net = tiny(scan_order).eval()
    x = torch.randn(2, 3, 2 * FRAMES, 16 * SIDE, 16 * SIDE)
    tokens = net.forward_tokens(x)
    for one, embedded in zip(tokens, net.embed(x), strict=True):
        expected = literal_tokens(net, embedded, LITERAL[scan_order]).float()
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.forward_features(x), tokens[:, 0])
    logits, again = net.forward_with_tokens(x)
    assert torch.equal(again, tokens)
    torch.testing.assert_close(net(x), logits)


def test_the_orders_differ_and_share_their_weights():
    x = torch.randn(1, 3, 2 * FRAMES, 16 * SIDE, 16 * SIDE)
    start = tiny().state_dict()
    outputs = []
    for scan_order in SCAN_ORDERS:
        net = tiny(scan_order).eval()
        net.load_state_dict(start)  # strictly: same names, same shapes
        outputs.append(net(x))
    for i, one in enumerate(outputs):
        assert all(not torch.allclose(one, other, atol=1e-4) for other in outputs[:i])


def test_blocks_of_a_depth():
    for name, orders in LITERAL.items():
        ours = {"spatial": "spatial", "temporal": "temporal", "v1": "half", "v2": "full"}
        assert block_orders(name, 3) == [ours[order] for order in orders]
    assert block_orders("temporal_then_spatial", 4) == ["temporal"] * 2 + ["spatial"] * 2
    with pytest.raises(ValueError, match="scan_order is 'time_first'; choose one of spatial_first, temporal_first"):
        block_orders("time_first", 4)
    with pytest.raises(ValueError, match="'temporal_first' needs frames, and this is an image model"):
        tiny("temporal_first", num_frames=None)


def test_maps_are_inverse_and_say_where_a_token_comes_from():
    to_temporal, to_spatial = temporal_first(FRAMES, SIDE**2)
    assert to_temporal.tolist() == TEMPORAL
    assert to_temporal[to_spatial].tolist() == to_spatial[to_temporal].tolist() == SPATIAL


QUICK = {("numba", "alternating"), ("numba", "spatiotemporal_v2")}


def test_with_one_frame_both_orders_are_the_same():
    x = torch.randn(2, 3, 2, 16 * SIDE, 16 * SIDE)
    one, other = (tiny(order, num_frames=2).eval() for order in ("spatial_first", "temporal_first"))
    torch.testing.assert_close(one(x), other(x))


@pytest.mark.parametrize(("backend", "scan_order"), [
    pytest.param(backend, order, marks=() if (backend, order) in QUICK else pytest.mark.slow)
    for backend in available_backends("cpu")
    for order in ("alternating", "spatiotemporal_v1", "spatiotemporal_v2")
])  # fmt: skip
def test_gradients_compilation_export_and_recomputation(scan_order, backend):
    net = tiny(scan_order, embed_dim=8)
    x = torch.randn(2, 3, 2 * FRAMES, 16 * SIDE, 16 * SIDE)
    # Directional derivative of the loss, against the difference of two losses.
    with use_backend(backend):
        net(x).square().sum().backward()
        gradients = [p.grad.clone() for p in net.parameters()]
        steps = [torch.randn_like(p) * p.abs().mean() for p in net.parameters()]
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                for p, step in zip(net.parameters(), steps, strict=True):
                    p.add_(step, alpha=sign * 1e-3)
                losses.append(net(x).double().square().sum())
                for p, step in zip(net.parameters(), steps, strict=True):
                    p.sub_(step, alpha=sign * 1e-3)
        expected = sum((g.double() * s).sum() for g, s in zip(gradients, steps, strict=True))
        torch.testing.assert_close((losses[0] - losses[1]) / 2e-3, expected, rtol=1e-2, atol=1e-3)

        for activations in ("memory", "speed"):
            set_activations(net, activations)
            net.zero_grad()
            net(x).square().sum().backward()
            for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                torch.testing.assert_close(parameter.grad, gradient)

        expected = net.eval()(x)
        torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="aot_eager")(x), expected)
        torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), expected)


def test_v2_scans_twice_as_much_and_the_others_as_much_as_the_first():
    x = torch.empty(1, 3, 2 * FRAMES, 16 * SIDE, 16 * SIDE, device="meta")
    linear = 2 * (1 + FRAMES * SIDE**2) * (16 * 2 * 32 + 32 * 16)  # in_proj and out_proj
    rest = {order: count_flops(tiny(order), x)["layers.0.mixer"] - linear for order in SCAN_ORDERS}
    for name, operations in rest.items():
        times = 2 if name == "spatiotemporal_v2" else 1
        assert operations / rest["spatial_first"] == pytest.approx(times, rel=0.02)
