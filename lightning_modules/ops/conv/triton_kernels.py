"""The triton backend's kernels of the short convolution, for one direction or both.

Legend: `*_batch` and `*_row` are steps between sequences and tokens; the last step of every sequence tensor is 1.
Weights are (channels, WIDTH); a direction without weight is absent. Tap k of the causal direction meets the token
WIDTH - 1 - k places before, tap k of the other the one as many places behind.
"""

import triton
import triton.language as tl

__all__ = ["conv_backward", "conv_forward"]

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(x * -_LOG2_E))


@triton.jit(do_not_specialize=["length"])  # or every new length would be compiled
def conv_forward(
    x, x_batch, x_row, weight, bias, weight_b, bias_b, y, y_b, length, channels,
    SILU: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Both results of a tile of ROWS tokens: x comes from memory once, its neighbours from the cache."""
    t = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b = tl.program_id(2).to(tl.int64)
    inside = d < channels
    x += b * x_batch
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    total_b = tl.zeros([ROWS, BLOCK], tl.float32)
    for shift in tl.static_range(1 - WIDTH, WIDTH):
        if (shift <= 0 and weight is not None) or (shift >= 0 and weight_b is not None):
            s = t + shift
            mask = ((s >= 0) & (s < length))[:, None] & inside[None, :]
            value = tl.load(x + s[:, None] * x_row + d[None, :], mask=mask, other=0.0).to(tl.float32)
            if shift <= 0 and weight is not None:
                w = tl.load(weight + d * WIDTH + (WIDTH - 1 + shift), mask=inside, other=0.0).to(tl.float32)
                total += value * w[None, :]
            if shift >= 0 and weight_b is not None:
                w = tl.load(weight_b + d * WIDTH + (WIDTH - 1 - shift), mask=inside, other=0.0).to(tl.float32)
                total_b += value * w[None, :]
    mask = (t < length)[:, None] & inside[None, :]
    at = (b * length + t[:, None]) * channels + d[None, :]
    if weight is not None:
        if bias is not None:
            total += tl.load(bias + d, mask=inside, other=0.0).to(tl.float32)[None, :]
        if SILU:
            total *= _sigmoid(total)
        tl.store(y + at, total, mask=mask)
    if weight_b is not None:
        if bias_b is not None:
            total_b += tl.load(bias_b + d, mask=inside, other=0.0).to(tl.float32)[None, :]
        if SILU:
            total_b *= _sigmoid(total_b)
        tl.store(y_b + at, total_b, mask=mask)


@triton.jit
def _token(pointer, step, t, start, stop, d, inside):
    """Token t's channels in float32, 0 outside of start <= t < stop."""
    mask = inside & (d * 0 + t >= start) & (d * 0 + t < stop)
    return tl.load(pointer + t * step + d, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _taps(weight, d, inside, WIDTH: tl.constexpr):
    taps = ()
    for k in tl.static_range(WIDTH):
        taps = taps + (tl.load(weight + d * WIDTH + k, mask=inside, other=0.0).to(tl.float32),)  # noqa: RUF005
    return taps


@triton.jit
def _before_activation(grad, xs, taps, bias, d, inside, BACK: tl.constexpr, WIDTH: tl.constexpr, SILU: tl.constexpr):
    """grad times SiLU's slope at the convolution; tap k meets token k of the window or, BACK, the k-th from its end."""
    if SILU:
        s = tl.zeros(d.shape, tl.float32)
        if bias is not None:
            s += tl.load(bias + d, mask=inside, other=0.0).to(tl.float32)
        for k in tl.static_range(WIDTH):
            s += taps[k] * xs[(2 * WIDTH - 2 - k) if BACK else k]
        sigma = _sigmoid(s)
        grad *= sigma * (1.0 + s * (1.0 - sigma))
    return grad


@triton.jit(do_not_specialize=["length"])
def conv_backward(
    grad, grad_batch, grad_row, grad_b, gradb_batch, gradb_row, x, x_batch, x_row,
    weight, bias, weight_b, bias_b, dx, sums, sums_b, length, channels, segment,
    SILU: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of `conv_forward`: every token's slopes are computed once, on a walk along a segment and its margins.

    sums and sums_b (programs along the sequences, WIDTH + 1, channels) receive each program's part of the gradients of
    the weight and, last, of the bias.
    """
    piece, b = tl.program_id(1), tl.program_id(2)
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = d < channels
    start = piece.to(tl.int64) * segment
    stop = tl.minimum(start + segment, length)
    wide = b.to(tl.int64)
    x += wide * x_batch
    dx += wide * length * channels
    zero = tl.zeros([BLOCK], tl.float32)

    # Windows around token i: x from i - (WIDTH - 1) to i + (WIDTH - 1), slopes up to i.
    first = start - (WIDTH - 1)
    xs = (zero,)
    for k in tl.static_range(2 * WIDTH - 2):
        xs = xs + (_token(x, x_row, first - (WIDTH - 1) + k, 0, length, d, inside),)  # noqa: RUF005
    slopes = ()
    slopes_b = ()
    total = ()
    total_b = ()
    for _ in tl.static_range(WIDTH):
        slopes = slopes + (zero,)  # noqa: RUF005
    for _ in tl.static_range(2 * WIDTH - 1):
        slopes_b = slopes_b + (zero,)  # noqa: RUF005
    for _ in tl.static_range(WIDTH + 1):
        total = total + (zero,)  # noqa: RUF005
        total_b = total_b + (zero,)  # noqa: RUF005
    if weight is not None:
        taps = _taps(weight, d, inside, WIDTH)
        grad += wide * grad_batch
    if weight_b is not None:
        taps_b = _taps(weight_b, d, inside, WIDTH)
        grad_b += wide * gradb_batch

    for step in range(0, (stop - start).to(tl.int32) + 2 * (WIDTH - 1)):
        i = first + step
        xs = xs[1:] + (_token(x, x_row, i + (WIDTH - 1), 0, length, d, inside),)  # noqa: RUF005
        own = tl.where((i >= start) & (i < stop), 1.0, 0.0)
        j = i - (WIDTH - 1)
        out = zero
        if weight is not None:
            g = _token(grad, grad_row, i, 0, length, d, inside)
            g = _before_activation(g, xs, taps, bias, d, inside, False, WIDTH, SILU)
            slopes = slopes[1:] + (g,)  # noqa: RUF005
            g *= own
            grown = ()
            for k in tl.static_range(WIDTH):
                out += taps[k] * slopes[WIDTH - 1 - k]
                grown = grown + (total[k] + g * xs[k],)  # noqa: RUF005
            total = grown + (total[WIDTH] + g,)  # noqa: RUF005
        if weight_b is not None:
            g = _token(grad_b, gradb_row, i, 0, length, d, inside)
            g = _before_activation(g, xs, taps_b, bias_b, d, inside, True, WIDTH, SILU)
            slopes_b = slopes_b[1:] + (g,)  # noqa: RUF005
            g *= own
            grown = ()
            for k in tl.static_range(WIDTH):
                out += taps_b[k] * slopes_b[k]
                grown = grown + (total_b[k] + g * xs[2 * WIDTH - 2 - k],)  # noqa: RUF005
            total_b = grown + (total_b[WIDTH] + g,)  # noqa: RUF005
        tl.store(dx + j * channels + d, out, mask=inside & (d * 0 + j >= start) & (d * 0 + j < stop))

    at = (b * tl.num_programs(1) + piece).to(tl.int64) * (WIDTH + 1) * channels + d
    for k in tl.static_range(WIDTH + 1):
        if weight is not None:
            tl.store(sums + at + k * channels, total[k], mask=inside)
        if weight_b is not None:
            tl.store(sums_b + at + k * channels, total_b[k], mask=inside)
