import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.ops import Linear, dense, linear


@pytest.fixture(params=["AuthenticAMD", "GenuineIntel"])
def maker(request, monkeypatch) -> str:
    """Both ways, whatever CPU the tests run on."""
    monkeypatch.setattr(dense, "_maker", lambda: request.param)
    dense._onednn_is_faster.cache_clear()
    yield request.param
    dense._onednn_is_faster.cache_clear()


def _exact(x, weight, bias):
    y = torch.einsum("...i,oi->...o", x.double(), weight.double())
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize("shape", [(5,), (0, 5), (3, 0, 5), (7, 5), (2, 7, 5), (2, 3, 4, 5), (1, 1569, 5)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_is_a_matrix_product(maker: str, shape: tuple[int, ...], with_bias: bool) -> None:
    x, weight, bias = torch.randn(shape), torch.randn(9, 5), torch.randn(9) if with_bias else None
    with torch.inference_mode():
        y = linear(x, weight, bias)
    torch.testing.assert_close(y.double(), _exact(x, weight, bias), rtol=1e-5, atol=1e-5)


def test_slices_and_transposes(maker: str) -> None:
    wide, weight = torch.randn(2, 20, 7), torch.randn(5, 9).t()
    with torch.no_grad():
        for x in (wide.transpose(1, 2)[..., 3:8], wide[:, :5, :1].transpose(1, 2).expand(2, 7, 5)):
            torch.testing.assert_close(linear(x, weight).double(), _exact(x, weight, None), rtol=1e-5, atol=1e-5)


def test_gradients_and_other_dtypes_go_through_torch(maker: str) -> None:
    layer, plain = Linear(5, 3), nn.Linear(5, 3)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(4, 5)
    layer(x).square().sum().backward()
    plain(x).square().sum().backward()
    assert torch.equal(layer.weight.grad, plain.weight.grad)
    assert torch.equal(layer.double()(x.double()), plain.double()(x.double()))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer.float()(x).dtype == torch.bfloat16


def test_operations_are_counted(maker: str) -> None:
    layer, x = Linear(5, 9), torch.randn(2, 7, 5)
    with torch.inference_mode():
        layer(x)  # the first call tries oneDNN out
        with FlopCounterMode(display=False) as counter:
            layer(x)
    assert counter.get_total_flops() == 2 * 2 * 7 * 5 * 9


def test_compiles_without_a_break(maker: str) -> None:
    layer = Linear(5, 9)
    x = torch.randn(7, 5)
    with torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), layer(x))
