import numpy as np
import pytest
import torch

from lightning_modules.ops import bidirectional_scan, selective_scan, use_backend


@pytest.fixture(autouse=True)
def _reference():
    with use_backend("reference"):
        yield


def _naive(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, reverse=False) -> np.ndarray:
    """The recurrence with one scalar at a time, in float64."""
    batch, length, channels = u.shape
    y = np.zeros(u.shape)
    for b in range(batch):
        for c in range(channels):
            h = [0.0] * A.shape[1]
            for t in range(length)[::-1] if reverse else range(length):
                dt = delta[b, t, c] + (0.0 if delta_bias is None else delta_bias[c])
                dt = np.log1p(np.exp(dt)) if delta_softplus else dt
                for n in range(A.shape[1]):
                    h[n] = np.exp(dt * A[c, n]) * h[n] + dt * B[b, t, n] * u[b, t, c]
                    y[b, t, c] += C[b, t, n] * h[n]
                y[b, t, c] += 0.0 if D is None else D[c] * u[b, t, c]
                y[b, t, c] *= 1.0 if z is None else z[b, t, c] / (1 + np.exp(-z[b, t, c]))
    return y


def _inputs(seed: int, batch: int = 2, length: int = 7, channels: int = 3, state: int = 4) -> dict[str, torch.Tensor]:
    random = np.random.default_rng(seed)
    shapes = {"u": (batch, length, channels), "delta": (batch, length, channels), "A": (channels, state)}
    shapes |= {"B": (batch, length, state), "C": (batch, length, state), "D": (channels,)}
    shapes |= {"z": (batch, length, channels), "delta_bias": (channels,)}
    inputs = {name: torch.from_numpy(random.standard_normal(shape)) for name, shape in shapes.items()}
    return inputs | {"A": -inputs["A"].abs()}


@pytest.mark.parametrize("optional", [(), ("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
@pytest.mark.parametrize("delta_softplus", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_against_one_scalar_at_a_time(optional: tuple[str, ...], delta_softplus: bool, reverse: bool) -> None:
    inputs = {k: v for k, v in _inputs(0).items() if k in ("u", "delta", "A", "B", "C", *optional)}
    y = selective_scan(**inputs, delta_softplus=delta_softplus, reverse=reverse)
    expected = _naive(**{k: v.numpy() for k, v in inputs.items()}, delta_softplus=delta_softplus, reverse=reverse)
    assert y.dtype == torch.float64
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_both_directions_share_one_gate() -> None:
    one, two = _inputs(1), _inputs(2)
    z = one.pop("z")
    two.pop("z")
    numpy = [{k: v.numpy() for k, v in inputs.items()} for inputs in (one, two)]
    both = _naive(**numpy[0], delta_softplus=True) + _naive(**numpy[1], delta_softplus=True, reverse=True)
    biases = {"delta_bias": one.pop("delta_bias"), "delta_bias_b": two.pop("delta_bias")}
    y = bidirectional_scan(*one.values(), *two.values(), z=z, **biases)  # u, delta, A, B, C, D in this order
    np.testing.assert_allclose(y.numpy(), both * torch.nn.functional.silu(z).numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("delta_softplus", [False, True])
def test_gradcheck(delta_softplus: bool) -> None:
    inputs = {k: v.requires_grad_() for k, v in _inputs(3, length=4, channels=2, state=3).items()}

    def scan(*tensors):
        return selective_scan(*tensors, delta_softplus=delta_softplus, reverse=True)

    assert torch.autograd.gradcheck(scan, tuple(inputs.values()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_keep_a_float32_state(dtype: torch.dtype) -> None:
    inputs = {k: v.to(dtype) for k, v in _inputs(4, length=200).items()}
    y = selective_scan(**inputs, delta_softplus=True)
    exact = selective_scan(**{k: v.double() for k, v in inputs.items()}, delta_softplus=True)
    assert y.dtype == dtype
    torch.testing.assert_close(y, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("length", [1, 7, 64, 129])
def test_golden_outputs_and_gradients(golden, backend: str, length: int) -> None:
    """Tensors of the official implementation; there they are (batch, channels, length)."""
    tensors, _ = golden("selective_scan")
    prefix = f"L{length}."
    turn = {"u", "delta", "B", "C", "z"}
    cases = sorted({key.split(".")[1] for key in tensors if key.startswith(prefix) and key.endswith(".out")})
    assert len(cases) == 16
    for case in cases:
        used = {flag[:-1]: flag.endswith("1") for flag in case.split("_")}

        def given(name, used=used):
            key = "delta_positive" if name == "delta" and not used["softplus"] else name
            tensor = tensors[prefix + key]
            return (tensor.transpose(1, 2) if name in turn else tensor).detach().requires_grad_()

        names = ["u", "delta", "A", "B", "C"]
        names += [name for name, flag in (("D", "D"), ("z", "z"), ("delta_bias", "bias")) if used[flag]]
        inputs = {name: given(name) for name in names}
        with use_backend(backend):
            y = selective_scan(**inputs, delta_softplus=used["softplus"])
        gradients = torch.autograd.grad((y * tensors[prefix + "grad_output"].transpose(1, 2)).sum(), inputs.values())
        got = {"out": y} | {f"grad_{name}": gradient for name, gradient in zip(names, gradients, strict=True)}
        for name, tensor in got.items():
            expected = tensors[f"{prefix}{case}.{name}"]
            if name == "out" or name.removeprefix("grad_") in turn:
                expected = expected.transpose(1, 2)
            torch.testing.assert_close(
                tensor, expected, rtol=1e-4, atol=1e-5, msg=lambda text, case=case, name=name: f"{case} {name}: {text}"
            )
