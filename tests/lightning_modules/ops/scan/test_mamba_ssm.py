"""The published CUDA packages against the definition, where they are installed and a GPU is at hand."""

import pytest
import torch

from lightning_modules.ops import bidirectional_conv1d, bidirectional_scan, selective_scan, use_backend, why_not

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or why_not("mamba_ssm", "cuda") is not None,
    reason="needs a GPU and the packages mamba-ssm and causal-conv1d",
)


def _direction() -> list[torch.Tensor]:
    u, delta, B, C = torch.randn(2, 70, 24), torch.randn(2, 70, 24) - 2, *torch.randn(2, 2, 70, 16)
    return [u, delta, -8 * torch.rand(24, 16), B, C, torch.randn(24)]


def _compare(function, inputs: list[torch.Tensor]) -> None:
    results = []
    for backend in ("mamba_ssm", "reference"):
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        with use_backend(backend):
            y = function(*leaves)
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.fixture(autouse=True)
def _on_the_gpu():
    torch.manual_seed(0)
    with torch.device("cuda"):
        yield


@pytest.mark.parametrize("reverse", [False, True])
def test_one_direction(reverse: bool) -> None:
    z, bias = torch.randn(2, 70, 24), torch.randn(24)
    _compare(
        lambda *a: selective_scan(*a[:6], z=a[6], delta_bias=a[7], delta_softplus=True, reverse=reverse),
        [*_direction(), z, bias],
    )


def test_both_directions() -> None:
    z = torch.randn(2, 70, 24)
    _compare(lambda *a: bidirectional_scan(*a[:12], z=a[12]), [*_direction(), *_direction(), z])


def test_convolutions() -> None:
    inputs = [torch.randn(2, 70, 24), torch.randn(24, 4), torch.randn(24), torch.randn(24, 4), torch.randn(24)]
    _compare(lambda *a: sum(bidirectional_conv1d(*a)), inputs)
