"""The triton backend's kernels of residual sum and RMS norm: a program takes whole rows, which it reads once."""

import triton
import triton.language as tl

__all__ = ["norm_backward", "norm_forward"]


@triton.jit(do_not_specialize=["rows"])  # or every new batch would be compiled
def norm_forward(
    hidden, residual, weight, normed, total, scales, rows, channels, eps, BLOCK: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """ROWS rows of (rows, channels): total = hidden + residual, scales = 1 / rms, normed = total scales weight."""
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK)
    mask = (r < rows)[:, None] & (d < channels)[None, :]
    at = r[:, None] * channels + d[None, :]
    x = tl.load(hidden + at, mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        x += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(total + at, x, mask=mask)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 1) / channels + eps)
    tl.store(scales + r, scale, mask=r < rows)
    w = tl.load(weight + d, mask=d < channels, other=0.0).to(tl.float32)
    tl.store(normed + at, x * scale[:, None] * w[None, :], mask=mask)


@triton.jit(do_not_specialize=["rows", "per_program"])
def norm_backward(
    grad_normed, grad_total, total, scales, weight, grad_hidden, grad_residual, sums, rows, channels, per_program,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows from program_id * per_program on; sums (programs, channels) receive the program's part of weight's gradient.

    With s = scale and g = grad_normed weight, the gradient of the sum is s (g - x s^2 mean(g x)) + grad_total.
    """
    first = tl.program_id(0).to(tl.int64) * per_program
    d = tl.arange(0, BLOCK)
    mask = d < channels
    w = tl.load(weight + d, mask=mask, other=0.0).to(tl.float32)
    grad_weight = tl.zeros([BLOCK], tl.float32)
    for row in range(first, tl.minimum(first + per_program, rows)):
        at = row * channels + d
        x = tl.load(total + at, mask=mask, other=0.0)
        scale = tl.load(scales + row)
        g = tl.load(grad_normed + at, mask=mask, other=0.0).to(tl.float32)
        grad_weight += g * x * scale
        g *= w
        out = scale * (g - x * (scale * scale * tl.sum(g * x, 0) / channels))
        out += tl.load(grad_total + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(grad_hidden + at, out, mask=mask)
        if grad_residual is not None:
            tl.store(grad_residual + at, out, mask=mask)
    tl.store(sums + tl.program_id(0).to(tl.int64) * channels + d, grad_weight, mask=mask)
