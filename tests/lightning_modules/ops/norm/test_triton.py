import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.ops import add_rms_norm, use_backend

pytest.importorskip("triton")
from lightning_modules.ops.norm import triton as triton_backend


@pytest.fixture(autouse=True)
def _device(triton_device: str):
    with torch.device(triton_device):
        yield


def _run(backend: str, hidden, residual, weight) -> list[torch.Tensor]:
    leaves = [None if t is None else t.detach().requires_grad_() for t in (hidden, residual, weight)]
    with use_backend(backend):
        normed, total = add_rms_norm(*leaves, 1e-5)
    loss = (normed.float().square() + normed.float()).sum() + (2 * total.square()).sum()
    return [normed, total, *torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None])]


@settings(max_examples=10, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape(data) -> None:
    torch.manual_seed(data.draw(st.integers(0, 9)))
    shape = (data.draw(st.integers(0, 3)), data.draw(st.integers(1, 9)), data.draw(st.integers(1, 80)))
    hidden, residual, weight = torch.randn(shape), torch.randn(shape), torch.randn(shape[-1:])
    residual = residual if data.draw(st.booleans()) else None
    got, expected = (_run(backend, hidden, residual, weight) for backend in ("triton", "reference"))
    for fast, exact in zip(got, expected, strict=True):
        assert fast.dtype == exact.dtype
        torch.testing.assert_close(
            fast, exact, rtol=2e-5, atol=2e-5 * max(1, float(exact.abs().max()) if exact.numel() else 1)
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_residual_stream_in_float32(dtype: torch.dtype) -> None:
    hidden, residual, weight = torch.randn(2, 5, 48, dtype=dtype), torch.randn(2, 5, 48), torch.randn(48, dtype=dtype)
    got, expected = (_run(backend, hidden, residual, weight) for backend in ("triton", "reference"))
    for fast, exact in zip(got, expected, strict=True):
        assert fast.dtype == exact.dtype
        torch.testing.assert_close(fast.float(), exact.float(), rtol=0.03, atol=0.03 * float(exact.abs().max()))
    assert got[1].dtype == torch.float32


def test_autocast_gives_the_dtype_of_the_products_that_follow(triton_device: str) -> None:
    hidden, weight = torch.randn(2, 5, 48), torch.randn(48)
    with use_backend("triton"), torch.autocast(triton_device, dtype=torch.bfloat16):
        normed, total = add_rms_norm(hidden, None, weight, 1e-5)
    assert (normed.dtype, total.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("with_residual", [True, False])
def test_operators_are_registered_soundly(with_residual: bool) -> None:
    hidden, weight = torch.randn(2, 3, 5).requires_grad_(), torch.randn(5).requires_grad_()
    residual = torch.randn(2, 3, 5).requires_grad_() if with_residual else None
    torch.library.opcheck(triton_backend._add_rms_norm, (hidden, residual, weight, 1e-5, torch.bfloat16))
