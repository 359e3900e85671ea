import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.ops import bidirectional_scan, selective_scan, use_backend
from lightning_modules.ops.scan import numba as numba_backend

_SEQUENCES = ("u", "delta", "A", "B", "C", "D", "delta_bias")


def _inputs(batch: int, length: int, channels: int, state: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Step sizes, decays and weights of the sizes that a trained model has."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "u": draw(batch, length, channels),
        "delta": draw(batch, length, channels) - 2,
        "A": -torch.rand(channels, state, generator=generator) * 8,
        "B": draw(batch, length, state),
        "C": draw(batch, length, state),
        "D": draw(channels),
        "delta_bias": draw(channels),
        "z": draw(batch, length, channels),
    }


def _run(
    function, inputs: dict[str, torch.Tensor], backend: str, dtype: torch.dtype, **options
) -> dict[str, torch.Tensor]:
    inputs = {name: tensor.detach().to(dtype).requires_grad_() for name, tensor in inputs.items()}
    with use_backend(backend):
        y = function(**inputs, **options)
    weights = torch.linspace(-1, 1, max(y.numel(), 1), dtype=torch.float64)[: y.numel()].view(y.shape).to(dtype)
    gradients = torch.autograd.grad(y, inputs.values(), weights, materialize_grads=True)
    return {"y": y.detach()} | {f"grad_{name}": g for name, g in zip(inputs, gradients, strict=True)}


def _compare(function, inputs: dict[str, torch.Tensor], limit: float = 5e-6, **options) -> None:
    """Outputs and every gradient against the definition in float64, relative to each tensor's largest number, or to
    0.1 where that is smaller: what is left of numbers around 1 that cancel out has few digits."""
    fast = _run(function, inputs, "numba", torch.float32, **options)
    exact = _run(function, inputs, "reference", torch.float64, **options)
    for name, expected in exact.items():
        assert fast[name].shape == expected.shape, name
        assert fast[name].dtype == torch.float32, name
        if expected.numel():
            error = (fast[name].double() - expected).abs().max() / expected.abs().max().clamp_min(0.1)
            assert error < limit, f"{name}: {error}"


def _pair(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return one | {f"{name}_b": two[name] for name in _SEQUENCES}


@pytest.mark.parametrize("length", [1, 2, 3, 31, 32, 33, 63, 64, 65, 257])
@pytest.mark.parametrize("channels", [1, 17, 33])
def test_lengths_and_channels(length: int, channels: int) -> None:
    _compare(selective_scan, _inputs(2, length, channels, 16), delta_softplus=True)
    _compare(bidirectional_scan, _pair(_inputs(1, length, channels, 5), _inputs(1, length, channels, 5, seed=1)))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_and_options(data) -> None:
    batch, length, channels = (data.draw(st.integers(0, high)) for high in (3, 70, 50))
    state = data.draw(st.sampled_from([1, 2, 3, 8, 16, 20, 64]))
    inputs = _inputs(batch, length, max(channels, 1), state, seed=data.draw(st.integers(0, 9)))
    softplus = data.draw(st.booleans())
    if not softplus:
        inputs["delta"] = inputs["delta"].exp()
        inputs["delta_bias"] = inputs["delta_bias"].abs()
    for name in ("D", "z", "delta_bias"):
        if data.draw(st.booleans()):
            del inputs[name]
    _compare(selective_scan, inputs, delta_softplus=softplus, reverse=data.draw(st.booleans()))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_pair_of_directions(data) -> None:
    shape = [data.draw(st.integers(low, high)) for low, high in ((1, 3), (1, 70), (1, 50), (1, 17))]
    inputs = _pair(_inputs(*shape), _inputs(*shape, seed=1))
    inputs = {name: tensor for name, tensor in inputs.items() if name not in ("D", "D_b")}
    for name in ("z", "delta_bias", "delta_bias_b"):
        if data.draw(st.booleans()):
            del inputs[name]
    _compare(lambda **given: bidirectional_scan(D=None, D_b=None, **given), inputs, delta_softplus=True)


def test_a_direction_with_and_one_without_skip() -> None:
    inputs = _pair(_inputs(1, 9, 4, 3), _inputs(1, 9, 4, 3, seed=1))
    del inputs["D"], inputs["delta_bias_b"]
    _compare(lambda **given: bidirectional_scan(D=None, **given), inputs)


@pytest.mark.slow
def test_a_long_sequence() -> None:
    _compare(selective_scan, _inputs(1, 1569, 20, 16), limit=2e-5, delta_softplus=True)


def test_slices_of_wider_tensors_are_read_in_place() -> None:
    inputs = _inputs(2, 40, 24, 8)
    wide = torch.randn(2, 40, 60)
    inputs["u"], inputs["z"] = wide[..., 5:29], wide[..., 30:54]
    inputs["B"], inputs["C"] = wide[..., 11:19], wide[..., 20:28]
    inputs["delta"] = torch.randn(24, 40, 2).permute(2, 1, 0)  # channels apart: has to be copied
    with use_backend("numba"):
        y = selective_scan(**inputs, delta_softplus=True)
        packed = selective_scan(**{name: tensor.contiguous() for name, tensor in inputs.items()}, delta_softplus=True)
    assert torch.equal(y, packed)


def test_expanded_inputs() -> None:
    inputs = _inputs(3, 12, 10, 4)
    inputs["B"] = inputs["B"][:1].expand(3, -1, -1)
    inputs["u"] = inputs["u"][:, :1].expand(-1, 12, -1)
    _compare(selective_scan, inputs, delta_softplus=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    inputs = {name: tensor.to(dtype) for name, tensor in _inputs(2, 100, 20, 16).items()}
    fast = _run(selective_scan, inputs, "numba", dtype, delta_softplus=True)
    slow = _run(selective_scan, inputs, "reference", dtype, delta_softplus=True)
    for name, expected in slow.items():
        assert fast[name].dtype == dtype, name
        scale = expected.abs().max()
        torch.testing.assert_close(
            fast[name] / scale, expected / scale, rtol=0.02, atol=2 * torch.finfo(dtype).eps, msg=name
        )


@pytest.mark.parametrize(
    ("delta", "rate"),
    [(1e4, -1e4), (1e30, -1e3), (3e38, -20), (100, -1e-8), (-100, -8), (-1e30, -8), (1e-8, -8), (1, 0)],
)
def test_extreme_step_sizes_and_decays(delta: float, rate: float) -> None:
    inputs = _inputs(1, 70, 5, 4)
    inputs["delta"] = torch.full_like(inputs["delta"], delta)
    inputs["A"] = torch.full_like(inputs["A"], rate)
    inputs["u"] = inputs["u"] / max(abs(delta), 1)  # so that the result itself is a float32 number
    del inputs["delta_bias"]
    fast = _run(selective_scan, inputs, "numba", torch.float32, delta_softplus=True)
    exact = _run(selective_scan, inputs, "reference", torch.float64, delta_softplus=True)
    assert torch.isfinite(fast["y"]).all()
    for name, expected in exact.items():
        if expected.abs().max() < 1e30:
            error = (fast[name].double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
            assert error < 1e-5, f"{name}: {error}"


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "z"])
def test_a_nan_is_not_hidden(name: str) -> None:
    inputs = _inputs(1, 8, 3, 2)
    inputs[name] = inputs[name].index_fill(-1, torch.tensor([0]), float("nan"))
    with use_backend("numba"):
        assert selective_scan(**inputs, delta_softplus=True).isnan().any()


def test_equal_calls_give_equal_bits() -> None:
    inputs = _pair(_inputs(2, 130, 70, 16), _inputs(2, 130, 70, 16, seed=1))
    first = _run(bidirectional_scan, inputs, "numba", torch.float32)
    for _ in range(5):
        again = _run(bidirectional_scan, inputs, "numba", torch.float32)
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_forward_does_not_depend_on_the_number_of_threads() -> None:
    inputs = _inputs(2, 50, 70, 16)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            results.append(_run(selective_scan, inputs, "numba", torch.float32, delta_softplus=True))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(results[0]["y"], other["y"])
        for name, expected in results[0].items():
            torch.testing.assert_close(other[name], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_training_and_inference_give_the_same() -> None:
    inputs = _inputs(1, 80, 20, 16)
    trained = _run(selective_scan, inputs, "numba", torch.float32, delta_softplus=True)["y"]
    with use_backend("numba"), torch.no_grad():
        assert torch.equal(selective_scan(**inputs, delta_softplus=True), trained)


def test_checkpoints_are_kept_only_for_a_backward() -> None:
    one = [_inputs(1, 160, 20, 16)[name] for name in _SEQUENCES]
    kept = [numba_backend._scan(*one, *[None] * 8, True, False, save)[1].shape for save in (False, True)]
    assert kept == [(0,), (2 * 2 * 16 * 16,)]  # chunks of 128 rows, groups of 16 channels, states, 16 lanes


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_operator_is_registered_soundly(both: bool, reverse: bool) -> None:
    one, two = _inputs(2, 6, 5, 3), _inputs(2, 6, 5, 3, seed=1)
    first = [one[name].requires_grad_() for name in _SEQUENCES]
    second = [two[name].requires_grad_() if both else None for name in _SEQUENCES]
    arguments = (*first, *second, one["z"].requires_grad_() if both else None, True, reverse, True)
    torch.library.opcheck(numba_backend._scan, arguments)
    detached = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
    y, checkpoints = numba_backend._scan(*detached)
    torch.library.opcheck(numba_backend._scan_backward, (torch.ones_like(y), checkpoints, *detached[:-1], both))


@pytest.mark.parametrize("reverse", [None, False, True])
@pytest.mark.parametrize("length", [1, 50, 300])
def test_the_backward_gives_the_result_again(reverse: bool | None, length: int) -> None:
    """None is both directions."""
    one, two = _inputs(2, length, 20, 16), _inputs(2, length, 20, 16, seed=1)
    second = [two[name] if reverse is None else None for name in _SEQUENCES]
    tensors = (*(one[name] for name in _SEQUENCES), *second, one["z"])
    y, checkpoints = numba_backend._scan(*tensors, True, reverse is True, True)
    asked, plain = (
        numba_backend._scan_backward(torch.ones_like(y), checkpoints, *tensors, True, reverse is True, result)
        for result in (True, False)
    )
    torch.testing.assert_close(asked[-1], y, rtol=1e-5, atol=1e-5)
    assert len(asked) == len(plain) + 1 and all(map(torch.equal, asked, plain))


def test_default_dtype_and_device_do_not_reach_the_kernels() -> None:
    inputs = _inputs(2, 40, 20, 16)
    expected = _run(selective_scan, inputs, "numba", torch.float32, delta_softplus=True)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            leaves = [tensor.requires_grad_() for tensor in inputs.values()]
            y = selective_scan(**inputs, delta_softplus=True)
        weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).float()
        gradients = torch.autograd.grad(y, leaves, weights)
    finally:
        torch.set_default_dtype(torch.float32)
    for got, name in zip([y, *gradients], expected, strict=True):
        assert torch.equal(got, expected[name]), name


@pytest.mark.parametrize("length", [1, 64, 70])
@pytest.mark.parametrize("channels", [16, 40])
@pytest.mark.parametrize("gated", [True, False])
def test_bfloat16_read_in_place_is_that_of_a_copy(length: int, channels: int, gated: bool) -> None:
    one, two = (_inputs(2, length, channels, 8, seed) for seed in (0, 1))
    for name in ("u", "delta", "z"):
        wide = torch.randn(2, length, 3 * channels).bfloat16()  # slices, with something on both sides
        wide[..., channels : 2 * channels] = one[name]
        one[name] = wide[..., channels : 2 * channels]
        two[name] = two[name].bfloat16()
    both = _pair(one, {name: two[name] for name in _SEQUENCES})
    both["z"] = one["z"] if gated else None
    copied = {name: None if tensor is None else tensor.float() for name, tensor in both.items()}
    with use_backend("numba"):
        result, expected = bidirectional_scan(**both), bidirectional_scan(**copied)
        assert result.dtype == torch.bfloat16 and torch.equal(result, expected.bfloat16())
        for name in ("delta", "delta_b"):  # one in float32: all are read so
            both[name] = both[name].float()
        assert torch.equal(bidirectional_scan(**both), result)
