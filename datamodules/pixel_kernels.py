"""Compiled loops over pixels: 4:2:0 frames to RGB, resized on the way, and pictures to separate colours.

Each loop body is a handful of instructions on vectors of LLVM's own types, since numba widens integers to 64 bits and
then finds no vectors. The arithmetic is that of libswscale (YUV to RGB) and of torch (resizing), bit for bit;
`datamodules.pixels` verifies that before it uses them. All memory is named by byte addresses and byte steps between
rows, which may be negative. A row is done 32 pixels at a time (16 where rows are blended), the last ones of which
overlap those before them, so that no row may be shorter. "RGBX" is a pixel in four bytes, the last one without meaning.

`matrix` stands for six integers (`pixels._matrix`): what is taken off luma, in 1/8, then the factors of luma, of V in
red, of U in blue, of V in green and of U in green, in 1/8192.
"""

from collections.abc import Callable
from contextlib import suppress

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

__all__ = ["SCRATCH_PIXELS", "separate_colours", "yuv_to_rgb", "yuv_to_rgb_resized"]

SCRATCH_PIXELS = 32
"""Room that a line of RGBX needs behind its last pixel, in pixels."""

_BYTE, _SHORT, _INT, _LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))


def _loop(function: Callable) -> Callable:
    """Compiles a function at its first call, without the interpreter's lock, and keeps the machine code on disk."""
    compiled = njit(nogil=True, error_model="numpy")(function)
    # Without any place to write to, every process compiles for itself.
    with suppress(RuntimeError):
        compiled.enable_caching()
    return compiled


def _pointer(builder, address, kind):
    return builder.inttoptr(address, kind.as_pointer())


def _load(builder, address, element, count: int):
    return builder.load(_pointer(builder, address, ir.VectorType(element, count)), align=1)


def _store(builder, address, value) -> None:
    builder.store(value, _pointer(builder, address, value.type), align=1)


def _pick(builder, vector, lanes, other=None):
    """The lanes of one vector, or of two side by side, in a new order."""
    other = ir.Constant(vector.type, ir.Undefined) if other is None else other
    lanes = list(lanes)
    return builder.shuffle_vector(vector, other, ir.Constant(ir.VectorType(_INT, len(lanes)), lanes))


def _every(builder, scalar, element, count: int):
    """An int64 in every lane."""
    one = ir.Constant(ir.VectorType(element, count), ir.Undefined)
    one = builder.insert_element(one, builder.trunc(scalar, element), ir.Constant(_INT, 0))
    return _pick(builder, one, [0] * count)


def _constant(element, count: int, value: int):
    return ir.Constant(ir.VectorType(element, count), [value] * count)


def _upper_half(builder, vector, factor):
    """The upper 16 bits of the products of int16 lanes."""
    count = vector.type.count
    wide = ir.VectorType(_INT, count)
    product = builder.mul(builder.sext(vector, wide), builder.sext(_every(builder, factor, _SHORT, count), wide))
    return builder.trunc(builder.ashr(product, _constant(_INT, count, 16)), vector.type)


def _to_bytes(builder, vector):
    """int16 lanes cut to 0 .. 255."""
    low, high = (_constant(_SHORT, vector.type.count, value) for value in (0, 255))
    vector = builder.select(builder.icmp_signed(">", vector, low), vector, low)
    vector = builder.select(builder.icmp_signed("<", vector, high), vector, high)
    return builder.trunc(vector, ir.VectorType(_BYTE, vector.type.count))


def _colours(builder, y, u, v, matrix):
    """Red, green and blue of 32 pixels from the addresses of their luma and of the 16 chroma values they share."""
    offset, luma, red_v, blue_u, green_v, green_u = matrix

    def eighths(address, count: int):
        wide = builder.zext(_load(builder, address, _BYTE, count), ir.VectorType(_SHORT, count))
        return builder.shl(wide, _constant(_SHORT, count, 3))

    def twice(vector):
        return _pick(builder, vector, [lane // 2 for lane in range(32)])

    light = builder.sub(eighths(y, 32), _every(builder, offset, _SHORT, 32))
    light = _upper_half(builder, light, luma)
    u, v = (builder.sub(eighths(address, 16), _constant(_SHORT, 16, 128 * 8)) for address in (u, v))
    green = builder.add(_upper_half(builder, u, green_u), _upper_half(builder, v, green_v))
    shares = (_upper_half(builder, v, red_v), green, _upper_half(builder, u, blue_u))
    return [_to_bytes(builder, builder.add(light, twice(share))) for share in shares]


@intrinsic
def _rgb_of_32(typing, y, u, v, out, offset, luma, red_v, blue_u, green_v, green_u):
    """Writes 96 bytes."""

    def generate(context, builder, signature, arguments):
        red, green, blue = _colours(builder, *arguments[:3], arguments[4:])
        two, third = _pick(builder, red, range(64), green), _pick(builder, blue, range(64), blue)
        rgb = _pick(builder, two, [lane % 3 * 32 + lane // 3 for lane in range(96)], third)
        _store(builder, arguments[3], rgb)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), generate


@intrinsic
def _rgbx_of_32(typing, y, u, v, out, offset, luma, red_v, blue_u, green_v, green_u):
    """Writes 128 bytes."""

    def generate(context, builder, signature, arguments):
        wide = ir.VectorType(_INT, 32)
        red, green, blue = (
            builder.shl(builder.zext(colour, wide), _constant(_INT, 32, 8 * place))
            for place, colour in enumerate(_colours(builder, *arguments[:3], arguments[4:]))
        )
        _store(builder, arguments[3], builder.or_(builder.or_(red, green), blue))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), generate


def _rounded(builder, total, bits):
    """int32 lanes, divided by 2 ** bits and rounded, as bytes."""
    count = total.type.count
    half = builder.lshr(builder.shl(ir.Constant(_LONG, 1), bits), ir.Constant(_LONG, 1))
    total = builder.add(total, _every(builder, half, _INT, count))
    shifted = builder.ashr(total, _every(builder, bits, _INT, count))
    return builder.trunc(shifted, ir.VectorType(_BYTE, count))


@intrinsic
def _four_columns(typing, line, a, b, c, d, weights, bits, out):
    """Four RGBX pixels, each weighted from the two that begin at an offset (a to d) in a line of them.

    weights: address of 32 int16, both weights of a pixel four times over.
    """

    def generate(context, builder, signature, arguments):
        line, *offsets, weights, bits, out = arguments
        pairs = ir.Constant(ir.VectorType(_LONG, 4), ir.Undefined)
        for place, offset in enumerate(offsets):
            pair = builder.load(_pointer(builder, builder.add(line, offset), _LONG), align=1)
            pairs = builder.insert_element(pairs, pair, ir.Constant(_INT, place))
        pairs = builder.bitcast(pairs, ir.VectorType(_BYTE, 32))
        # The two bytes of a colour side by side, as the instruction that multiplies and adds pairs wants them.
        pairs = _pick(builder, pairs, [8 * n + 4 * side + x for n in range(4) for x in range(4) for side in (0, 1)])
        values = builder.zext(pairs, ir.VectorType(_SHORT, 32))
        weights = _load(builder, weights, _SHORT, 32)
        left, right = (
            builder.mul(*(builder.sext(_pick(builder, x, side), ir.VectorType(_INT, 16)) for x in (values, weights)))
            for side in (range(0, 32, 2), range(1, 32, 2))
        )
        _store(builder, out, _rounded(builder, builder.add(left, right), bits))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), generate


@intrinsic
def _sixteen_of_two_rows(typing, above, below, weight_above, weight_below, bits, out):
    """Sixteen RGB pixels, 48 bytes, from two rows of RGBX."""

    def generate(context, builder, signature, arguments):
        *rows, weight_above, weight_below, bits, out = arguments
        wide = ir.VectorType(_INT, 64)
        above, below = (
            builder.mul(builder.zext(_load(builder, row, _BYTE, 64), wide), _every(builder, weight, _INT, 64))
            for row, weight in zip(rows, (weight_above, weight_below), strict=True)
        )
        rgbx = _rounded(builder, builder.add(above, below), bits)
        _store(builder, out, _pick(builder, rgbx, [lane // 3 * 4 + lane % 3 for lane in range(48)]))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), generate


@intrinsic
def _colours_of_32(typing, source, red, green, blue):
    """96 bytes of RGB to 32 bytes of each colour."""

    def generate(context, builder, signature, arguments):
        source, *colours = arguments
        rgb = _load(builder, source, _BYTE, 96)
        for colour, out in enumerate(colours):
            _store(builder, out, _pick(builder, rgb, range(colour, 96, 3)))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@intrinsic
def _int32_at(typing, address):
    def generate(context, builder, signature, arguments):
        return builder.sext(builder.load(_pointer(builder, arguments[0], _INT), align=4), _LONG)

    return types.int64(types.int64), generate


@_loop
def yuv_to_rgb(y, y_step, u, u_step, v, v_step, out, out_step, width, height, matrix):
    """A 4:2:0 frame to RGB, 3 bytes a pixel; the width is even."""
    last = width - 32
    for row in range(height):
        y_row, u_row, v_row, to = (
            y + row * y_step,
            u + (row >> 1) * u_step,
            v + (row >> 1) * v_step,
            out + row * out_step,
        )
        for start in range(0, width, 32):
            x = start if start < last else last
            _rgb_of_32(y_row + x, u_row + (x >> 1), v_row + (x >> 1), to + 3 * x, *matrix)


@_loop
def yuv_to_rgb_resized(
    y, y_step, u, u_step, v, v_step, out, out_step, width, height, out_width, out_height,
    column_offsets, column_weights, column_bits, row_numbers, row_weights, row_bits, scratch, matrix,
):  # fmt: skip
    """A 4:2:0 frame to RGB of another size, from two neighbours in a row and in a column.

    Only rows that are looked at are converted; two of them, already of the new width, are kept.

    Args:
        column_offsets: int32, where a pixel's left neighbour begins in a row of RGBX, in bytes; a multiple of four.
        column_weights: int16, of both neighbours four times over, times 2 ** column_bits.
        row_numbers: int32, the row above.
        row_weights: int32, of the rows above and below, times 2 ** row_bits.
        scratch: room for a line of `width` and two of `out_width` pixels RGBX, each with `SCRATCH_PIXELS` more.
    """
    one = scratch + 4 * (width + SCRATCH_PIXELS)
    two = one + 4 * (out_width + SCRATCH_PIXELS)
    in_one, in_two = -1, -1
    last, last_out = width - 32, out_width - 16
    for number in range(out_height):
        above = _int32_at(row_numbers + 4 * number)
        below = above + 1 if above + 1 < height else above
        for side in range(2):
            row, other = (below, above) if side else (above, below)
            if row in (in_one, in_two):
                continue
            line = one
            if in_one == other:
                line, in_two = two, row
            else:
                in_one = row
            y_row, u_row, v_row = y + row * y_step, u + (row >> 1) * u_step, v + (row >> 1) * v_step
            for start in range(0, width, 32):
                x = start if start < last else last
                _rgbx_of_32(y_row + x, u_row + (x >> 1), v_row + (x >> 1), scratch + 4 * x, *matrix)
            for x in range(0, out_width, 4):
                at = column_offsets + 4 * x
                _four_columns(
                    scratch, _int32_at(at), _int32_at(at + 4), _int32_at(at + 8), _int32_at(at + 12),
                    column_weights + 16 * x, column_bits, line + 4 * x,
                )  # fmt: skip
        weights = row_weights + 8 * number
        upper, lower = one if above == in_one else two, one if below == in_one else two
        for start in range(0, out_width, 16):
            x = start if start < last_out else last_out
            _sixteen_of_two_rows(
                upper + 4 * x, lower + 4 * x, _int32_at(weights), _int32_at(weights + 4), row_bits,
                out + number * out_step + 3 * x,
            )  # fmt: skip


@_loop
def separate_colours(source, frame_step, row_step, out, out_frame_step, out_colour_step, frames, height, width):
    """Pictures of RGB, 3 bytes a pixel, to one plane per colour, whose rows follow each other without a gap."""
    last = width - 32
    for frame in range(frames):
        for row in range(height):
            at = source + frame * frame_step + row * row_step
            red = out + frame * out_frame_step + row * width
            for start in range(0, width, 32):
                x = start if start < last else last
                _colours_of_32(at + 3 * x, red + x, red + out_colour_step + x, red + 2 * out_colour_step + x)
