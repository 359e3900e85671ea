"""The portable backend inside `torch.export`: the numbers of the reference, in a program of standard operators."""

import pytest
import torch
from torch import nn

from lightning_modules.ops import bidirectional_scan, selective_scan, use_backend, why_not
from lightning_modules.ops.backend import BackendError
from lightning_modules.ops.scan.portable import _softplus

BATCH, LENGTH, CHANNELS, STATES = 2, 9, 3, 4


def inputs(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"u": (BATCH, LENGTH, CHANNELS), "delta": (BATCH, LENGTH, CHANNELS), "A": (CHANNELS, STATES),
              "B": (BATCH, LENGTH, STATES), "C": (BATCH, LENGTH, STATES), "D": (CHANNELS,)}  # fmt: skip
    found = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return found | {"A": -found["A"].abs()}


class OneWay(nn.Module):
    def __init__(self, reverse):
        super().__init__()
        self.reverse = reverse

    def forward(self, u, delta, A, B, C, D):
        return selective_scan(u, delta, A, B, C, D, reverse=self.reverse)


class BothWays(nn.Module):
    def forward(self, z, bias, *tensors):
        return bidirectional_scan(*tensors, z=z, delta_bias=bias, delta_bias_b=bias + 1)


def exported(module, given):
    with torch.no_grad(), use_backend("portable"):
        return torch.export.export(module, given, strict=False)


def check(module, given):
    program = exported(module, given)
    names = {getattr(node.target, "namespace", None) for node in program.graph.nodes if node.op == "call_function"}
    assert names - {None} == {"aten", "higher_order"}
    with use_backend("reference"):
        expected = module(*given)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(*given), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_one_direction(reverse):
    check(OneWay(reverse), tuple(inputs(0).values()))


def test_both_directions_with_a_gate():
    z, bias = torch.randn(BATCH, LENGTH, CHANNELS), torch.randn(CHANNELS)
    check(BothWays(), (z, bias, *inputs(1).values(), *inputs(2).values()))


def test_softplus_is_accurate_everywhere():
    x = torch.cat([torch.linspace(-100, 100, 4001), torch.tensor([-17.5, -16.6, -0.0, 0.0])])
    exact = x.double().clamp_min(0) + torch.log1p(torch.exp(-x.double().abs()))
    assert ((_softplus(x).double() - exact).abs() <= 3e-7 * exact + 1e-43).all()


def test_it_runs_in_an_export_only():
    assert "torch.export" in why_not("portable")
    with use_backend("portable"), pytest.raises(BackendError, match="is for torch"):
        selective_scan(**inputs(0))
