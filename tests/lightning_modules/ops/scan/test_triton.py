import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_modules.ops import bidirectional_scan, selective_scan, use_backend

pytest.importorskip("triton")
from lightning_modules.ops.scan import triton as triton_backend

_SEQUENCES = ("u", "delta", "A", "B", "C", "D", "delta_bias")


@pytest.fixture(autouse=True)
def _device(triton_device: str):
    with torch.device(triton_device):
        yield


@pytest.fixture(params=["whole", "segments"])
def division(request, monkeypatch) -> str:
    """The sequence in one piece, or cut for a GPU that has more schedulers than there are programs."""
    monkeypatch.setattr(triton_backend, "_FEW_WARPS", 0 if request.param == "whole" else 1)
    monkeypatch.setattr(triton_backend, "_SHORTEST", 8)
    monkeypatch.setattr(triton_backend, "_CHUNK", 16)
    return request.param


def _inputs(batch: int, length: int, channels: int, state: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Step sizes, decays and weights of the sizes that a trained model has."""
    torch.manual_seed(seed)
    return {
        "u": torch.randn(batch, length, channels),
        "delta": torch.randn(batch, length, channels) - 2,
        "A": -torch.rand(channels, state) * 8,
        "B": torch.randn(batch, length, state),
        "C": torch.randn(batch, length, state),
        "D": torch.randn(channels),
        "delta_bias": torch.randn(channels),
        "z": torch.randn(batch, length, channels),
    }


def _pair(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return one | {f"{name}_b": two[name] for name in _SEQUENCES if name in two}


def _run(
    function, inputs: dict[str, torch.Tensor], backend: str, dtype: torch.dtype, **options
) -> dict[str, torch.Tensor]:
    inputs = {name: tensor.detach().to(dtype).requires_grad_() for name, tensor in inputs.items()}
    with use_backend(backend):
        y = function(**({"D": None, "D_b": None} if "u_b" in inputs else {}) | inputs, **options)
    weights = torch.linspace(-1, 1, max(y.numel(), 1), dtype=torch.float64)[: y.numel()].view(y.shape).to(dtype)
    gradients = torch.autograd.grad(y, inputs.values(), weights, materialize_grads=True)
    return {"y": y.detach()} | {f"grad_{name}": g for name, g in zip(inputs, gradients, strict=True)}


def _compare(function, inputs: dict[str, torch.Tensor], limit: float = 5e-6, **options) -> None:
    """Outputs and every gradient against the definition in float64, relative to each tensor's largest number."""
    fast = _run(function, inputs, "triton", torch.float32, **options)
    exact = _run(function, inputs, "reference", torch.float64, **options)
    for name, expected in exact.items():
        assert fast[name].shape == expected.shape, name
        assert fast[name].dtype == torch.float32, name
        if expected.numel():
            error = (fast[name].double() - expected).abs().max() / expected.abs().max().clamp_min(1e-6)
            assert error < limit, f"{name}: {error}"


@pytest.mark.parametrize("length", [1, 2, 17])
def test_lengths(length: int, division: str) -> None:
    one, two = (_inputs(1, length, 5, 4, seed) for seed in (0, 1))
    _compare(bidirectional_scan, _pair(one, two), delta_softplus=True)


@pytest.mark.slow
@pytest.mark.parametrize("length", [63, 64, 65])
@pytest.mark.parametrize("channels", [1, 17])
def test_longer_lengths_and_odd_channels(length: int, channels: int, division: str) -> None:
    one, two = (_inputs(1, length, channels, 16, seed) for seed in (0, 1))
    _compare(bidirectional_scan, _pair(one, two), delta_softplus=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter would take hours")
@pytest.mark.parametrize("length", [1569, 12545])
@pytest.mark.parametrize("batch", [1, 3])
def test_lengths_of_videos(length: int, batch: int) -> None:
    one, two = (_inputs(batch, length, 72, 16, seed) for seed in (0, 1))
    _compare(bidirectional_scan, _pair(one, two), limit=2e-5, delta_softplus=True)


def test_more_than_one_block_of_channels_and_sequence(division: str) -> None:
    one, two = (_inputs(2, 9, 33, 16, seed) for seed in (0, 1))
    _compare(bidirectional_scan, _pair(one, two), delta_softplus=True)


@pytest.mark.parametrize("state", [1, 12, 64])
def test_numbers_of_states(state: int) -> None:
    one, two = (_inputs(1, 5, 18, state, seed) for seed in (0, 1))
    _compare(bidirectional_scan, _pair(one, two), delta_softplus=True)


@st.composite
def _cases(draw) -> tuple:
    """(both directions, shape, names left out, softplus, reverse, in one piece)."""
    both = draw(st.booleans())
    shape = (draw(st.integers(0, 2)), draw(st.integers(0, 13)), draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    left_out = {name for name in ("D", "D_b", "delta_bias", "delta_bias_b", "z") if draw(st.booleans())}
    return both, shape, left_out, draw(st.booleans()), draw(st.booleans()), draw(st.booleans())


def _check(case: tuple, monkeypatch) -> None:
    both, shape, left_out, softplus, reverse, whole = case
    monkeypatch.setattr(triton_backend, "_FEW_WARPS", 0 if whole else 1)
    monkeypatch.setattr(triton_backend, "_SHORTEST", 4)
    monkeypatch.setattr(triton_backend, "_CHUNK", 8)
    inputs = _inputs(*shape)
    if not softplus:
        # Negative steps would let the states grow, and every rounding with them.
        inputs |= {"delta": inputs["delta"].abs() * 0.3, "delta_bias": inputs["delta_bias"].abs()}
    if both:
        other = {**_inputs(*shape, seed=1), "delta": inputs["delta"] * 0.7, "delta_bias": inputs["delta_bias"] * 0.7}
        inputs = {name: t for name, t in _pair(inputs, other).items() if name not in left_out}
        _compare(bidirectional_scan, inputs, delta_softplus=softplus)
    else:
        inputs = {name: t for name, t in inputs.items() if name not in left_out}
        _compare(selective_scan, inputs, delta_softplus=softplus, reverse=reverse)


_QUICK = settings(
    max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@_QUICK
@given(case=_cases())
def test_any_shape_and_options(case: tuple, monkeypatch) -> None:
    _check(case, monkeypatch)


@pytest.mark.slow
@settings(_QUICK, max_examples=40)
@given(case=_cases())
def test_any_shape_and_options_at_length(case: tuple, monkeypatch) -> None:
    _check(case, monkeypatch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    one, two = (_inputs(1, 9, 6, 4, seed) for seed in (0, 1))
    low = {
        name: tensor.to(dtype) if tensor.dim() == 3 else tensor for name, tensor in _pair(one, two).items()
    }  # A, D and biases stay in float32, as in the model
    results = []
    for backend in ("triton", "reference"):
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in low.items()}
        with use_backend(backend):
            y = bidirectional_scan(**leaves, delta_softplus=True)
        assert y.dtype == dtype
        results.append([y, *torch.autograd.grad(y.float().square().sum(), leaves.values())])
    for fast, expected in zip(*results, strict=True):
        assert fast.dtype == expected.dtype
        scale = expected.float().abs().max()
        torch.testing.assert_close(fast.float() / scale, expected.float() / scale, rtol=0.03, atol=0.01)


def test_slices_of_wider_tensors_are_read_in_place() -> None:
    inputs = _inputs(2, 7, 6, 4)
    wide = torch.cat([inputs["u"], inputs["z"]], -1)
    weights = torch.cat([inputs["delta"], inputs["B"], inputs["C"]], -1)
    sliced = dict(inputs, u=wide[..., :6], z=wide[..., 6:])
    sliced |= {"delta": weights[..., :6], "B": weights[..., 6:10], "C": weights[..., 10:]}
    turned = {name: t.transpose(1, 2).contiguous().transpose(1, 2) if t.dim() == 3 else t for name, t in inputs.items()}
    expected = _run(selective_scan, inputs, "triton", torch.float32, delta_softplus=True)
    for variant in (sliced, turned):
        with use_backend("triton"):
            assert torch.equal(selective_scan(**variant, delta_softplus=True), expected["y"])
        got = _run(selective_scan, variant, "triton", torch.float32, delta_softplus=True)
        assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("delta", "rate"), [(1e4, -16.0), (-1e4, -16.0), (60.0, -1e4), (-60.0, -1e-6), (20.0, 0.0), (0.0, -1e-30)]
)
def test_extreme_values_stay_finite(delta: float, rate: float) -> None:
    inputs = _inputs(1, 6, 3, 4)
    inputs |= {"delta": torch.full_like(inputs["delta"], delta), "A": torch.full_like(inputs["A"], rate)}
    fast = _run(selective_scan, inputs, "triton", torch.float32, delta_softplus=True)
    assert all(tensor.isfinite().all() for tensor in fast.values())
    _compare(selective_scan, inputs, limit=2e-5, delta_softplus=True)


def test_equal_calls_give_equal_bits(division: str) -> None:
    inputs = _inputs(1, 9, 20, 4)
    runs = [_run(selective_scan, inputs, "triton", torch.float32, delta_softplus=True) for _ in range(2)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


@pytest.mark.parametrize("optional", [True, False])
def test_operators_are_registered_soundly(optional: bool) -> None:
    one, two = (_inputs(1, 3, 3, 2, seed) for seed in (0, 1))
    order = ("u", "delta", "A", "B", "C", "D", "delta_bias")
    inputs = [one[name].requires_grad_() for name in order] + [two[name].requires_grad_() for name in order]
    z = one["z"].requires_grad_()
    if not optional:
        inputs = [None if index > 4 else tensor for index, tensor in enumerate(inputs)]
        z = None
    torch.library.opcheck(triton_backend._scan, (*inputs, z, True, False, True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are a matter of GPUs")
def test_calls_can_be_captured_in_a_graph() -> None:
    one, two = (_inputs(1, 200, 40, 16, seed) for seed in (0, 1))
    inputs = _pair(one, two)
    with use_backend("triton"), torch.no_grad():
        expected = bidirectional_scan(**inputs, delta_softplus=True)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = bidirectional_scan(**inputs, delta_softplus=True)
        y.zero_()
        graph.replay()
    assert torch.equal(y, expected)


def test_a_network_compiles_without_a_graph_break() -> None:
    """Scan, convolution and norm inside of one graph; the same logits and gradients as on the reference."""
    from lightning_modules.nets import VideoMamba

    torch.manual_seed(0)
    net = VideoMamba(3, embed_dim=16, depth=2, num_frames=1, image_size=32)
    clip = torch.randn(1, 3, 1, 32, 32)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    results = []
    for backend, function in (("triton", compiled), ("triton", net), ("reference", net)):
        with use_backend(backend):
            logits = function(clip)
            results.append([logits, *torch.autograd.grad(logits.square().sum(), net.parameters())])
    for got in results[:2]:
        for tensor, expected in zip(got, results[2], strict=True):
            largest = float(expected.detach().abs().max())
            torch.testing.assert_close(tensor, expected, rtol=1e-3, atol=1e-5 * max(1.0, largest))
