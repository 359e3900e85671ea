"""The numba backend's compiled loops: the depthwise convolution of a stretch of rows, in one or both directions.

Sixteen channels ride in the lanes of one vector. All memory is named by byte addresses (of row 0) and byte strides
between rows (tokens). 0 as the address of a result or its gradient leaves that direction out.

Legend: "taps layout" is (groups of sixteen channels, width + 1, 16), zeros behind the last channel: the weights of the
rows from the earliest to the latest (the direction that looks to the future has its weight mirrored), then the bias.
"""

from numba import njit

from lightning_modules.ops.memory import FLOAT_BYTES
from lightning_modules.ops.simd import (
    LANES,
    ONE,
    VECTOR_BYTES,
    ZERO,
    fma,
    kernel,
    least,
    load,
    load_first,
    load_numbers,
    most,
    prefetch,
    sigmoid,
    splat,
    store,
    store_first,
    store_numbers,
)

__all__ = ["conv_backward", "conv_forward"]


@kernel
def conv_forward(x, x_row, taps, y, taps_b, y_b, y_row, size, silu, width, start, stop, length, channels):
    """y and y_b in rows start to stop (not included). Numbers of x, y and y_b have `size` bytes, see `load_numbers`."""
    vector = LANES * size
    for group in range((channels + LANES - 1) // LANES):
        count = least(LANES, channels - group * LANES)
        here = group * vector
        of_group = group * (width + 1) * VECTOR_BYTES
        for t in range(start, stop):
            # The next group's lines: CPUs foresee steps inside a page only.
            prefetch(x + here + vector + t * x_row)
            if y:
                prefetch(y + here + vector + t * y_row)
                out = _causal(taps + of_group, x + here, x_row, size, t, width, count)
                if silu:
                    out = out * sigmoid(out)
                store_numbers(y + here + t * y_row, out, count, size)
            if y_b:
                prefetch(y_b + here + vector + t * y_row)
                out = _future(taps_b + of_group, x + here, x_row, size, t, width, length, count)
                if silu:
                    out = out * sigmoid(out)
                store_numbers(y_b + here + t * y_row, out, count, size)


@kernel
def conv_backward(
    x, x_row, taps, grad, grad_row, taps_b, grad_b, grad_b_row, silu, grad_x, grad_x_row, grad_taps, grad_taps_b,
    scratch, width, start, stop, length, channels,
):  # fmt: skip
    """grad_x in rows start to stop, and what the results of these rows add to grad_taps and grad_taps_b (taps layout).

    The width - 1 rows before and behind use x of these rows too: their gradients before the SiLU are computed again.
    scratch has room for 2 (stop - start + 2 (width - 1)) vectors.
    """
    low = most(0, start - width + 1)
    high = least(length, stop + width - 1)
    inner = scratch - low * VECTOR_BYTES
    inner_b = inner + (high - low) * VECTOR_BYTES
    for group in range((channels + LANES - 1) // LANES):
        count = least(LANES, channels - group * LANES)
        here = group * VECTOR_BYTES
        of_group = group * (width + 1) * VECTOR_BYTES
        if grad:
            for t in range(start, high):
                g = load_first(grad + here + t * grad_row, count)
                if silu:
                    g = g * _silu_slope(_causal(taps + of_group, x + here, x_row, FLOAT_BYTES, t, width, count))
                store(inner + t * VECTOR_BYTES, g)
            for t in range(start, stop):
                g = load(inner + t * VECTOR_BYTES)
                for k in range(most(0, width - 1 - t), width):
                    row = x + here + (t + k - width + 1) * x_row
                    _add_to(grad_taps + of_group + k * VECTOR_BYTES, g * load_first(row, count))
                _add_to(grad_taps + of_group + width * VECTOR_BYTES, g)
        if grad_b:
            for t in range(low, stop):
                g = load_first(grad_b + here + t * grad_b_row, count)
                if silu:
                    g = g * _silu_slope(
                        _future(taps_b + of_group, x + here, x_row, FLOAT_BYTES, t, width, length, count)
                    )
                store(inner_b + t * VECTOR_BYTES, g)
            for t in range(start, stop):
                g = load(inner_b + t * VECTOR_BYTES)
                for k in range(least(width, length - t)):
                    row = x + here + (t + k) * x_row
                    _add_to(grad_taps_b + of_group + k * VECTOR_BYTES, g * load_first(row, count))
                _add_to(grad_taps_b + of_group + width * VECTOR_BYTES, g)
        for t in range(start, stop):
            out = splat(ZERO)
            if grad:
                for k in range(most(0, width - length + t), width):
                    row = inner + (t - k + width - 1) * VECTOR_BYTES
                    out = fma(load(taps + of_group + k * VECTOR_BYTES), load(row), out)
            if grad_b:
                for k in range(least(width, t + 1)):
                    out = fma(load(taps_b + of_group + k * VECTOR_BYTES), load(inner_b + (t - k) * VECTOR_BYTES), out)
            store_first(grad_x + here + t * grad_x_row, out, count)


@njit(forceinline=True)
def _causal(taps, x, x_row, size, t, width, count):
    """Bias plus the weighted rows t - width + 1 to t."""
    out = load(taps + width * VECTOR_BYTES)
    for k in range(most(0, width - 1 - t), width):
        out = fma(load(taps + k * VECTOR_BYTES), load_numbers(x + (t + k - width + 1) * x_row, count, size), out)
    return out


@njit(forceinline=True)
def _future(taps, x, x_row, size, t, width, length, count):
    """Bias plus the weighted rows t to t + width - 1."""
    out = load(taps + width * VECTOR_BYTES)
    for k in range(least(width, length - t)):
        out = fma(load(taps + k * VECTOR_BYTES), load_numbers(x + (t + k) * x_row, count, size), out)
    return out


@njit(forceinline=True)
def _silu_slope(x):
    sigma = sigmoid(x)
    return sigma * fma(x, splat(ONE) - sigma, splat(ONE))


@njit(forceinline=True)
def _add_to(address, value):
    store(address, load(address) + value)
