import pytest
import torch

from lightning_modules.ops import add_rms_norm, use_backend


@pytest.fixture(params=["numba", "reference"], autouse=True)
def backend(request):
    with use_backend(request.param):
        yield request.param


def test_against_the_formula() -> None:
    hidden, residual, weight = torch.randn(2, 3, 8), torch.randn(2, 3, 8), torch.randn(8)
    normed, total = add_rms_norm(hidden, residual, weight, 1e-2)
    expected = hidden + residual
    torch.testing.assert_close(total, expected)
    rms = (expected.square().mean(-1, keepdim=True) + 1e-2).sqrt()
    torch.testing.assert_close(normed, expected / rms * weight)


def test_without_residual_the_stream_begins_in_float32() -> None:
    hidden, weight = torch.randn(2, 3, 8, dtype=torch.bfloat16), torch.ones(8, dtype=torch.bfloat16)
    normed, total = add_rms_norm(hidden, None, weight, 1e-5)
    assert (normed.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(total, hidden.float())


def test_a_wrong_shape_is_named() -> None:
    hidden = torch.zeros(2, 3, 8)
    with pytest.raises(ValueError, match=r"residual has shape \(2, 3, 7\)"):
        add_rms_norm(hidden, torch.zeros(2, 3, 7), torch.ones(8), 1e-5)
    with pytest.raises(ValueError, match=r"weight has shape \(7,\); it has to be \(8,\)"):
        add_rms_norm(hidden, None, torch.ones(7), 1e-5)
