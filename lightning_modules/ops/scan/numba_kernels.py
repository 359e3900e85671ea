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
    prefetch,
    sigmoid,
    softplus,
    splat,
    splat_at,
    store,
    store_first,
    store_one,
    total,
)

__all__ = ["scan_backward", "scan_forward"]


@kernel
def scan_forward(
    u, u_row, delta, delta_row, A, B, B_row, C, C_row, D, bias, use_softplus, z, z_row, y, y_row, add_to_y,
    state, scratch, checkpoints, checkpoint_step, chunk, length, channels, states,
):  # fmt: skip
    """y = (scan + D u [+ y]) [silu(z)].

    A is in lanes layout and holds A log2(e). state, in lanes layout, holds the first state and is left with the last;
    the state before every chunk is written to checkpoints, `checkpoint_step` bytes apart, if it is given. scratch has
    room for 2 chunk vectors.
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
                dt = load_first(delta + here + (start + step) * delta_row, count) + shift
                if use_softplus:
                    dt = softplus(dt)
                store(dts + step * VECTOR_BYTES, dt)
            next_here = here + VECTOR_BYTES
            next_start = start
            if group == groups - 1:
                next_here = 0
                next_start = start + chunk
            for step in range(steps):
                t = start + step
                next_t = next_start + step
                prefetch(delta + next_here + next_t * delta_row)
                prefetch(u + next_here + next_t * u_row)
                prefetch(y + next_here + next_t * y_row)
                if z:
                    prefetch(z + next_here + next_t * z_row)
                dt = load(dts + step * VECTOR_BYTES)
                x = load_first(u + here + t * u_row, count)
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
                    gate = load_first(z + here + t * z_row, count)
                    out = out * (gate * sigmoid(gate))
                store_first(y_here, out, count)


@kernel
def scan_backward(
    u, u_row, delta, delta_row, A, B, B_row, C, C_row, D, bias, use_softplus, z, z_row, grad, grad_row,
    y, y_row, add_to_y, grad_z, grad_u, grad_delta, out_row, grad_A, grad_D, grad_bias, grad_B, grad_C, weights_row,
    adjoint, scratch, checkpoints, checkpoint_step, chunk, length, channels, states,
):  # fmt: skip
    """Gradients of `scan_forward`, from the last chunk to the first.

    grad is the gradient of the gated result. Where there is a gate, y receives this direction's result before the gate
    (added to what it holds if `add_to_y`), and grad_z, if given, the gate's gradient from the sum; the two may be the
    same memory. grad_u, grad_delta and grad_z have rows of `out_row` bytes. grad_A (lanes layout; the gradient of A
    itself), grad_D and grad_bias (padded to whole vectors) are added to. grad_B and grad_C (length, states), rows
    `weights_row` apart, receive the sums over this block's channels. adjoint (lanes layout, zeros) carries the state's
    gradient from chunk to chunk. scratch has room for (4 chunk + 1) states + 5 chunk vectors.
    """
    groups = (channels + LANES - 1) // LANES
    group_bytes = states * VECTOR_BYTES
    decays = scratch
    sums_B = decays + chunk * group_bytes
    sums_C = sums_B + chunk * group_bytes
    hidden = sums_C + chunk * group_bytes  # one step more than the chunk has: first the state before it
    dts = hidden + (chunk + 1) * group_bytes
    slopes = dts + chunk * VECTOR_BYTES  # of dt over delta
    dys = slopes + chunk * VECTOR_BYTES
    grad_dts = dys + chunk * VECTOR_BYTES
    grad_dtxs = grad_dts + chunk * VECTOR_BYTES
    ln2 = splat(ONE) / splat(LOG2_E)
    for index in range((length + chunk - 1) // chunk - 1, -1, -1):
        start = index * chunk
        steps = least(chunk, length - start)
        for at in range(0, steps * group_bytes, VECTOR_BYTES):
            store(sums_B + at, splat(ZERO))
            store(sums_C + at, splat(ZERO))
        for group in range(groups):
            count = least(LANES, channels - group * LANES)
            here = group * VECTOR_BYTES
            a_group = A + group * group_bytes
            grad_a_group = grad_A + group * group_bytes
            adjoint_group = adjoint + group * group_bytes
            skip = splat(ZERO)
            shift = splat(ZERO)
            if D:
                skip = load_first(D + here, count)
            if bias:
                shift = load_first(bias + here, count)

            for step in range(steps):
                t = start + step
                at = step * VECTOR_BYTES
                raw = load_first(delta + here + t * delta_row, count) + shift
                dt = raw
                slope = splat(ONE)
                if use_softplus:
                    dt = softplus(raw)
                    slope = sigmoid(raw)
                store(dts + at, dt)
                store(slopes + at, slope)
                dy = load_first(grad + here + t * grad_row, count)
                if z:
                    gate = load_first(z + here + t * z_row, count)
                    dy = dy * (gate * sigmoid(gate))
                store(dys + at, dy)

            next_here = here + VECTOR_BYTES
            next_start = start
            if group == groups - 1:
                next_here = 0
                next_start = start - chunk

            # Recompute the chunk's states from its checkpoint.
            kept = checkpoints + index * checkpoint_step + group * group_bytes
            for n in range(states):
                store(hidden + n * VECTOR_BYTES, load(kept + n * VECTOR_BYTES))
            for step in range(steps):
                t = start + step
                next_t = next_start + step
                prefetch(delta + next_here + next_t * delta_row)
                prefetch(u + next_here + next_t * u_row)
                prefetch(grad + next_here + next_t * grad_row)
                if z:
                    prefetch(z + next_here + next_t * z_row)
                    prefetch(y + next_here + next_t * y_row)
                dt = load(dts + step * VECTOR_BYTES)
                x = load_first(u + here + t * u_row, count)
                dtx = dt * x
                out = skip * x
                for n in range(states):
                    at = step * group_bytes + n * VECTOR_BYTES
                    decay = exp2(dt * load(a_group + n * VECTOR_BYTES))
                    store(decays + at, decay)
                    h = fma(decay, load(hidden + at), dtx * splat_at(B + t * B_row + n * FLOAT_BYTES))
                    store(hidden + group_bytes + at, h)
                    out = fma(h, splat_at(C + t * C_row + n * FLOAT_BYTES), out)
                if z:
                    y_here = y + here + t * y_row
                    if add_to_y:
                        out = out + load_first(y_here, count)
                    store_first(y_here, out, count)

            for step in range(steps - 1, -1, -1):
                t = start + step
                prefetch(grad_delta + here + t * out_row)
                prefetch(grad_u + here + t * out_row)
                if grad_z:
                    prefetch(grad_z + here + t * out_row)
                dt = load(dts + step * VECTOR_BYTES)
                dtx = dt * load_first(u + here + t * u_row, count)
                dy = load(dys + step * VECTOR_BYTES)
                grad_dtx = splat(ZERO)
                grad_dt = splat(ZERO)
                for n in range(states):
                    lane = n * VECTOR_BYTES
                    at = step * group_bytes + lane
                    grad_h = fma(dy, splat_at(C + t * C_row + n * FLOAT_BYTES), load(adjoint_group + lane))
                    store(sums_C + at, fma(dy, load(hidden + group_bytes + at), load(sums_C + at)))
                    store(sums_B + at, fma(grad_h, dtx, load(sums_B + at)))
                    grad_dtx = fma(grad_h, splat_at(B + t * B_row + n * FLOAT_BYTES), grad_dtx)
                    carried = grad_h * load(decays + at)
                    store(adjoint_group + lane, carried)
                    grad_exponent = carried * load(hidden + at)
                    grad_dt = fma(grad_exponent, load(a_group + lane), grad_dt)
                    store(grad_a_group + lane, fma(grad_exponent, dt, load(grad_a_group + lane)))
                store(grad_dts + step * VECTOR_BYTES, grad_dt)
                store(grad_dtxs + step * VECTOR_BYTES, grad_dtx)

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
                if grad_z:
                    gate = load_first(z + here + t * z_row, count)
                    sigma = sigmoid(gate)
                    gate_slope = sigma * fma(gate, splat(ONE) - sigma, splat(ONE))
                    gated = load_first(grad + here + t * grad_row, count) * load_first(y + here + t * y_row, count)
                    store_first(grad_z + here + t * out_row, gated * gate_slope, count)
            store(grad_D + here, sum_D)
            store(grad_bias + here, sum_bias)
        for step in range(steps):
            row = (start + step) * weights_row
            for n in range(states):
                at = step * group_bytes + n * VECTOR_BYTES
                store_one(grad_B + row + n * FLOAT_BYTES, total(load(sums_B + at)))
                store_one(grad_C + row + n * FLOAT_BYTES, total(load(sums_C + at)))
