import numpy as np
import pytest

from lightning_modules.ops import simd


@simd.kernel
def _apply(function, x, y, count):
    for at in range(0, count * 4, 64):
        value = simd.load(x + at)
        if function == 0:
            value = simd.exp2(value)
        elif function == 1:
            value = simd.softplus(value)
        elif function == 3:
            value = simd.softplus_and_slope(value)[1]
        else:
            value = simd.sigmoid(value)
        simd.store(y + at, value)


@simd.kernel
def _copy_first(source, target, count):
    simd.store_first(target, simd.load_first(source, count) + simd.splat_at(source), count)


def _evaluate(name: str, x: np.ndarray) -> np.ndarray:
    padded = np.zeros(-(-x.size // 16) * 16, dtype=np.float32)
    padded[: x.size] = x
    result = np.empty_like(padded)
    _apply(("exp2", "softplus", "sigmoid", "slope").index(name), padded.ctypes.data, result.ctypes.data, padded.size)
    return result[: x.size]


_DEFINITIONS = {
    "exp2": np.exp2,
    "softplus": lambda x: np.logaddexp(0, x),
    "sigmoid": lambda x: np.exp(-np.logaddexp(0, -x)),
    "slope": lambda x: np.exp(-np.logaddexp(0, -x)),  # of softplus
}


@pytest.mark.parametrize(
    ("name", "lowest", "limit"),
    # softplus and sigmoid multiply by log2(e) first, whose rounding grows with the argument
    [
        ("exp2", -120, 2e-7),
        ("softplus", -10, 8e-7),
        ("softplus", -80, 5e-6),
        ("sigmoid", -10, 8e-7),
        ("sigmoid", -80, 5e-6),
        ("slope", -10, 8e-7),
        ("slope", -80, 5e-6),
    ],
)
def test_relative_error(name: str, lowest: int, limit: float) -> None:
    x = np.concatenate([np.linspace(lowest, 80, 200_003), np.linspace(-1, 1, 200_003), np.geomspace(1e-30, 1, 999)])
    x = x.astype(np.float32)
    exact = _DEFINITIONS[name](x.astype(np.float64))
    assert np.max(np.abs(_evaluate(name, x) / exact - 1)) < limit


def test_exp2_at_special_values() -> None:
    x = np.array([0.0, -0.0, 1.0, -3.0, 127.0, 128.0, 1e30, np.inf, -1e30, -np.inf, np.nan], dtype=np.float32)
    y = _evaluate("exp2", x)
    np.testing.assert_array_equal(y[:8], [1, 1, 2, 0.125, 2.0**127, np.inf, np.inf, np.inf])
    assert 0 <= y[8] <= 2.0**-126
    assert 0 <= y[9] <= 2.0**-126
    assert np.isnan(y[10])


def test_softplus_and_sigmoid_at_special_values() -> None:
    x = np.array([np.inf, -np.inf, 1e30, -1e30, np.nan], dtype=np.float32)
    softplus = _evaluate("softplus", x)
    np.testing.assert_allclose(softplus[:4], [np.inf, 0, 1e30, 0], atol=1e-37)
    assert np.isnan(softplus[4])
    for name in ("sigmoid", "slope"):
        y = _evaluate(name, x)
        np.testing.assert_allclose(y[:4], [1, 0, 1, 0], atol=1e-37)
        assert np.isnan(y[4])


@pytest.mark.parametrize("count", [1, 5, 15])
def test_partial_vectors_leave_the_rest_alone(count: int) -> None:
    source = np.arange(1, 17, dtype=np.float32)
    target = np.full(16, -7, dtype=np.float32)
    _copy_first(source.ctypes.data, target.ctypes.data, count)
    np.testing.assert_array_equal(target[:count], source[:count] + 1)
    np.testing.assert_array_equal(target[count:], -7)


@simd.kernel
def _add_up(source, target):
    simd.store_totals(target + 4, *simd.load_four(source))


def test_totals_of_four_vectors() -> None:
    source = np.random.default_rng(0).integers(-99, 99, (4, 16)).astype(np.float32)
    target = np.full(6, -7, dtype=np.float32)
    _add_up(source.ctypes.data, target.ctypes.data)
    np.testing.assert_array_equal(target, [-7, *source.sum(axis=1), -7])
