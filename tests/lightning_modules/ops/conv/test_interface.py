import pytest
import torch

from lightning_modules.ops import bidirectional_conv1d, causal_conv1d, use_backend


@pytest.fixture(params=["numba", "reference"])
def backend(request):
    with use_backend(request.param):
        yield request.param


def test_reverse_is_flipping_input_and_result(backend: str) -> None:
    x, weight, bias = torch.randn(2, 9, 5), torch.randn(5, 1, 4), torch.randn(5)
    y = causal_conv1d(x, weight, bias, "silu", reverse=True)
    torch.testing.assert_close(y, causal_conv1d(x.flip(1), weight, bias, "silu").flip(1))


def test_both_directions_are_two_convolutions(backend: str) -> None:
    x, weights, biases = torch.randn(2, 9, 5), torch.randn(2, 5, 1, 4), torch.randn(2, 5)
    y, y_b = bidirectional_conv1d(x, weights[0], biases[0], weights[1], biases[1])
    torch.testing.assert_close(y, causal_conv1d(x, weights[0], biases[0], "silu"))
    torch.testing.assert_close(y_b, causal_conv1d(x, weights[1], biases[1], "silu", reverse=True))


def test_empty_batch(backend: str) -> None:
    assert causal_conv1d(torch.zeros(0, 9, 5), torch.randn(5, 4)).shape == (0, 9, 5)


@pytest.mark.parametrize("shape", [(2, 0, 5), (0, 9, 5)])
def test_of_nothing_all_gradients_are_zero(backend: str, shape: tuple[int, ...]) -> None:
    inputs = [torch.randn(*s).requires_grad_() for s in (shape, (5, 4), (5,), (5, 4), (5,))]
    for used, run in ((3, lambda *t: causal_conv1d(*t, "silu")), (5, lambda *t: sum(bidirectional_conv1d(*t)))):
        y = run(*inputs[:used])
        assert y.shape == shape
        for tensor, gradient in zip(inputs, torch.autograd.grad(y.sum(), inputs[:used]), strict=False):
            assert gradient.shape == tensor.shape and not gradient.any()


def test_wrong_arguments_are_named() -> None:
    x, weight = torch.zeros(2, 9, 5), torch.zeros(5, 4)
    with pytest.raises(ValueError, match=r"x has shape \(9, 5\)"):
        causal_conv1d(x[0], weight)
    with pytest.raises(ValueError, match=r"weight has shape \(4, 5\); with 5 channels it has to be \(5, width\)"):
        causal_conv1d(x, weight.T)
    with pytest.raises(ValueError, match=r"bias has shape \(1,\); it has to be \(5,\)"):
        causal_conv1d(x, weight, torch.zeros(1))
    with pytest.raises(ValueError, match=r"bias_b has shape"):
        bidirectional_conv1d(x, weight, None, weight, torch.zeros(1))
    with pytest.raises(ValueError, match=r"weight_b has shape \(5, 3\); it has to be weight's \(5, 4\)"):
        bidirectional_conv1d(x, weight, None, weight[:, :3], None)
    with pytest.raises(ValueError, match="activation is 'gelu'; choose None or 'silu'"):
        causal_conv1d(x, weight, activation="gelu")


def test_compiles_without_a_graph_break(backend: str) -> None:
    x = torch.randn(2, 9, 5).requires_grad_()
    weights = torch.randn(2, 5, 4).requires_grad_()

    def step(x, weights):
        y, y_b = bidirectional_conv1d(x, weights[0], None, weights[1], None)
        return causal_conv1d(y + y_b, weights[0], activation="silu")

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for got, expected in zip(
        torch.autograd.grad(compiled(x, weights).sum(), (x, weights)),
        torch.autograd.grad(step(x, weights).sum(), (x, weights)),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


def test_autocast_and_inference_mode(backend: str) -> None:
    x, weight = torch.randn(2, 9, 5), torch.randn(5, 4)
    y = causal_conv1d(x, weight, activation="silu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(causal_conv1d(x, weight, activation="silu"), y)
        assert causal_conv1d(x.bfloat16(), weight, activation="silu").dtype == torch.bfloat16
    with torch.inference_mode():
        assert torch.equal(causal_conv1d(x, weight, activation="silu"), y)
