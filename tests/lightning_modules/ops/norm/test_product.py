"""What a norm with a product keeps for its backward pass, and that it changes no digit of a result or of a gradient."""

from functools import partial

import pytest
import torch

from lightning_modules.ops import add_rms_norm, use_backend
from lightning_modules.ops.norm.product import normed_product

EPS = 1e-5
_equal = partial(torch.testing.assert_close, rtol=0, atol=0)


def _inputs(device: str = "cpu", tokens: int = 70, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {"hidden": (2, tokens, 24), "residual": (2, tokens, 24), "norm": (24,), "weight": (40, 24)}
    dtypes = {"residual": torch.float32}
    return {name: torch.randn(shape).to(device, dtypes.get(name, dtype)) for name, shape in shapes.items()}


def _product(given, again, first=False) -> tuple[torch.Tensor, torch.Tensor]:
    """The product and the sum."""
    hidden = given["hidden"] * 1
    normed, total = add_rms_norm(hidden, None if first else given["residual"], given["norm"], EPS)
    if again:
        return normed_product(normed, total, given["norm"], EPS, given["weight"]), total
    return torch.nn.functional.linear(normed, given["weight"]), total


def _results(inputs, again, frozen=(), first=False, autocast=False) -> list[torch.Tensor | None]:
    """The product, the sum, and the gradients of what is not frozen."""
    given = {name: tensor.detach().requires_grad_(name not in frozen) for name, tensor in inputs.items()}
    with torch.autocast(given["hidden"].device.type, torch.bfloat16, enabled=autocast):
        product, total = _product(given, again, first)
    if product.requires_grad or total.requires_grad:
        (product.float().square().sum() + (total * 3).sum()).backward()
    return [product.detach(), total.detach(), *(tensor.grad for tensor in given.values())]


CASES = {
    "plain": {},
    "first": {"first": True},
    "frozen input": {"frozen": ("hidden", "residual")},
    "frozen norm": {"frozen": ("norm",)},
    "frozen weight": {"frozen": ("weight",)},
    "all but the weight": {"frozen": ("hidden", "residual", "norm")},
    "all": {"frozen": ("hidden", "residual", "norm", "weight")},
    "autocast": {"autocast": True},
}


@pytest.mark.usefixtures("own_products")
@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_last_bit(backend, case) -> None:
    with use_backend(backend):
        _equal(*(_results(_inputs(), again, **CASES[case]) for again in (True, False)))


@pytest.mark.parametrize("case", ["plain", "first", "autocast"])
def test_equal_on_triton(triton_device, case) -> None:
    pytest.importorskip("triton")
    with use_backend("triton"):
        _equal(*(_results(_inputs(triton_device, 5), again, **CASES[case]) for again in (True, False)))


def test_other_precisions() -> None:
    with use_backend("reference"):
        _equal(*(_results(_inputs(dtype=torch.float64), again) for again in (True, False)))


def test_what_is_kept_is_the_sum() -> None:
    given = {name: tensor.requires_grad_() for name, tensor in _inputs().items()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()) or tensor, lambda t: t):
        normed, total = add_rms_norm(given["hidden"], given["residual"], given["norm"], EPS)
        product = normed_product(normed, total, given["norm"], EPS, given["weight"])
    assert product.requires_grad and total.data_ptr() in kept and normed.data_ptr() not in kept


@pytest.mark.usefixtures("own_products")
def test_the_backward_runs_as_the_forward_did() -> None:
    half, full = torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False)

    def gradients(again: bool, before, during) -> list[torch.Tensor]:
        given = {name: tensor.requires_grad_() for name, tensor in _inputs().items()}
        with before:
            product, _ = _product(given, again)
        with during:
            product.float().square().sum().backward()
        return [tensor.grad for tensor in given.values()]

    with use_backend("reference"):
        _equal(gradients(True, half, full), gradients(False, half, full))
        plain = gradients(False, full, full)
        _equal(gradients(True, full, half), plain)
        _equal(gradients(True, full, use_backend("numba")), plain)
