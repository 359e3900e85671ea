import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_modules.ops import bidirectional_conv1d, causal_conv1d, use_backend

pytest.importorskip("triton")
from lightning_modules.ops.conv import triton as triton_backend


@pytest.fixture(autouse=True)
def _device(triton_device: str):
    with torch.device(triton_device):
        yield


def _compare(function, inputs: list[torch.Tensor | None], **options) -> None:
    """Outputs and every gradient against the definition in float64, relative to each tensor's largest number."""
    results = []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
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


@pytest.mark.parametrize("length", [1, 3, 17, 33])
def test_lengths(length: int, monkeypatch) -> None:
    monkeypatch.setattr(triton_backend, "_SEGMENT", 8)
    torch.manual_seed(0)
    x, weights, biases = torch.randn(2, length, 5), torch.randn(2, 5, 4), torch.randn(2, 5)
    _compare(bidirectional_conv1d, [x, weights[0], biases[0], weights[1], biases[1]])


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape_and_options(data, monkeypatch) -> None:
    monkeypatch.setattr(triton_backend, "_SEGMENT", 8)
    torch.manual_seed(data.draw(st.integers(0, 9)))
    batch, length, channels, width = (
        data.draw(st.integers(low, high)) for low, high in ((0, 2), (0, 17), (1, 140), (1, 5))
    )
    x, weight, bias = torch.randn(batch, length, channels), torch.randn(channels, width), torch.randn(channels)
    bias = bias if data.draw(st.booleans()) else None
    if data.draw(st.booleans()):
        _compare(bidirectional_conv1d, [x, weight, bias, weight.flip(0), None])
    else:
        options = {"activation": data.draw(st.sampled_from([None, "silu"])), "reverse": data.draw(st.booleans())}
        _compare(causal_conv1d, [x, weight, bias], **options)


def test_one_of_the_results_may_go_unused() -> None:
    x = torch.randn(1, 9, 5).requires_grad_()
    weights = torch.randn(2, 5, 4)
    gradients = []
    for backend in ("triton", "reference"):
        with use_backend(backend):
            y = bidirectional_conv1d(x, weights[0], None, weights[1], None)[1]
        gradients.append(torch.autograd.grad(y.sum(), x)[0])
    torch.testing.assert_close(*gradients)


def test_slices_of_wider_tensors_are_read_in_place() -> None:
    x, _ = torch.randn(1, 9, 48).chunk(2, dim=-1)
    weights = torch.randn(2, 24, 4)
    with use_backend("triton"):
        for strided, packed in zip(
            bidirectional_conv1d(x, weights[0], None, weights[1], None),
            bidirectional_conv1d(x.contiguous(), weights[0], None, weights[1], None),
            strict=True,
        ):
            assert torch.equal(strided, packed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    x, weight = torch.randn(1, 9, 20, dtype=dtype).requires_grad_(), torch.randn(20, 4)
    results = []
    for backend in ("triton", "reference"):
        with use_backend(backend):
            y = causal_conv1d(x, weight, activation="silu")
        assert y.dtype == dtype
        results.append((y, torch.autograd.grad(y.sum(), x)[0]))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("reverse", [False, True])
def test_operators_are_registered_soundly(reverse: bool) -> None:
    x, weight = torch.randn(2, 6, 5).requires_grad_(), torch.randn(5, 4).requires_grad_()
    bias = torch.randn(5).requires_grad_() if reverse else None
    torch.library.opcheck(triton_backend.causal_conv1d, (x, weight, bias, True, reverse))
    torch.library.opcheck(triton_backend.bidirectional_conv1d, (x, weight, bias, torch.randn(5, 4), None))
