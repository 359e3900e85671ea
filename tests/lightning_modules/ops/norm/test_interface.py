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


@pytest.mark.parametrize("shape", [(2, 3, 8), (1, 1, 1), (0, 4, 8), (5, 17)])
@pytest.mark.parametrize("with_residual", [True, False])
def test_gradients_against_those_of_the_formula(shape, with_residual) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(shape), torch.randn(shape), torch.randn(shape[-1])]
    found = []
    for dtype in (torch.float32, torch.float64):
        hidden, residual, weight = (t.clone().to(dtype).requires_grad_() for t in tensors)
        if dtype == torch.float32:
            normed, total = add_rms_norm(hidden, residual if with_residual else None, weight, 1e-2)
        else:
            total = hidden + residual if with_residual else hidden
            normed = total / (total.square().mean(-1, keepdim=True) + 1e-2).sqrt() * weight
        (normed.square() + normed).sum().backward(retain_graph=True)
        total.square().sum().backward()
        found.append([normed, hidden.grad, weight.grad, *([residual.grad] if with_residual else [])])
    for got, exact in zip(*found, strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)


def test_half_precision_and_frozen_weights_have_gradients_of_their_dtypes(backend) -> None:
    hidden = torch.randn(2, 3, 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(8, dtype=torch.bfloat16, requires_grad=True)
    normed, _ = add_rms_norm(hidden, None, weight, 1e-5)
    normed.sum().backward()
    assert (hidden.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.bfloat16)
    add_rms_norm(hidden, None, weight.detach(), 1e-5)[0].sum().backward()


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
