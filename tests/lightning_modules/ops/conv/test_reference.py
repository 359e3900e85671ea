import pytest
import torch
from torch.nn import functional as F

from lightning_modules.ops import bidirectional_conv1d, causal_conv1d, use_backend


@pytest.fixture(autouse=True)
def _reference():
    with use_backend("reference"):
        yield


def _torch_conv(x, weight, bias=None, activation=None, reverse=False):
    """torch's convolution with zeros before the first token, on flipped copies where it has to look ahead."""
    x = x.flip(1) if reverse else x
    padded = F.pad(x.transpose(1, 2), (weight.shape[-1] - 1, 0))
    y = F.conv1d(padded, weight.view(weight.shape[0], 1, -1), bias, groups=weight.shape[0]).transpose(1, 2)
    y = F.silu(y) if activation else y
    return y.flip(1) if reverse else y


@pytest.mark.parametrize("width", [1, 2, 4, 7])
@pytest.mark.parametrize("length", [1, 3, 20])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("reverse", [False, True])
def test_against_torch(width: int, length: int, activation: str | None, reverse: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, length, 5, dtype=torch.float64), torch.randn(5, 1, width, dtype=torch.float64)
    bias = torch.randn(5, dtype=torch.float64)
    for given in (bias, None):
        y = causal_conv1d(x, weight, given, activation, reverse)
        torch.testing.assert_close(y, _torch_conv(x, weight, given, activation, reverse), rtol=1e-12, atol=1e-12)


def test_an_impulse_spreads_to_the_right_side() -> None:
    x = torch.zeros(1, 7, 1)
    x[0, 3] = 1
    weight = torch.tensor([[1.0, 2.0, 3.0]])
    assert causal_conv1d(x, weight).flatten().tolist() == [0, 0, 0, 3, 2, 1, 0]
    assert causal_conv1d(x, weight, reverse=True).flatten().tolist() == [0, 1, 2, 3, 0, 0, 0]


def test_both_directions() -> None:
    x, weight, weight_b, bias, bias_b = torch.randn(2, 9, 5), torch.randn(5, 4), torch.randn(5, 4), *torch.randn(2, 5)
    y, y_b = bidirectional_conv1d(x, weight, bias, weight_b, bias_b)
    torch.testing.assert_close(y, _torch_conv(x, weight, bias, "silu"))
    torch.testing.assert_close(y_b, _torch_conv(x, weight_b, bias_b, "silu", reverse=True))


def test_gradcheck() -> None:
    torch.manual_seed(0)
    inputs = tuple(torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in ((2, 5, 3), (3, 4), (3,)))
    assert torch.autograd.gradcheck(lambda x, w, b: causal_conv1d(x, w, b, "silu", reverse=True), inputs)
