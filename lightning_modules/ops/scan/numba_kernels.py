"""The numba backend's compiled loops: one direction of one block of channels.

Sixteen channels ride in the lanes of one vector and every state has its own vector, so that the sums over states need
no shuffles. All memory is named by byte addresses and byte strides between rows (tokens); a scan from the last token is
the same loop with the last row's address and negative strides. Address 0 means that an optional tensor is absent.

The sequence is walked in chunks of rows, and inside a chunk one group of sixteen channels after the other: a row's
neighbouring channels are then read from the same page while it is at hand. CPUs foresee steps inside a page only, so
the next group's lines are asked for while this one is computed (without, a layer of VideoMamba-M takes twice as long).

Legend: "lanes layout" is (groups of sixteen channels, state, 16), padded with zeros behind the last channel.
"""

from lightning_modules.ops.memory import FLOAT_BYTES
from lightning_modules.ops.simd import (
    LANES,
    LOG2_E,
    ONE,
    VECTOR_BYTES,
    ZERO,
    exp2,
    fma,
    kernel,
    least,
    load,
    load_first,
    load_four,
    load_numbers,
    prefetch,
    sigmoid,
    softplus,
    softplus_and_slope,
    splat,
    splat_at,
    store,
    store_first,
    store_four,
    store_totals,
)

__all__ = ["scan_backward", "scan_forward"]


@kernel
def scan_forward(
    u, u_row, delta, delta_row, A, B, B_row, C, C_row, D, bias, use_softplus, z, z_row, size, y, y_row, add_to_y,
    state, scratch, checkpoints, checkpoint_step, chunk, length, channels, states,
):  # fmt: skip
    """y = (scan + D u [+ y]) [silu(z)].

    Numbers of u, delta and z have `size` bytes, see `load_numbers`. A is in lanes layout and holds A log2(e). state, in
    lanes layout, holds the first state and is left with the last; the state before every chunk is written to
    checkpoints, `checkpoint_step` bytes apart, if it is given. scratch has room for 2 chunk vectors.
    """
    dts = scratch
    outs = scratch + chunk * VECTOR_BYTES
    groups = (channels + LANES - 1) // LANES
    group_bytes = states * VECTOR_BYTES
    for start in range(0, length, chunk):
        steps = least(chunk, length - start)
        for group in range(groups):
            count = least(LANES, channels - group * LANES)
            here = group * VECTOR_BYTES
            read = group * LANES * size
            a_group = A + group * group_bytes
            h_group = state + group * group_bytes
            if checkpoints:
                kept = checkpoints + start // chunk * checkpoint_step + group * group_bytes
                for n in range(states):
                    store(kept + n * VECTOR_BYTES, load(h_group + n * VECTOR_BYTES))
            skip = splat(ZERO)
            shift = splat(ZERO)
            if D:
                skip = load_first(D + here, count)
            if bias:
                shift = load_first(bias + here, count)
            # Three short loops instead of one: a softplus takes longer than the sixteen states that wait for it, and
            # the CPU can only overlap what stands close together.
            for step in range(steps):
                dt = load_numbers(delta + read + (start + step) * delta_row, count, size) + shift
                if use_softplus:
                    dt = softplus(dt)
                store(dts + step * VECTOR_BYTES, dt)
            next_here = here + VECTOR_BYTES
            next_read = read + LANES * size
            next_start = start
            if group == groups - 1:
                next_here = 0
                next_read = 0
                next_start = start + chunk
            for step in range(steps):
                t = start + step
                next_t = next_start + step
                prefetch(delta + next_read + next_t * delta_row)
                prefetch(u + next_read + next_t * u_row)
                prefetch(y + next_here + next_t * y_row)
                if z:
                    prefetch(z + next_read + next_t * z_row)
                dt = load(dts + step * VECTOR_BYTES)
                x = load_numbers(u + read + t * u_row, count, size)
                dtx = dt * x
                out = skip * x
                for n in range(states):
                    at = n * VECTOR_BYTES
                    decay = exp2(dt * load(a_group + at))
                    h = fma(decay, load(h_group + at), dtx * splat_at(B + t * B_row + n * FLOAT_BYTES))
                    store(h_group + at, h)
                    out = fma(h, splat_at(C + t * C_row + n * FLOAT_BYTES), out)
                store(outs + step * VECTOR_BYTES, out)
            for step in range(steps):
                t = start + step
                y_here = y + here + t * y_row
                out = load(outs + step * VECTOR_BYTES)
                if add_to_y:
                    out = out + load_first(y_here, count)
                if z:
                    gate = load_numbers(z + read + t * z_row, count, size)
                    out = out * (gate * sigmoid(gate))
                store_first(y_here, out, count)


@kernel
def scan_backward(
    u, u_row, delta, delta_row, A, B, B_row, C, C_row, D, bias, use_softplus, z, z_row, grad, grad_row,
    y, y_row, add_to_y, result, grad_z, grad_u, grad_delta, out_row, grad_A, grad_D, grad_bias, grad_B, grad_C,
    weights_row, adjoint, scratch, checkpoints, checkpoint_step, chunk, length, channels, states,
):  # fmt: skip
    """Gradients of `scan_forward`, from the last chunk to the first; states come in fours.

    grad is the gradient of the gated result. Where there is a gate, y receives this direction's result before the gate
    (added to what it holds if `add_to_y`), and grad_z, if given, the gate's gradient from the sum; the two may be the
    same memory. result, if given beside grad_z, receives the forward's gated result.
    grad_u, grad_delta, grad_z and result have rows of `out_row` bytes. grad_A (lanes layout; the gradient of A
    itself), grad_D and grad_bias (padded to whole vectors) are added to. grad_B and grad_C (length, states), rows
    `weights_row` apart, receive the sums over this block's channels. adjoint (lanes layout, zeros) carries the state's
    gradient from chunk to chunk. scratch has room for (2 states + 17) chunk vectors.

    Four states at a time walk the chunk up, which recomputes them from the checkpoint, and down again: they, their
    gradients and those of A stay in registers, and what has to lie between the two walks stays in the nearest cache.
    """
    groups = (channels + LANES - 1) // LANES
    group_bytes = states * VECTOR_BYTES
    chunk_bytes = chunk * VECTOR_BYTES
    sums_B = scratch
    sums_C = sums_B + states * chunk_bytes
    decays = sums_C + states * chunk_bytes
    hidden = decays + 4 * chunk_bytes  # the states before each step
    dts = hidden + 4 * chunk_bytes
    dtxs = dts + chunk_bytes
    slopes = dtxs + chunk_bytes  # of dt over delta
    dys = slopes + chunk_bytes
    outs = dys + chunk_bytes
    gate_grads = outs + chunk_bytes
    grad_dts = gate_grads + chunk_bytes
    grad_dtxs = grad_dts + chunk_bytes
    gates = grad_dtxs + chunk_bytes
    ln2 = splat(ONE) / splat(LOG2_E)
    for index in range((length + chunk - 1) // chunk - 1, -1, -1):
        start = index * chunk
        steps = least(chunk, length - start)
        for at in range(0, states * chunk_bytes, VECTOR_BYTES):
            store(sums_B + at, splat(ZERO))
            store(sums_C + at, splat(ZERO))
        for group in range(groups):
            count = least(LANES, channels - group * LANES)
            here = group * VECTOR_BYTES
            a_group = A + group * group_bytes
            grad_a_group = grad_A + group * group_bytes
            adjoint_group = adjoint + group * group_bytes
            kept = checkpoints + index * checkpoint_step + group * group_bytes
            skip = splat(ZERO)
            shift = splat(ZERO)
            if D:
                skip = load_first(D + here, count)
            if bias:
                shift = load_first(bias + here, count)

            for step in range(steps):
                t = start + step
                at = step * VECTOR_BYTES
                dt = load_first(delta + here + t * delta_row, count) + shift
                slope = splat(ONE)
                if use_softplus:
                    dt, slope = softplus_and_slope(dt)
                x = load_first(u + here + t * u_row, count)
                store(dts + at, dt)
                store(dtxs + at, dt * x)
                store(slopes + at, slope)
                store(grad_dts + at, splat(ZERO))
                store(grad_dtxs + at, splat(ZERO))
                dy = load_first(grad + here + t * grad_row, count)
                if z:
                    gate = load_first(z + here + t * z_row, count)
                    sigma = sigmoid(gate)
                    if grad_z:
                        store(gate_grads + at, dy * (sigma * fma(gate, splat(ONE) - sigma, splat(ONE))))
                    gate = gate * sigma
                    if result:
                        store(gates + at, gate)
                    dy = dy * gate
                    store(outs + at, skip * x)
                store(dys + at, dy)

            next_here = here + VECTOR_BYTES
            next_start = start
            next_kept = kept + group_bytes
            if group == groups - 1:
                next_here = 0
                next_start = start - chunk
                next_kept = checkpoints + (index - 1) * checkpoint_step
            for n in range(0, group_bytes, 4 * VECTOR_BYTES):
                weights = n // LANES
                due = n // (4 * VECTOR_BYTES)
                a0, a1, a2, a3 = load_four(a_group + n)
                h0, h1, h2, h3 = load_four(kept + n)
                for line in range(n, n + 4 * VECTOR_BYTES, VECTOR_BYTES):
                    prefetch(next_kept + line)
                for step in range(steps):
                    t = start + step
                    at = step * VECTOR_BYTES
                    four = 4 * at
                    dt = load(dts + at)
                    dtx = load(dtxs + at)
                    b = B + t * B_row + weights
                    c = C + t * C_row + weights
                    if step == due:
                        due += states // 4
                        next_t = next_start + step
                        prefetch(delta + next_here + next_t * delta_row)
                        prefetch(u + next_here + next_t * u_row)
                        prefetch(grad + next_here + next_t * grad_row)
                        prefetch(grad_delta + here + t * out_row)
                        prefetch(grad_u + here + t * out_row)
                        if z:
                            prefetch(z + next_here + next_t * z_row)
                            prefetch(y + here + t * y_row)
                        if result:
                            prefetch(result + here + t * out_row)
                    store_four(hidden + four, h0, h1, h2, h3)
                    d0 = exp2(dt * a0)
                    d1 = exp2(dt * a1)
                    d2 = exp2(dt * a2)
                    d3 = exp2(dt * a3)
                    store_four(decays + four, d0, d1, d2, d3)
                    h0 = fma(d0, h0, dtx * splat_at(b))
                    h1 = fma(d1, h1, dtx * splat_at(b + FLOAT_BYTES))
                    h2 = fma(d2, h2, dtx * splat_at(b + 2 * FLOAT_BYTES))
                    h3 = fma(d3, h3, dtx * splat_at(b + 3 * FLOAT_BYTES))
                    if z:
                        out = fma(h0, splat_at(c), load(outs + at))
                        out = fma(h1, splat_at(c + FLOAT_BYTES), out)
                        out = fma(h2, splat_at(c + 2 * FLOAT_BYTES), out)
                        out = fma(h3, splat_at(c + 3 * FLOAT_BYTES), out)
                        store(outs + at, out)
                s0, s1, s2, s3 = load_four(adjoint_group + n)
                w0, w1, w2, w3 = load_four(grad_a_group + n)
                for step in range(steps - 1, -1, -1):
                    t = start + step
                    at = step * VECTOR_BYTES
                    four = 4 * at
                    dt = load(dts + at)
                    dtx = load(dtxs + at)
                    dy = load(dys + at)
                    b = B + t * B_row + weights
                    c = C + t * C_row + weights
                    s0 = fma(dy, splat_at(c), s0)
                    s1 = fma(dy, splat_at(c + FLOAT_BYTES), s1)
                    s2 = fma(dy, splat_at(c + 2 * FLOAT_BYTES), s2)
                    s3 = fma(dy, splat_at(c + 3 * FLOAT_BYTES), s3)
                    to = sums_C + n * chunk + four
                    v0, v1, v2, v3 = load_four(to)
                    store_four(to, fma(dy, h0, v0), fma(dy, h1, v1), fma(dy, h2, v2), fma(dy, h3, v3))
                    to = sums_B + n * chunk + four
                    v0, v1, v2, v3 = load_four(to)
                    store_four(to, fma(s0, dtx, v0), fma(s1, dtx, v1), fma(s2, dtx, v2), fma(s3, dtx, v3))
                    grad_dtx = fma(s0, splat_at(b), load(grad_dtxs + at))
                    grad_dtx = fma(s1, splat_at(b + FLOAT_BYTES), grad_dtx)
                    grad_dtx = fma(s2, splat_at(b + 2 * FLOAT_BYTES), grad_dtx)
                    grad_dtx = fma(s3, splat_at(b + 3 * FLOAT_BYTES), grad_dtx)
                    store(grad_dtxs + at, grad_dtx)
                    d0, d1, d2, d3 = load_four(decays + four)
                    s0 = s0 * d0
                    s1 = s1 * d1
                    s2 = s2 * d2
                    s3 = s3 * d3
                    h0, h1, h2, h3 = load_four(hidden + four)
                    v0 = s0 * h0
                    v1 = s1 * h1
                    v2 = s2 * h2
                    v3 = s3 * h3
                    w0 = fma(v0, dt, w0)
                    w1 = fma(v1, dt, w1)
                    w2 = fma(v2, dt, w2)
                    w3 = fma(v3, dt, w3)
                    grad_dt = fma(v0, a0, load(grad_dts + at))
                    grad_dt = fma(v1, a1, grad_dt)
                    grad_dt = fma(v2, a2, grad_dt)
                    store(grad_dts + at, fma(v3, a3, grad_dt))
                store_four(adjoint_group + n, s0, s1, s2, s3)
                store_four(grad_a_group + n, w0, w1, w2, w3)

            sum_D = load(grad_D + here)
            sum_bias = load(grad_bias + here)
            for step in range(steps):
                t = start + step
                at = step * VECTOR_BYTES
                x = load_first(u + here + t * u_row, count)
                dy = load(dys + at)
                grad_dtx = load(grad_dtxs + at)
                grad_raw = fma(load(grad_dts + at), ln2, grad_dtx * x) * load(slopes + at)
                store_first(grad_delta + here + t * out_row, grad_raw, count)
                store_first(grad_u + here + t * out_row, fma(grad_dtx, load(dts + at), skip * dy), count)
                sum_bias = sum_bias + grad_raw
                sum_D = fma(dy, x, sum_D)
                if z:
                    y_here = y + here + t * y_row
                    out = load(outs + at)
                    if add_to_y:
                        out = out + load_first(y_here, count)
                    if grad_z:
                        store_first(grad_z + here + t * out_row, out * load(gate_grads + at), count)
                        if result:
                            store_first(result + here + t * out_row, out * load(gates + at), count)
                    else:
                        store_first(y_here, out, count)
            store(grad_D + here, sum_D)
            store(grad_bias + here, sum_bias)
        for step in range(steps):
            row = (start + step) * weights_row
            for n in range(0, group_bytes, 4 * VECTOR_BYTES):
                at = n * chunk + step * 4 * VECTOR_BYTES
                store_totals(grad_B + row + n // LANES, *load_four(sums_B + at))
                store_totals(grad_C + row + n // LANES, *load_four(sums_C + at))
