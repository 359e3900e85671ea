"""What a mixer keeps for its backward pass, and that it changes no digit of a result or of a gradient."""

from functools import partial

import pytest
import torch

from lightning_modules.ops import MixerWeights, dense, mix, use_backend
from lightning_modules.ops.scan import numba as numba_backend

R, N, WIDTH = 3, 4, 4
_equal = partial(torch.testing.assert_close, rtol=0, atol=0)


def _inputs(dtype: torch.dtype = torch.float32, batch: int = 2, length: int = 70, channels: int = 20):
    torch.manual_seed(0)
    xz = torch.randn(batch, length, 2 * channels, dtype=dtype)
    weights = [
        MixerWeights(
            torch.randn(channels, 1, WIDTH), torch.randn(channels), torch.randn(R + 2 * N, channels) / 4,
            torch.randn(channels, R), torch.randn(channels), torch.randn(channels, N), torch.randn(channels),
        )
        for _ in range(2)
    ]  # fmt: skip
    return xz, [MixerWeights(*(t.to(dtype) for t in one)) for one in weights]


def _gradients(
    xz, weights, recompute, gated=True, reverse=False, frozen=(), autocast=False, out_proj=None
) -> list[torch.Tensor]:
    """The result, and the gradients of x and z in one tensor, of all weights that are not frozen, and of out_proj."""
    xz = xz.detach().requires_grad_("xz" not in frozen)
    weights = [
        MixerWeights(*(t.detach().requires_grad_(n not in frozen) for n, t in one._asdict().items())) for one in weights
    ]
    out_proj = None if out_proj is None else out_proj.detach().requires_grad_("out_proj" not in frozen)
    with torch.autocast(xz.device.type, torch.bfloat16, enabled=autocast):
        x, z = (xz * 1).chunk(2, dim=-1)
        y = mix(x, z if gated else None, *weights, reverse=reverse, recompute=recompute, out_proj=out_proj)
    (y.float().square() + y.float()).sum().backward()
    inputs = (xz, *weights[0], *(weights[1] if len(weights) == 2 else ()))
    return [y.detach(), *(t.grad for t in inputs), None if out_proj is None else out_proj.grad]


CASES = {
    "plain": {},
    "without a gate": {"gated": False},
    "frozen input": {"frozen": ("xz",)},
    "some frozen weights": {"frozen": ("xz", "x_proj", "dt_bias", "D")},
    "frozen weights": {"frozen": MixerWeights._fields},
    "autocast": {"autocast": True},
}


@pytest.mark.usefixtures("own_products")
@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_last_bit(backend, case) -> None:
    xz, weights = _inputs()
    with use_backend(backend):
        _equal(*(_gradients(xz, weights, recompute, **CASES[case]) for recompute in (True, False)))


@pytest.mark.parametrize("case", ["plain", "autocast"])
def test_equal_on_triton(triton_device, case) -> None:
    pytest.importorskip("triton")
    xz, weights = _inputs(batch=1, length=6)
    xz, weights = xz.to(triton_device), [MixerWeights(*(t.to(triton_device) for t in one)) for one in weights]
    with use_backend("triton"):
        _equal(*(_gradients(xz, weights, recompute, **CASES[case]) for recompute in (True, False)))


def _with_product(backend, case, xz, weights, device="cpu") -> None:
    """All as above; kernels give the result again to other roundings, which reach the gradient of out_proj alone."""
    torch.manual_seed(1)
    out_proj = torch.randn(7, xz.shape[2] // 2, dtype=xz.dtype).to(device)
    with use_backend(backend):
        got, expected = (_gradients(xz, weights, again, out_proj=out_proj, **case) for again in (True, False))
    _equal(got[:-1], expected[:-1])
    assert (got[-1] is None) == (expected[-1] is None)
    if got[-1] is not None and backend == "reference":
        assert torch.equal(got[-1], expected[-1])
    elif got[-1] is not None:
        _close(got[-1], expected[-1])


def _close(got, expected, **tolerance) -> None:
    torch.testing.assert_close(got / expected.abs().max(), expected / expected.abs().max(), **tolerance)


PRODUCT_CASES = {
    **{name: case for name, case in CASES.items() if name != "without a gate"},
    "all but the product": {"frozen": ("out_proj",)},
}


@pytest.mark.usefixtures("own_products")
@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("case", PRODUCT_CASES)
def test_with_the_product_behind(backend, case) -> None:
    _with_product(backend, PRODUCT_CASES[case], *_inputs())


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_the_product_alone_learns(backend) -> None:
    """Without recomputation all before it is inference, which rounds its products differently."""
    xz, weights = _inputs()
    out_proj, frozen = torch.randn(7, 20), ("xz", *MixerWeights._fields)
    with use_backend(backend):
        got, expected = (_gradients(xz, weights, again, frozen=frozen, out_proj=out_proj) for again in (True, False))
    _close(got[0], expected[0])
    _close(got[-1], expected[-1])


@pytest.mark.usefixtures("own_products")
@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("reverse", [False, True])
def test_one_direction_with_the_product_behind(backend, reverse) -> None:
    xz, (one, _) = _inputs()
    _with_product(backend, {"reverse": reverse}, xz, [one])


@pytest.mark.parametrize("case", ["plain", "autocast"])
def test_with_the_product_behind_on_triton(triton_device, case) -> None:
    pytest.importorskip("triton")
    xz, weights = _inputs(batch=1, length=6)
    xz, weights = xz.to(triton_device), [MixerWeights(*(t.to(triton_device) for t in one)) for one in weights]
    _with_product("triton", PRODUCT_CASES[case], xz, weights, triton_device)


@pytest.mark.usefixtures("own_products")
@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("reverse", [False, True])
def test_one_direction(backend, reverse) -> None:
    xz, (one, _) = _inputs()
    with use_backend(backend):
        got, expected = (_gradients(xz, [one], recompute, reverse=reverse) for recompute in (True, False))
        _equal(got, expected)
        assert not torch.allclose(got[0], _gradients(xz, [one], True, reverse=not reverse)[0])


@pytest.mark.usefixtures("own_products")
@pytest.mark.parametrize(("backend", "dtype"), [("reference", torch.float64), ("numba", torch.bfloat16)])
def test_other_precisions(backend, dtype) -> None:
    xz, weights = _inputs(dtype)
    with use_backend(backend):
        _equal(*(_gradients(xz, weights, recompute) for recompute in (True, False)))


@pytest.mark.usefixtures("own_products")
@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 0), (1, 1), (3, 130)])
def test_any_length(batch, length) -> None:
    xz, weights = _inputs(batch=batch, length=length)
    _equal(*(_gradients(xz, weights, recompute) for recompute in (True, False)))


def _backward_later(recompute, before, during, product=False) -> list[torch.Tensor]:
    """Gradients where the forward pass ran in one context and the backward pass in another."""
    xz, weights = _inputs()
    leaves = [xz.requires_grad_(), *(t.requires_grad_() for one in weights for t in one)]
    out_proj = torch.randn(7, 20).requires_grad_() if product else None
    leaves += [out_proj] if product else []
    with before:
        y = mix(*xz.chunk(2, dim=-1), *weights, recompute=recompute, out_proj=out_proj)
    with during:
        y.float().square().sum().backward()
    return [leaf.grad for leaf in leaves]


@pytest.mark.usefixtures("own_products")
def test_the_backward_runs_as_the_forward_did() -> None:
    """The contexts of the forward pass have ended, or are others, when the backward pass begins."""
    half, full = torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False)
    with use_backend("reference"):
        expected = _backward_later(False, half, full)
        _equal(_backward_later(True, half, use_backend("numba")), expected)
        plain = _backward_later(False, full, full)
        _equal(_backward_later(True, full, half), plain)
        _equal(_backward_later(True, half, full, True), _backward_later(False, half, full, True))
        _equal(_backward_later(True, full, half, True), _backward_later(False, full, full, True))
    assert not torch.allclose(expected[0], plain[0])
    with use_backend("numba"):
        assert not torch.equal(_backward_later(True, full, full)[0], plain[0])


def test_a_weight_of_autocast_keeps_its_gradient_elsewhere() -> None:
    """Cast inside, it must not be taken from the cache outside, where the graph would end at it."""
    xz, weights = _inputs()
    weight = weights[0].x_proj.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        mix(*xz.chunk(2, dim=-1), *weights)
        y = torch.nn.functional.linear(xz[..., :20], weight)
    (grad,) = torch.autograd.grad(y.float().sum(), weight)
    assert grad.abs().sum() > 0


def test_the_scan_runs_once(monkeypatch) -> None:
    calls = []

    def counted(*arguments):
        calls.append(arguments[-1])  # whether it saves states
        return forward(*arguments)

    forward, backward = numba_backend.operators
    monkeypatch.setattr(numba_backend, "operators", (counted, backward))
    _gradients(*_inputs(), True)
    assert calls == [True]


@pytest.mark.parametrize("recompute", [True, False])
def test_no_second_derivative(recompute) -> None:
    xz, weights = _inputs()
    xz.requires_grad_()
    y = mix(*xz.chunk(2, dim=-1), *weights, recompute=recompute)
    (first,) = torch.autograd.grad(y.square().sum(), xz, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiate twice|no autograd formula was registered"):
        first.square().sum().backward()


@pytest.mark.slow
def test_compiled() -> None:
    xz, weights = _inputs()
    leaves = [xz.requires_grad_(), *(t.requires_grad_() for one in weights for t in one)]
    results = []
    for function in (mix, torch.compile(mix)):
        y = function(*xz.chunk(2, dim=-1), *weights)
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for got, expected in zip(*results, strict=True):
        _close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recompute", [True, False])
def test_shapes_that_do_not_fit_are_named(recompute) -> None:
    xz, weights = _inputs()
    x, z = xz.requires_grad_().chunk(2, dim=-1)
    with pytest.raises(ValueError, match=r"z has shape \(2, 69, 20\); it has to be u's \(2, 70, 20\)"):
        mix(x, z[:, 1:], *weights, recompute=recompute)
    with pytest.raises(ValueError, match=r"delta_bias_b has shape \(19,\)"):
        mix(x, z, weights[0], weights[1]._replace(dt_bias=weights[1].dt_bias[1:]), recompute=recompute)


def test_nothing_is_kept_without_gradients() -> None:
    xz, weights = _inputs()
    x, z = xz.chunk(2, dim=-1)
    assert mix(x, z, *weights).grad_fn is None
    with torch.inference_mode():
        assert torch.allclose(mix(x, z, *weights), mix(x, z, *weights, recompute=False))


def test_close_with_the_fastest_products(monkeypatch) -> None:
    """On some CPUs another library than torch's own multiplies where there is no graph."""
    xz, weights = _inputs()
    monkeypatch.setattr(dense, "_onednn_is_faster", lambda: True)
    out_proj = torch.randn(7, 20)
    with use_backend("numba"):
        got, expected = (_gradients(xz, weights, again, out_proj=out_proj) for again in (True, False))
    for one, other in zip(got, expected, strict=True):
        _close(one, other, rtol=1e-4, atol=1e-5)


def test_passing_memory_is_not_what_is_handed_out() -> None:
    """Two graphs at once, in the other order, give what each gives alone."""
    xz, weights = _inputs()
    out_proj = torch.randn(7, 20)

    def graph(scale):
        leaf = (xz * scale).requires_grad_()
        return leaf, mix(*leaf.chunk(2, dim=-1), *weights, out_proj=out_proj)

    with use_backend("numba"):
        alone = []
        for scale in (1.0, 0.5):
            leaf, y = graph(scale)
            alone.append((y.detach().clone(), *torch.autograd.grad(y.square().sum(), leaf)))
        (one, y), (two, w) = graph(1.0), graph(0.5)
        (of_one,) = torch.autograd.grad(y.square().sum(), one)
        (of_two,) = torch.autograd.grad(w.square().sum(), two)
    _equal((y, of_one, w, of_two), (*alone[0], *alone[1]))
