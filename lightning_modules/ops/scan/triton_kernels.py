"""The triton backend's kernels of the selective scan.

A program owns a block of channels of one sequence and walks the tokens. Its states stand in a tile (states, channels)
whose columns belong to one thread each, so that sums over states stay inside a thread and a step needs no other thread.
Programs are single warps: nothing waits at a barrier.

The sequence is divided by position, the same for both directions: "segments" are shared among programs, "chunks" lie
between two saved states, "tiles" between two recomputed ones in the backward. A direction enters a piece at its first
token, or, where it runs from the last token, at its last.

Legend: N states padded to a power of two; "state buffer" is float32 (direction, batch, piece, blocks of 32 channels, N,
32), the state before each piece; BC is float32 (direction, batch, length, 2, N), made by `pack`. `*_batch` and `*_row`
are steps from sequence to sequence and from token to token; the last step of every sequence tensor is 1.
"""

import triton
import triton.language as tl

__all__ = ["combine", "gate_backward", "pack", "scan_backward", "scan_forward", "walk"]

# Triton compiles a kernel anew where an integer is 1 or stops being divisible by 16. For those that change with every
# batch or length, it must not; `one` is explained in `scan_backward`.
_ANY = ["one", "batch", "length", "segment", "segments", "chunks", "tiles"]
# Tensors whose tiles are (states, channels). Where the compiler knows them to be aligned, triton up to 3.6 lays the
# whole kernel out for wide loads of these few, with the states of a channel in different threads.
_TILED = ["A", "A_b", "entry", "checkpoints", "ends", "inner", "dA"]

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _softplus(x):
    """log(1 + exp(x)) = max(x, 0) + e p(e), e = exp(-|x|), with p(e) = log1p(e) / e over 0 <= e <= 1 (own fit, 1.3e-7).

    A logarithm or a quotient would cost one more of the special functions that the scan is short of.
    """
    e = tl.exp2(tl.abs(x) * -_LOG2_E)
    p = e * 0.0052326931 - 0.0295052398
    p = p * e + 0.0782259554
    p = p * e - 0.1366324574
    p = p * e + 0.1910600662
    p = p * e - 0.2484298199
    p = p * e + 0.3331909776
    p = p * e - 0.4999949336
    p = p * e + 0.9999999404
    return tl.maximum(x, 0.0) + e * p


@triton.jit
def _softplus_slope(dt):
    """The derivative at the x whose softplus is dt: 1 - exp(-dt), by its series where the difference would cancel."""
    series = dt * (1.0 + dt * (-0.5 + dt * (0.16666667 - dt * 0.041666667)))
    return tl.where(dt < 0.03, series, 1.0 - tl.exp2(dt * -_LOG2_E))


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(x * -_LOG2_E))


@triton.jit
def _row(pointer, step, t, d, mask):
    """Token t's channels as they are stored, 0 where masked: a conversion here would wait for the load."""
    return tl.load(pointer + t * step + d, mask=mask, other=0.0)


@triton.jit
def _row_of(pointer, step, t, d, mask):
    """`_row`, or zeros if there is no tensor: what a loop hands on has to be a value."""
    if pointer is None:
        return tl.zeros(d.shape, tl.float32)
    else:
        return _row(pointer, step, t, d, mask)


@triton.jit
def _rows(pointer, step, first, way: tl.constexpr, lowest, highest, d, mask, COUNT: tl.constexpr):
    """The first token and those after (way 1) or before it (way -1), as `_row`; the nearest inside for one outside."""
    rows = ()
    for k in tl.static_range(COUNT):
        t = tl.minimum(tl.maximum(first + way * k, lowest), highest)
        rows = rows + (_row(pointer, step, t, d, mask),)  # noqa: RUF005 (triton's tuples know + only)
    return rows


@triton.jit
def _channels(pointer, d, mask):
    """A value per channel in float32, 0 where masked or if there is no tensor."""
    if pointer is None:
        return tl.zeros(d.shape, tl.float32)
    else:
        return tl.load(pointer + d, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _rates(A, states, channels, d, n, mask):
    """A log2(e) as (N, channels), 0 for padded states; A is stored as (states, channels)."""
    mask = mask[None, :] & (n < states)[:, None]
    return tl.load(A + n[:, None] * channels + d[None, :], mask=mask, other=0.0).to(tl.float32) * _LOG2_E


@triton.jit
def _state(buffer, batch, pieces, direction, b, piece, channels, one, d, n, N: tl.constexpr):
    """Addresses (N, channels) in a state buffer.

    Steps between states are constants: as products with the number of channels they would fill the registers.
    """
    base = ((direction * batch + b).to(tl.int64) * pieces + piece) * tl.cdiv(channels, 32) * (32 * N)
    return buffer + base + ((d // 32) * (32 * N) + d % 32)[None, :] + n[:, None] * 32


@triton.jit
def _step(h, A, raw, x, D, bias, weights, n, N: tl.constexpr, SOFTPLUS: tl.constexpr):
    """One token: the state after it, and its result before the gate."""
    B = tl.load(weights + n)
    C = tl.load(weights + N + n)
    dt = raw + bias
    if SOFTPLUS:
        dt = _softplus(dt)
    h = tl.exp2(dt[None, :] * A) * h + B[:, None] * (dt * x)[None, :]
    return h, tl.sum(h * C[:, None], 0) + D * x


@triton.jit
def _finish(total, y, kept, z, gate, t, channels, d, mask):
    """Writes a token's result, times the gate if there is a z."""
    if z is not None:
        gate = gate.to(tl.float32)
        if kept is not None:
            tl.store(kept + t * channels + d, total, mask=mask)
        total *= gate * _sigmoid(gate)
    tl.store(y + t * channels + d, total, mask=mask)


@triton.jit
def _keep(
    checkpoints, h, batch, chunks, direction: tl.constexpr, b, t, length, channels, one, d, n, mask,
    BACK: tl.constexpr, CHUNK: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Writes the state before a chunk's first token on the way."""
    if checkpoints is not None:
        first = t % CHUNK == 0
        if BACK:
            first = (t + 1) % CHUNK == 0 or t == length - 1
        if first:
            at = _state(checkpoints, batch, chunks, direction, b, t // CHUNK, channels, one, d, n, N)
            tl.store(at, h, mask=mask[None, :])


@triton.jit(do_not_specialize=["length"])
def pack(
    B, B_batch, B_row, C, C_batch, C_row, B_b, Bb_batch, Bb_row, C_b, Cb_batch, Cb_row, BC, length, states,
    N: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """B and C of both directions side by side in float32, so that a token's are four or eight wide loads."""
    b, direction = tl.program_id(1), tl.program_id(2)
    t = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n = tl.arange(0, N)
    inside = (t < length)[:, None]
    mask = inside & (n < states)[None, :]
    out = BC + ((direction * tl.num_programs(1) + b).to(tl.int64) * length + t[:, None]) * (2 * N) + n[None, :]
    b = b.to(tl.int64)
    if direction == 0:
        _pack_one(B + b * B_batch, B_row, C + b * C_batch, C_row, out, t, n, mask, inside, N)
    elif B_b is not None:
        _pack_one(B_b + b * Bb_batch, Bb_row, C_b + b * Cb_batch, Cb_row, out, t, n, mask, inside, N)


@triton.jit
def _pack_one(B, B_row, C, C_row, out, t, n, mask, inside, N: tl.constexpr):
    at = t[:, None] * B_row + n[None, :]
    tl.store(out, tl.load(B + at, mask=mask, other=0.0).to(tl.float32), mask=inside)
    at = t[:, None] * C_row + n[None, :]
    tl.store(out + N, tl.load(C + at, mask=mask, other=0.0).to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=_ANY, do_not_specialize_on_alignment=_TILED)
def scan_forward(
    u, u_batch, u_row, delta, delta_batch, delta_row, A, D, bias,
    u_b, ub_batch, ub_row, delta_b, deltab_batch, deltab_row, A_b, D_b, bias_b,
    z, z_batch, z_row, BC, entry, checkpoints, scratch, kept, y,
    batch, length, channels, states, one, segment, segments, chunks,
    TWO: tl.constexpr, REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr,
    CHUNK: tl.constexpr, AHEAD: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = (scan [+ scan from the last token]) [silu(z)] of one segment.

    With two directions, step i takes token i and token length - 1 - i: two chains of dependent instructions that do not
    wait for each other. The first at a token leaves its result in scratch (float32, like y), the other adds
    its own, gates and writes: y is written once.

    Tokens are asked for before they are needed, AHEAD of them at a time in the first half and one in the second, which
    reads twice as much for each; and before the results of the step are written, since loads do not overtake stores.

    entry is a state buffer per segment (None: the state is 0, and there is one segment). checkpoints, a state buffer
    per chunk, and kept, the result before the gate, are written if given.
    """
    blocks = tl.cdiv(channels, BLOCK)
    pid = tl.program_id(0)
    d = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)
    b = pid // blocks // segments
    piece = pid // blocks % segments
    n = tl.arange(0, N)
    mask = d < channels
    start = piece.to(tl.int64) * segment
    stop = tl.minimum(start + segment, length)
    count = (stop - start).to(tl.int32)

    wide = b.to(tl.int64)
    u += wide * u_batch
    delta += wide * delta_batch
    y += wide * length * channels
    weights = BC + wide * length * (2 * N)
    rates = _rates(A, states, channels, d, n, mask)
    skip = _channels(D, d, mask)
    shift = _channels(bias, d, mask)
    if z is not None:
        z += wide * z_batch
        if kept is not None:
            kept += wide * length * channels
    h = tl.zeros([N, BLOCK], tl.float32)
    if entry is not None:
        h = tl.load(_state(entry, batch, segments, 0, b, piece, channels, one, d, n, N), mask=mask[None, :])

    if TWO:
        u_b += wide * ub_batch
        delta_b += wide * deltab_batch
        scratch += wide * length * channels
        weights_b = BC + (batch + wide) * length * (2 * N)
        rates_b = _rates(A_b, states, channels, d, n, mask)
        skip_b = _channels(D_b, d, mask)
        shift_b = _channels(bias_b, d, mask)
        h_b = tl.zeros([N, BLOCK], tl.float32)
        if entry is not None:
            h_b = tl.load(_state(entry, batch, segments, 1, b, piece, channels, one, d, n, N), mask=mask[None, :])
        last, half = stop - 1, count // 2
        xs = _rows(u, u_row, start, 1, start, last, d, mask, AHEAD)
        raws = _rows(delta, delta_row, start, 1, start, last, d, mask, AHEAD)
        xs_b = _rows(u_b, ub_row, last, -1, start, last, d, mask, AHEAD)
        raws_b = _rows(delta_b, deltab_row, last, -1, start, last, d, mask, AHEAD)
        for j in range(0, half // AHEAD):
            now_xs, now_raws, now_xs_b, now_raws_b = xs, raws, xs_b, raws_b
            at, at_b = start + j * AHEAD, last - j * AHEAD
            xs = _rows(u, u_row, at + AHEAD, 1, start, last, d, mask, AHEAD)
            raws = _rows(delta, delta_row, at + AHEAD, 1, start, last, d, mask, AHEAD)
            xs_b = _rows(u_b, ub_row, at_b - AHEAD, -1, start, last, d, mask, AHEAD)
            raws_b = _rows(delta_b, deltab_row, at_b - AHEAD, -1, start, last, d, mask, AHEAD)
            for k in tl.static_range(AHEAD):
                t, t_b = at + k, at_b - k
                _keep(checkpoints, h, batch, chunks, 0, b, t, length, channels, one, d, n, mask, False, CHUNK, N)
                _keep(checkpoints, h_b, batch, chunks, 1, b, t_b, length, channels, one, d, n, mask, True, CHUNK, N)
                x, raw = now_xs[k].to(tl.float32), now_raws[k].to(tl.float32)
                x_b, raw_b = now_xs_b[k].to(tl.float32), now_raws_b[k].to(tl.float32)
                h, out = _step(h, rates, raw, x, skip, shift, weights + t * (2 * N), n, N, SOFTPLUS)
                h_b, out_b = _step(h_b, rates_b, raw_b, x_b, skip_b, shift_b, weights_b + t_b * (2 * N), n, N, SOFTPLUS)
                tl.store(scratch + t * channels + d, out, mask=mask)
                tl.store(scratch + t_b * channels + d, out_b, mask=mask)
        for i in range(half // AHEAD * AHEAD, half):
            t, t_b = start + i, last - i
            _keep(checkpoints, h, batch, chunks, 0, b, t, length, channels, one, d, n, mask, False, CHUNK, N)
            _keep(checkpoints, h_b, batch, chunks, 1, b, t_b, length, channels, one, d, n, mask, True, CHUNK, N)
            x, raw = _row(u, u_row, t, d, mask).to(tl.float32), _row(delta, delta_row, t, d, mask).to(tl.float32)
            x_b = _row(u_b, ub_row, t_b, d, mask).to(tl.float32)
            raw_b = _row(delta_b, deltab_row, t_b, d, mask).to(tl.float32)
            h, out = _step(h, rates, raw, x, skip, shift, weights + t * (2 * N), n, N, SOFTPLUS)
            h_b, out_b = _step(h_b, rates_b, raw_b, x_b, skip_b, shift_b, weights_b + t_b * (2 * N), n, N, SOFTPLUS)
            tl.store(scratch + t * channels + d, out, mask=mask)
            tl.store(scratch + t_b * channels + d, out_b, mask=mask)
        # A thread reads back what it wrote itself, unless a compiler lays the two loops out differently.
        tl.debug_barrier()
        middle, middle_b = start + half, last - half
        next_x, next_raw = _row(u, u_row, middle, d, mask), _row(delta, delta_row, middle, d, mask)
        next_x_b, next_raw_b = _row(u_b, ub_row, middle_b, d, mask), _row(delta_b, deltab_row, middle_b, d, mask)
        next_other, next_other_b = _row(scratch, channels, middle, d, mask), _row(scratch, channels, middle_b, d, mask)
        next_z, next_z_b = _row_of(z, z_row, middle, d, mask), _row_of(z, z_row, middle_b, d, mask)
        for i in range(half, count):
            t, t_b = start + i, last - i
            x, raw = next_x.to(tl.float32), next_raw.to(tl.float32)
            x_b, raw_b = next_x_b.to(tl.float32), next_raw_b.to(tl.float32)
            other, other_b = next_other, next_other_b
            gate, gate_b = next_z, next_z_b
            after, before = tl.minimum(t + 1, last), tl.maximum(t_b - 1, start)
            next_x, next_raw = _row(u, u_row, after, d, mask), _row(delta, delta_row, after, d, mask)
            next_x_b, next_raw_b = _row(u_b, ub_row, before, d, mask), _row(delta_b, deltab_row, before, d, mask)
            next_other, next_other_b = _row(scratch, channels, after, d, mask), _row(scratch, channels, before, d, mask)
            next_z, next_z_b = _row_of(z, z_row, after, d, mask), _row_of(z, z_row, before, d, mask)
            _keep(checkpoints, h, batch, chunks, 0, b, t, length, channels, one, d, n, mask, False, CHUNK, N)
            _keep(checkpoints, h_b, batch, chunks, 1, b, t_b, length, channels, one, d, n, mask, True, CHUNK, N)
            h, out = _step(h, rates, raw, x, skip, shift, weights + t * (2 * N), n, N, SOFTPLUS)
            h_b, out_b = _step(h_b, rates_b, raw_b, x_b, skip_b, shift_b, weights_b + t_b * (2 * N), n, N, SOFTPLUS)
            # In the middle of an odd number of tokens the two meet, and nothing is in scratch.
            total = out + tl.where(t == t_b, out_b, other)
            total_b = out_b + tl.where(t == t_b, out, other_b)
            _finish(total, y, kept, z, gate, t, channels, d, mask)
            _finish(total_b, y, kept, z, gate_b, t_b, channels, d, mask)
    else:
        first = start
        if REVERSE:
            first = stop - 1
        next_x, next_raw = _row(u, u_row, first, d, mask), _row(delta, delta_row, first, d, mask)
        next_z = _row_of(z, z_row, first, d, mask)
        for i in range(0, count):
            t, after = start + i, tl.minimum(start + i + 1, stop - 1)
            if REVERSE:
                t, after = stop - 1 - i, tl.maximum(stop - 2 - i, start)
            x, raw = next_x.to(tl.float32), next_raw.to(tl.float32)
            gate = next_z
            next_x, next_raw = _row(u, u_row, after, d, mask), _row(delta, delta_row, after, d, mask)
            next_z = _row_of(z, z_row, after, d, mask)
            _keep(checkpoints, h, batch, chunks, 0, b, t, length, channels, one, d, n, mask, REVERSE, CHUNK, N)
            h, out = _step(h, rates, raw, x, skip, shift, weights + t * (2 * N), n, N, SOFTPLUS)
            _finish(out, y, kept, z, gate, t, channels, d, mask)


@triton.jit(do_not_specialize=_ANY, do_not_specialize_on_alignment=_TILED)
def walk(
    u, u_batch, u_row, delta, delta_batch, delta_row, A, bias,
    u_b, ub_batch, ub_row, delta_b, deltab_batch, deltab_row, A_b, bias_b,
    dy, dy_batch, dy_row, BC, entry, ends, totals, inner, dts,
    batch, length, channels, states, one, segment, segments, tiles,
    TWO: tl.constexpr, REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, ADJOINT: tl.constexpr,
    TILE: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Only the states of one segment and direction, from a state buffer per segment (entry) or from 0.

    Written if given: ends, a state buffer that receives the state behind the segment; totals (direction, batch,
    segments, channels), the sum of dt; inner, a state buffer per tile; dts (direction, batch, length, channels), dt.

    ADJOINT walks the state's gradient the other way: G = exp(dt A) (G + C dy), what a token hands to the one before it.
    """
    if tl.program_id(1) == 0:
        _walk(
            u, u_batch, u_row, delta, delta_batch, delta_row, A, bias, dy, dy_batch, dy_row,
            BC, entry, ends, totals, inner, dts, 0,
            batch, length, channels, states, one, segment, segments, tiles,
            REVERSE, SOFTPLUS, ADJOINT, TILE, N, BLOCK,
        )  # fmt: skip
    elif TWO:
        _walk(
            u_b, ub_batch, ub_row, delta_b, deltab_batch, deltab_row, A_b, bias_b, dy, dy_batch, dy_row,
            BC, entry, ends, totals, inner, dts, 1,
            batch, length, channels, states, one, segment, segments, tiles,
            True, SOFTPLUS, ADJOINT, TILE, N, BLOCK,
        )  # fmt: skip


@triton.jit
def _walk(
    u, u_batch, u_row, delta, delta_batch, delta_row, A, bias, dy, dy_batch, dy_row,
    BC, entry, ends, totals, inner, dts, direction: tl.constexpr,
    batch, length, channels, states, one, segment, segments, tiles,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, ADJOINT: tl.constexpr,
    TILE: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(channels, BLOCK)
    pid = tl.program_id(0)
    d = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)
    b = pid // blocks // segments
    piece = pid // blocks % segments
    n = tl.arange(0, N)
    mask = d < channels
    start = piece.to(tl.int64) * segment
    stop = tl.minimum(start + segment, length)

    wide = b.to(tl.int64)
    delta += wide * delta_batch
    if ADJOINT:
        x_from = dy + wide * dy_batch
        x_row = dy_row
    else:
        x_from = u + wide * u_batch
        x_row = u_row
    weights = BC + (direction * batch + wide) * length * (2 * N)
    if dts is not None:
        dts += (direction * batch + wide) * length * channels
    rates = _rates(A, states, channels, d, n, mask)
    shift = _channels(bias, d, mask)
    total = tl.zeros([BLOCK], tl.float32)
    h = tl.zeros([N, BLOCK], tl.float32)
    if entry is not None:
        h = tl.load(_state(entry, batch, segments, direction, b, piece, channels, one, d, n, N), mask=mask[None, :])

    backwards: tl.constexpr = REVERSE != ADJOINT
    first = start
    if backwards:
        first = stop - 1
    next_x = _row(x_from, x_row, first, d, mask)
    next_raw = _row(delta, delta_row, first, d, mask)
    for i in range(0, (stop - start).to(tl.int32)):
        x, raw = next_x.to(tl.float32), next_raw.to(tl.float32)
        t = start + i
        after = tl.minimum(t + 1, stop - 1)
        if backwards:
            t = stop - 1 - i
            after = tl.maximum(t - 1, start)
        next_x = _row(x_from, x_row, after, d, mask)
        next_raw = _row(delta, delta_row, after, d, mask)
        if inner is not None:
            enters = t % TILE == 0
            if REVERSE:
                enters = (t + 1) % TILE == 0 or t == length - 1
            if enters:
                at = _state(inner, batch, tiles, direction, b, t // TILE, channels, one, d, n, N)
                tl.store(at, h, mask=mask[None, :])
        dt = raw + shift
        if SOFTPLUS:
            dt = _softplus(dt)
        if dts is not None:
            tl.store(dts + t * channels + d, dt, mask=mask)
        total += dt
        decay = tl.exp2(dt[None, :] * rates)
        if ADJOINT:
            C = tl.load(weights + t * (2 * N) + N + n)
            h = decay * (h + C[:, None] * x[None, :])
        else:
            B = tl.load(weights + t * (2 * N) + n)
            h = decay * h + B[:, None] * (dt * x)[None, :]
    if ends is not None:
        tl.store(_state(ends, batch, segments, direction, b, piece, channels, one, d, n, N), h, mask=mask[None, :])
        at = ((direction * batch + b).to(tl.int64) * segments + piece) * channels
        tl.store(totals + at + d, total, mask=mask)


@triton.jit(do_not_specialize=_ANY, do_not_specialize_on_alignment=_TILED)
def combine(
    A, A_b, ends, totals, batch, channels, states, one, segments,
    TWO: tl.constexpr, REVERSE: tl.constexpr, ADJOINT: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Turns the states behind segments that started from 0 into the states before them, in place.

    The decay over a segment is exp(A times the sum of dt): linear systems add up.
    """
    if tl.program_id(2) == 0:
        _combine(A, ends, totals, 0, batch, channels, states, one, segments, REVERSE != ADJOINT, N, BLOCK)
    elif TWO:
        _combine(A_b, ends, totals, 1, batch, channels, states, one, segments, not ADJOINT, N, BLOCK)


@triton.jit
def _combine(
    A, ends, totals, direction: tl.constexpr, batch, channels, states, one, segments,
    backwards: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b = tl.program_id(1)
    n = tl.arange(0, N)
    mask = d < channels
    rates = _rates(A, states, channels, d, n, mask)
    h = tl.zeros([N, BLOCK], tl.float32)
    totals += (direction * batch + b).to(tl.int64) * segments * channels + d
    first = 0
    if backwards:
        first = segments - 1
    next_dt = tl.load(totals + first * channels, mask=mask, other=0.0)
    next_end = tl.load(_state(ends, batch, segments, direction, b, first, channels, one, d, n, N), mask=mask[None, :])
    for i in range(0, segments):
        piece, after = i, tl.minimum(i + 1, segments - 1)
        if backwards:
            piece, after = segments - 1 - i, tl.maximum(segments - 2 - i, 0)
        dt, end = next_dt, next_end
        # The next piece is asked for before this one's state is written: a load does not overtake a store.
        next_dt = tl.load(totals + after * channels, mask=mask, other=0.0)
        next_end = tl.load(
            _state(ends, batch, segments, direction, b, after, channels, one, d, n, N), mask=mask[None, :]
        )
        tl.store(_state(ends, batch, segments, direction, b, piece, channels, one, d, n, N), h, mask=mask[None, :])
        h = tl.exp2(dt[None, :] * rates) * h + end


@triton.jit(do_not_specialize=["length"])
def gate_backward(
    grad, grad_batch, grad_row, z, z_batch, z_row, kept, dz, dy, result, length, channels,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients of the gate, and of the result before it (dy); the gated result again, if there is room for it."""
    t = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b = tl.program_id(2).to(tl.int64)
    mask = (t < length)[:, None] & (d < channels)[None, :]
    g = tl.load(grad + b * grad_batch + t[:, None] * grad_row + d[None, :], mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(z + b * z_batch + t[:, None] * z_row + d[None, :], mask=mask, other=0.0).to(tl.float32)
    at = (b * length + t[:, None]) * channels + d[None, :]
    y = tl.load(kept + at, mask=mask, other=0.0).to(tl.float32)
    sigma = _sigmoid(gate)
    tl.store(dz + at, g * y * sigma * (1.0 + gate * (1.0 - sigma)), mask=mask)
    tl.store(dy + at, g * gate * sigma, mask=mask)
    if result is not None:
        tl.store(result + at, y * (gate * sigma), mask=mask)  # in the order of `_finish`


@triton.jit(do_not_specialize=_ANY, do_not_specialize_on_alignment=_TILED)
def scan_backward(
    u, A, D, du, ddelta, u_b, A_b, D_b, du_b, ddelta_b, dy, BC, dts, inner, entry, dBC, dA, dchannels,
    batch, length, channels, states, one, segment, segments, tiles,
    TWO: tl.constexpr, REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr,
    TILE: tl.constexpr, GROUPS: tl.constexpr, N: tl.constexpr, LANES: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Gradients of one direction of one segment, from the end of the scan to its beginning.

    u and dy are contiguous here. dts and inner are those of `walk`; entry is the state buffer per segment of its
    adjoint, or None for 0. Sums are partial, each program its own, so that equal calls give equal bits: dBC (channel
    block, direction, batch, length, 2, N), dA (a state buffer per segment), dchannels (direction, batch, segments, 2,
    channels) of D and bias.

    A program has GROUPS tiles (N, LANES) of channels. With LANES below 32 the states of a channel are spread over 32 /
    LANES threads, and a sum over channels takes fewer shuffles, one over states more: the cheapest is in between.
    """
    direction = tl.program_id(1)
    reverse = REVERSE
    if TWO:
        # One body for both: it is long, and compiling it takes its time.
        second = direction == 1
        reverse = second
        u, A = tl.where(second, u_b, u), tl.where(second, A_b, A)
        du, ddelta = tl.where(second, du_b, du), tl.where(second, ddelta_b, ddelta)
        if D is not None:
            D = tl.where(second, D_b, D)
    blocks = tl.cdiv(channels, GROUPS * LANES)
    pid = tl.program_id(0)
    block = pid % blocks
    b = pid // blocks // segments
    piece = pid // blocks % segments
    n = tl.arange(0, N)
    start = piece.to(tl.int64) * segment
    stop = tl.minimum(start + segment, length)

    wide = b.to(tl.int64)
    u += wide * length * channels
    dy += wide * length * channels
    du += wide * length * channels
    ddelta += wide * length * channels
    row = (direction * batch + wide) * length
    dts += row * channels
    weights = BC + row * (2 * N)
    dBC += (block.to(tl.int64) * tl.num_programs(1) * batch * length + row) * (2 * N)

    # Addresses of the first group; those of the others are constant distances away.
    lane = block * (GROUPS * LANES) + tl.arange(0, LANES)
    u += lane
    dy += lane
    du += lane
    ddelta += lane
    dts += lane
    rates = ()
    skip = ()
    G = ()
    grad_A = ()
    grad_D = ()
    grad_bias = ()
    for c in tl.static_range(GROUPS):
        d = lane + c * LANES
        mask = d < channels
        rates = rates + (_rates(A, states, channels, d, n, mask),)  # noqa: RUF005
        skip = skip + (_channels(D, d, mask),)  # noqa: RUF005
        if entry is None:
            G = G + (tl.zeros([N, LANES], tl.float32),)  # noqa: RUF005
        else:
            at = _state(entry, batch, segments, direction, b, piece, channels, one, d, n, N)
            G = G + (tl.load(at, mask=mask[None, :], other=0.0),)  # noqa: RUF005
        grad_A = grad_A + (tl.zeros([N, LANES], tl.float32),)  # noqa: RUF005
        grad_D = grad_D + (tl.zeros([LANES], tl.float32),)  # noqa: RUF005
        grad_bias = grad_bias + (tl.zeros([LANES], tl.float32),)  # noqa: RUF005

    count = tl.cdiv((stop - start).to(tl.int32), TILE)
    first_tile = start // TILE
    after = tl.where(reverse, -1, 1)
    for i in range(0, count):
        tile = first_tile + tl.where(reverse, i, count - 1 - i)
        first = tile * TILE + tl.where(reverse, TILE - 1, 0)
        # Whole addresses once per tile, then distances: 64-bit products for every token would be half of the work.
        at_dt, at_u, at_BC = dts + first * channels, u + first * channels, weights + first * (2 * N)
        at_dy = dy + first * channels
        # The states before every token of the tile, recomputed. Tokens behind the last have dt = 0 and change nothing.
        hidden = ()
        # What the second pass reads again.
        kept_dt = ()
        kept_x = ()
        kept_dy = ()
        for c in tl.static_range(GROUPS):
            d = lane + c * LANES
            at = _state(inner, batch, tiles, direction, b, tile, channels, one, d, n, N)
            # What lies behind the last channel was never written, and sums over channels must not see it.
            mask = lane + (0 if EVEN else c * LANES) < channels
            hidden = hidden + (tl.load(at, mask=mask[None, :], other=0.0),)  # noqa: RUF005
        for k in tl.static_range(TILE):
            t = first + k * after
            B = tl.load(at_BC + k * after * (2 * N) + n, mask=n < tl.where(t < length, N, 0), other=0.0)
            limit = tl.where(t < length, channels, 0)
            for c in tl.static_range(GROUPS):
                inside = lane + (0 if EVEN else c * LANES) < limit
                dt = tl.load(at_dt + k * after * channels + c * LANES, mask=inside, other=0.0)
                x = tl.load(at_u + k * after * channels + c * LANES, mask=inside, other=0.0)
                g_y = tl.load(at_dy + k * after * channels + c * LANES, mask=inside, other=0.0)
                kept_dt = kept_dt + (dt,)  # noqa: RUF005
                kept_x = kept_x + (x,)  # noqa: RUF005
                kept_dy = kept_dy + (g_y,)  # noqa: RUF005
                x = x.to(tl.float32)
                h = tl.exp2(dt[None, :] * rates[c]) * hidden[k * GROUPS + c] + B[:, None] * (dt * x)[None, :]
                hidden = hidden + (h,)  # noqa: RUF005
        # The same, unknown to the compiler: or else it keeps every address of the first pass in a register.
        first = first * one
        at_BC, at_dBC = weights + first * (2 * N), dBC + first * (2 * N)
        at_du, at_ddelta = du + first * channels, ddelta + first * channels
        for k in tl.static_range(TILE - 1, -1, -1):
            t = first + k * after
            real = n < tl.where(t < length, N, 0)
            limit = tl.where(t < length, channels, 0)
            B = tl.load(at_BC + k * after * (2 * N) + n, mask=real, other=0.0)
            C = tl.load(at_BC + k * after * (2 * N) + N + n, mask=real, other=0.0)
            for_B = tl.zeros([N, LANES], tl.float32)
            for_C = tl.zeros([N, LANES], tl.float32)
            G_next = ()
            grad_A_next = ()
            grad_D_next = ()
            grad_bias_next = ()
            for c in tl.static_range(GROUPS):
                inside = lane + (0 if EVEN else c * LANES) < limit
                dt = kept_dt[k * GROUPS + c]
                x = kept_x[k * GROUPS + c].to(tl.float32)
                g_y = kept_dy[k * GROUPS + c].to(tl.float32)
                g = G[c] + C[:, None] * g_y[None, :]
                for_C += hidden[(k + 1) * GROUPS + c] * g_y[None, :]
                for_B += g * (dt * x)[None, :]
                grad_dtx = tl.sum(g * B[:, None], 0)
                carried = tl.exp2(dt[None, :] * rates[c]) * g
                grad_exponent = carried * hidden[k * GROUPS + c]
                grad_dt = tl.sum(grad_exponent * rates[c], 0) * _LN_2 + grad_dtx * x
                if SOFTPLUS:
                    grad_dt *= _softplus_slope(dt)
                tl.store(at_du + k * after * channels + c * LANES, grad_dtx * dt + skip[c] * g_y, mask=inside)
                tl.store(at_ddelta + k * after * channels + c * LANES, grad_dt, mask=inside)
                G_next = G_next + (carried,)  # noqa: RUF005
                grad_A_next = grad_A_next + (grad_A[c] + grad_exponent * dt[None, :],)  # noqa: RUF005
                grad_D_next = grad_D_next + (grad_D[c] + g_y * x,)  # noqa: RUF005
                grad_bias_next = grad_bias_next + (grad_bias[c] + grad_dt,)  # noqa: RUF005
            G = G_next
            grad_A = grad_A_next
            grad_D = grad_D_next
            grad_bias = grad_bias_next
            tl.store(at_dBC + k * after * (2 * N) + n, tl.sum(for_B, 1), mask=real)
            tl.store(at_dBC + k * after * (2 * N) + N + n, tl.sum(for_C, 1), mask=real)

    for c in tl.static_range(GROUPS):
        d = lane + c * LANES
        mask = d < channels
        at = _state(dA, batch, segments, direction, b, piece, channels, one, d, n, N)
        tl.store(at, grad_A[c], mask=mask[None, :])
        at = ((direction * batch + b).to(tl.int64) * segments + piece) * 2 * channels
        tl.store(dchannels + at + d, grad_D[c], mask=mask)
        tl.store(dchannels + at + channels + d, grad_bias[c], mask=mask)
