import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.ops import bidirectional_conv1d, causal_conv1d, use_backend
from lightning_modules.ops.conv import numba as numba_backend


def _compare(function, inputs: list[torch.Tensor | None], **options) -> None:
    """Outputs and every gradient against the definition in float64, relative to each tensor's largest number."""
    results = []
    for backend, dtype in (("numba", torch.float32), ("reference", torch.float64)):
        leaves = [None if t is None else t.detach().to(dtype).requires_grad_() for t in inputs]
        with use_backend(backend):
            outputs = function(*leaves, **options)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum(((i + 1) * y.square() + y).sum() for i, y in enumerate(outputs))
        gradients = torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None])
        results.append([*outputs, *gradients])
    for index, (fast, exact) in enumerate(zip(*results, strict=True)):
        assert fast.shape == exact.shape
        assert fast.dtype == torch.float32
        if exact.numel():
            error = (fast.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-6)
            assert error < 2e-6, f"tensor {index}: {error}"


@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 257, 300])
@pytest.mark.parametrize("channels", [1, 17, 33])
def test_lengths_and_channels(length: int, channels: int) -> None:
    torch.manual_seed(0)
    x, weights, biases = torch.randn(2, length, channels), torch.randn(2, channels, 4), torch.randn(2, channels)
    _compare(bidirectional_conv1d, [x, weights[0], biases[0], weights[1], biases[1]])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_and_options(data) -> None:
    torch.manual_seed(data.draw(st.integers(0, 9)))
    batch, length, channels, width = (
        data.draw(st.integers(low, high)) for low, high in ((0, 3), (0, 70), (1, 50), (1, 9))
    )
    x, weight, bias = torch.randn(batch, length, channels), torch.randn(channels, width), torch.randn(channels)
    bias = bias if data.draw(st.booleans()) else None
    if data.draw(st.booleans()):
        _compare(bidirectional_conv1d, [x, weight, bias, weight.flip(0), None])
    else:
        options = {"activation": data.draw(st.sampled_from([None, "silu"])), "reverse": data.draw(st.booleans())}
        _compare(causal_conv1d, [x, weight, bias], **options)


def test_weights_may_be_shared_by_the_directions() -> None:
    x, weight, bias = torch.randn(1, 9, 5), torch.randn(5, 4).requires_grad_(), torch.randn(5)
    gradients = []
    for backend in ("numba", "reference"):
        with use_backend(backend):
            y, y_b = bidirectional_conv1d(x, weight, bias, weight, bias)
        gradients.append(torch.autograd.grad((y * 2 + y_b).sum(), weight)[0])
    torch.testing.assert_close(*gradients)


def test_one_of_the_results_may_go_unused() -> None:
    x = torch.randn(1, 9, 5).requires_grad_()
    weights = torch.randn(2, 5, 4)
    gradients = []
    for backend in ("numba", "reference"):
        with use_backend(backend):
            gradients.append(
                torch.autograd.grad(bidirectional_conv1d(x, weights[0], None, weights[1], None)[1].sum(), x)[0]
            )
    torch.testing.assert_close(*gradients)


def test_slices_of_wider_tensors_are_read_in_place() -> None:
    x, _ = torch.randn(2, 40, 48).chunk(2, dim=-1)
    weights = torch.randn(2, 24, 4)
    with use_backend("numba"):
        for strided, packed in zip(
            bidirectional_conv1d(x, weights[0], None, weights[1], None),
            bidirectional_conv1d(x.contiguous(), weights[0], None, weights[1], None),
            strict=True,
        ):
            assert torch.equal(strided, packed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    x = torch.randn(2, 30, 20, dtype=dtype).requires_grad_()
    weight = torch.randn(20, 4)
    with use_backend("numba"):
        y = causal_conv1d(x, weight, activation="silu")
    with use_backend("reference"):
        expected = causal_conv1d(x, weight, activation="silu")
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected)
    gradient = torch.autograd.grad(y.sum(), x)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), x)[0], rtol=0.02, atol=0.02)


def test_equal_calls_give_equal_bits() -> None:
    x, weights = torch.randn(2, 300, 70).requires_grad_(), torch.randn(2, 70, 4).requires_grad_()
    runs = []
    with use_backend("numba"):
        for _ in range(4):
            y, y_b = bidirectional_conv1d(x, weights[0], None, weights[1], None)
            runs.append([y, y_b, *torch.autograd.grad((y * y_b).sum(), [x, weights])])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_operators_are_registered_soundly(reverse: bool, with_bias: bool) -> None:
    x, weight = torch.randn(2, 6, 5).requires_grad_(), torch.randn(5, 4).requires_grad_()
    bias = torch.randn(5).requires_grad_() if with_bias else None
    torch.library.opcheck(numba_backend.causal_conv1d, (x, weight, bias, True, reverse))
    torch.library.opcheck(numba_backend.bidirectional_conv1d, (x, weight, bias, torch.randn(5, 4), None))
    grad = torch.ones(2, 6, 5)
    x, weight, bias = (None if t is None else t.detach() for t in (x, weight, bias))
    torch.library.opcheck(numba_backend._conv_backward, (grad, None, x, weight, bias, None, None, True))


@pytest.mark.parametrize("channels", [16, 40])
def test_bfloat16_is_read_in_place_and_rounded_as_torch_does(channels: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 70, 3 * channels).bfloat16()[..., channels : 2 * channels]
    x[0, 5, 0], x[1, 9, 1] = float("nan"), float("inf")
    weights = torch.randn(channels, 4), torch.randn(channels), torch.randn(channels, 4), torch.randn(channels)
    with use_backend("numba"):
        pairs = zip(bidirectional_conv1d(x, *weights), bidirectional_conv1d(x.float(), *weights), strict=True)
        for result, expected in pairs:
            torch.testing.assert_close(result, expected.bfloat16(), rtol=0, atol=0, equal_nan=True)
