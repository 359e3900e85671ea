import pytest
import torch

from lightning_modules.ops import bidirectional_scan, selective_scan, use_backend


@pytest.fixture(params=["numba", "reference"])
def backend(request):
    with use_backend(request.param):
        yield request.param


def _inputs(length: int = 12, channels: int = 6, state: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    u, delta, z = torch.randn(3, 2, length, channels, generator=generator)
    B, C = torch.randn(2, 2, length, state, generator=generator)
    A = -torch.rand(channels, state, generator=generator)
    D, delta_bias = torch.randn(2, channels, generator=generator)
    return {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}


def _both(inputs: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> torch.Tensor:
    names = ("u", "delta", "A", "B", "C", "D")
    biases = {"delta_bias": inputs["delta_bias"], "delta_bias_b": other["delta_bias"]}
    return bidirectional_scan(*(inputs[n] for n in names), *(other[n] for n in names), z=inputs["z"], **biases)


def test_reverse_is_flipping_inputs_and_result(backend: str) -> None:
    inputs = _inputs()
    turned = {name: t.flip(1) if t.dim() == 3 else t for name, t in inputs.items()}
    y = selective_scan(**inputs, delta_softplus=True, reverse=True)
    torch.testing.assert_close(y, selective_scan(**turned, delta_softplus=True).flip(1), rtol=1e-6, atol=1e-6)


def test_both_directions_are_the_sum_of_two_scans_under_one_gate(backend: str) -> None:
    inputs, other = _inputs(), _inputs(seed=1)
    z = inputs["z"]
    one = selective_scan(**{**inputs, "z": None}, delta_softplus=True)
    two = selective_scan(**{**other, "z": None}, delta_softplus=True, reverse=True)
    torch.testing.assert_close(_both(inputs, other), (one + two) * torch.nn.functional.silu(z), rtol=1e-5, atol=1e-5)


def test_empty_batch_and_empty_sequence(backend: str) -> None:
    inputs = {name: t[:0] if t.dim() == 3 else t for name, t in _inputs().items()}
    assert selective_scan(**inputs).shape == (0, 12, 6)
    inputs = {name: t[:, :0] if t.dim() == 3 else t for name, t in _inputs().items()}
    assert selective_scan(**inputs).shape == (2, 0, 6)


@pytest.mark.parametrize(("batch", "length"), [(2, 0), (0, 12), (0, 0)])
def test_of_nothing_all_gradients_are_zero(backend: str, batch: int, length: int) -> None:
    one, two = (
        {k: (t[:batch, :length] if t.dim() == 3 else t).requires_grad_() for k, t in _inputs(seed=seed).items()}
        for seed in (0, 1)
    )
    bare = {name: one[name] for name in ("u", "delta", "A", "B", "C")}
    for inputs, run in (
        (one, lambda: selective_scan(**one, delta_softplus=True)),
        (bare, lambda: selective_scan(**bare, reverse=True)),
        (one | {f"{k}_b": t for k, t in two.items() if k != "z"}, lambda: _both(one, two)),
    ):
        y = run()
        assert y.shape == one["u"].shape
        for name, gradient in zip(inputs, torch.autograd.grad(y.sum(), inputs.values()), strict=True):
            assert gradient.shape == inputs[name].shape and not gradient.any(), name


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("u", (12, 6), r"u has shape \(12, 6\); pass \(batch, length, channels\)"),
        ("delta", (2, 11, 6), r"delta has shape \(2, 11, 6\).*\(2, 12, 6\)"),
        ("A", (6,), r"A has shape \(6,\); pass \(channels, state\)"),
        ("A", (5, 4), r"A has shape \(5, 4\).*\(6, 4\)"),
        ("B", (2, 12, 3), r"B has shape \(2, 12, 3\).*\(2, 12, 4\)"),
        ("C", (2, 4, 12), r"C has shape \(2, 4, 12\)"),
        ("D", (1,), r"D has shape \(1,\).*\(6,\)"),
        ("z", (2, 12, 5), r"z has shape \(2, 12, 5\)"),
        ("delta_bias", (6, 1), r"delta_bias has shape \(6, 1\)"),
    ],
)
def test_a_wrong_shape_is_named(backend: str, name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selective_scan(**{**_inputs(), name: torch.zeros(shape)})


def test_other_dtypes_and_devices_are_named() -> None:
    one, other = _inputs(), {f"{name}_b": tensor for name, tensor in _inputs().items() if name != "z"}
    with pytest.raises(ValueError, match=r"delta_b is torch.float16 on cpu and delta torch.float32 on cpu; give both"):
        bidirectional_scan(**one, **other | {"delta_b": other["delta_b"].half()})
    with pytest.raises(ValueError, match=r"A is on meta and u on cpu; move one of them"):
        selective_scan(**one | {"A": one["A"].to("meta")})


def test_a_wrong_shape_of_the_second_direction_is_named() -> None:
    with pytest.raises(ValueError, match=r"B_b has shape"):
        _both(_inputs(), {**_inputs(), "B": torch.zeros(2, 12, 3)})
    with pytest.raises(ValueError, match=r"u_b has shape"):
        _both(_inputs(), {**_inputs(), "u": torch.zeros(2, 11, 6)})


def test_compiles_without_a_graph_break(backend: str) -> None:
    inputs, other = ({k: v.requires_grad_() for k, v in _inputs(length=5, seed=s).items()} for s in (0, 1))

    def step(function) -> list[torch.Tensor]:
        leaves = [*inputs.values(), *(v for k, v in other.items() if k != "z")]
        y = function(inputs, other)
        return [y, *torch.autograd.grad(y.square().sum(), leaves)]

    torch._dynamo.reset()
    compiled = torch.compile(lambda a, b: _both(a, b).mul(2).div(2), fullgraph=True, backend="aot_eager")
    for got, expected in zip(step(compiled), step(_both), strict=True):
        torch.testing.assert_close(got, expected)


class _Scan(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        inputs = _inputs()
        self.A = torch.nn.Parameter(inputs["A"])
        self.D = torch.nn.Parameter(inputs["D"])

    def forward(self, u, delta, B, C, z):
        return selective_scan(u, delta, self.A, B, C, self.D, z, delta_softplus=True, reverse=True)


@pytest.mark.parametrize("strict", [False, True])
def test_exports_with_any_batch_and_length(strict: bool) -> None:
    names = ("u", "delta", "B", "C", "z")
    inputs, longer = _inputs(), _inputs(length=31)
    dims = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=2)}
    with use_backend("numba"):
        program = torch.export.export(
            _Scan().eval(), tuple(inputs[n] for n in names), dynamic_shapes=(dims,) * 5, strict=strict
        )
    scans = [node for node in program.graph.nodes if "numba_selective_scan" in str(node.target)]
    assert len(scans) == 1
    arguments = tuple(longer[n][:1] for n in names)
    torch.testing.assert_close(program.module()(*arguments), _Scan()(*arguments))


def test_autocast_gives_the_dtype_of_u(backend: str) -> None:
    inputs = _inputs()
    exact = selective_scan(**inputs, delta_softplus=True)
    low = {name: inputs[name].bfloat16() for name in ("u", "delta", "B", "C", "z")}
    leaf = low["u"].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        full = selective_scan(**inputs, delta_softplus=True)
        y = selective_scan(**{**inputs, **low}, delta_softplus=True)
    torch.testing.assert_close(full, exact, rtol=1e-6, atol=1e-6)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.05)
    assert torch.autograd.grad(y.sum(), leaf)[0].dtype == torch.bfloat16


def test_inference_mode_and_meta_device(backend: str) -> None:
    inputs = _inputs()
    with torch.inference_mode():
        y = selective_scan(**inputs, delta_softplus=True)
    assert y.is_inference()
    torch.testing.assert_close(y, selective_scan(**inputs, delta_softplus=True))
    assert selective_scan(**{name: t.to("meta") for name, t in inputs.items()}).device.type == "meta"
