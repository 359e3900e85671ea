"""Sixteen float32 lanes as one value inside numba functions.

Numba leaves vectors to LLVM's loop optimiser, which keeps to 256 bits on CPUs that have 512 and gives up on loops with
an exponential in them. `Lanes` is LLVM's own vector type `<16 x float>`: LLVM maps it onto one AVX-512 register, two of
AVX2 or four of NEON, so one source serves every CPU. Memory is addressed by plain integers (`tensor.data_ptr()` plus a
byte offset) because numba's arrays add a sign test to every index and compile anew for every memory layout.
"""

import operator
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from hashlib import sha256
from pathlib import Path

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.caching import FunctionCache
from numba.extending import intrinsic, models, overload, register_model

__all__ = [
    "LANES",
    "LOG2_E",
    "ONE",
    "VECTOR_BYTES",
    "ZERO",
    "exp2",
    "fma",
    "kernel",
    "least",
    "load",
    "load_first",
    "load_four",
    "load_numbers",
    "most",
    "prefetch",
    "sigmoid",
    "softplus",
    "softplus_and_slope",
    "splat",
    "splat_at",
    "store",
    "store_first",
    "store_four",
    "store_numbers",
    "store_totals",
]

LANES = 16
VECTOR_BYTES = 64
LOG2_E = np.float32(1.4426950408889634)
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)

_FLOAT = ir.FloatType()
_INT = ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_INTS = ir.VectorType(_INT, LANES)
_HALVES = ir.VectorType(ir.IntType(16), LANES)
# No "nnan"/"ninf": a NaN in the input has to come out as a NaN.
_FLAGS = ("contract", "reassoc", "nsz", "arcp")


class LanesType(types.Type):
    """Numba's type of sixteen float32 values held in registers."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


lanes = LanesType()


class _Cache(FunctionCache):
    """Numba's cache of machine code, which would miss changes outside a kernel's own file: this one joins the key."""

    _digest = sha256(Path(__file__).read_bytes()).hexdigest()

    def _index_key(self, signature, codegen):
        return *super()._index_key(signature, codegen), self._digest


def kernel(function: Callable) -> Callable:
    """Compile a function at its first call, without the interpreter's lock, and keep the machine code on disk.

    Numba keeps it beside the source, or in the user's cache folder where that is read-only, or in NUMBA_CACHE_DIR.
    """
    compiled = njit(nogil=True, error_model="numpy")(function)
    # Without any place to write to, every process compiles for itself.
    with suppress(RuntimeError):
        compiled._cache = _Cache(function)
    return compiled


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


def _pointer(builder, address, pointee):
    return builder.inttoptr(address, pointee.as_pointer())


def _splat(builder, scalar):
    nothing = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    one = builder.insert_element(nothing, scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(one, nothing, ir.Constant(_INTS, [0] * LANES))


def _constant(value: float):
    return ir.Constant(_VECTOR, [value] * LANES)


def _first(builder, count):
    """Mask of the first `count` (int64) lanes."""
    wide = _splat(builder, builder.trunc(count, _INT))
    return builder.icmp_signed("<", ir.Constant(_INTS, list(range(LANES))), wide)


def _call(builder, name: str, result, *arguments):
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _instructions(result, *kinds) -> Callable:
    """Make a function of numba of one that is given LLVM's builder and values, and returns a value unless void."""

    def decorate(generate: Callable) -> Callable:
        @wraps(generate)  # numba reads the signature, and leaves out its first argument
        def typed(typing, *given):
            def lower(context, builder, signature, arguments):
                value = generate(builder, *arguments)
                return context.get_dummy_value() if result == types.void else value

            return result(*kinds), lower

        return intrinsic(typed)

    return decorate


@_instructions(lanes, types.int64)
def load(builder, address):
    """Sixteen floats from a byte address."""
    return builder.load(_pointer(builder, address, _VECTOR), align=4)


@_instructions(types.void, types.int64, lanes)
def store(builder, address, value):
    """Sixteen floats to a byte address."""
    builder.store(value, _pointer(builder, address, _VECTOR), align=4)


@_instructions(lanes, types.int64, types.int64)
def load_first(builder, address, count):
    """The first `count` floats from a byte address, zeros in the other lanes; what lies behind them is not touched."""
    pointer, mask = _pointer(builder, address, _VECTOR), _first(builder, count)
    name = "llvm.masked.load.v16f32.p0"
    return _call(builder, name, _VECTOR, pointer, ir.Constant(_INT, 4), mask, _constant(0.0))


@_instructions(types.void, types.int64, lanes, types.int64)
def store_first(builder, address, value, count):
    """The first `count` lanes to a byte address; what lies behind them is not touched."""
    pointer, mask = _pointer(builder, address, _VECTOR), _first(builder, count)
    _call(builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), value, pointer, ir.Constant(_INT, 4), mask)


@_instructions(lanes, types.int64, types.int64)
def _load_bfloat16(builder, address, count):
    """As `load_first`, of numbers in bfloat16: the upper halves of float32."""
    pointer, mask = _pointer(builder, address, _HALVES), _first(builder, count)
    zeros = ir.Constant(_HALVES, [0] * LANES)
    halves = _call(builder, "llvm.masked.load.v16i16.p0", _HALVES, pointer, ir.Constant(_INT, 2), mask, zeros)
    return builder.bitcast(builder.shl(builder.zext(halves, _INTS), ir.Constant(_INTS, [16] * LANES)), _VECTOR)


@_instructions(types.void, types.int64, lanes, types.int64)
def _store_bfloat16(builder, address, value, count):
    """As `store_first`, in bfloat16: rounded to the nearest, ties to even; a NaN stays one."""
    half, one, below, nan = (ir.Constant(_INTS, [number] * LANES) for number in (16, 1, 0x7FFF, 0x7FC0))
    bits = builder.bitcast(value, _INTS)
    odd = builder.and_(builder.lshr(bits, half), one)
    rounded = builder.lshr(builder.add(bits, builder.add(below, odd)), half)
    rounded = builder.select(builder.fcmp_unordered("uno", value, value), nan, rounded)
    pointer, mask = _pointer(builder, address, _HALVES), _first(builder, count)
    rounded = builder.trunc(rounded, _HALVES)
    _call(builder, "llvm.masked.store.v16i16.p0", ir.VoidType(), rounded, pointer, ir.Constant(_INT, 2), mask)


@_instructions(types.void, types.int64)
def prefetch(builder, address):
    """Ask for the cache line at a byte address, which may lie outside of all memory: nothing happens then."""
    pointer = _pointer(builder, address, _FLOAT)
    read, keep_near, data = (ir.Constant(_INT, value) for value in (0, 3, 1))
    _call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, read, keep_near, data)


@_instructions(lanes, types.float32)
def splat(builder, value):
    """One float in every lane."""
    return _splat(builder, value)


@_instructions(lanes, types.int64)
def splat_at(builder, address):
    """The float at a byte address in every lane."""
    return _splat(builder, builder.load(_pointer(builder, address, _FLOAT), align=4))


@_instructions(lanes, lanes, lanes, lanes)
def fma(builder, a, b, c):
    """a * b + c, rounded once where the CPU can."""
    return _call(builder, "llvm.fmuladd.v16f32", _VECTOR, a, b, c)


@_instructions(types.void, types.int64, lanes, lanes, lanes, lanes)
def store_totals(builder, address, a, b, c, d):
    """The sums over the lanes of four vectors, as four floats to a byte address."""

    def add(one, other, low, offset):
        """Lanes `low` of the two vectors side by side, plus those `offset` further on."""
        kind = ir.VectorType(_INT, len(low))
        halves = [ir.Constant(kind, [lane + step for lane in low]) for step in (0, offset)]
        return builder.fadd(*(builder.shuffle_vector(one, other, indices) for indices in halves))

    halves = [lane for vector in (0, LANES) for lane in range(vector, vector + 8)]
    quarters = [lane for half in (0, 8, LANES, LANES + 8) for lane in range(half, half + 4)]
    sums = add(add(a, b, halves, 8), add(c, d, halves, 8), quarters, 4)
    sums = add(sums, sums, [0, 1, 4, 5, 8, 9, 12, 13], 2)
    sums = add(sums, sums, [0, 2, 4, 6], 1)
    builder.store(sums, _pointer(builder, address, sums.type), align=4)


@_instructions(lanes, lanes, lanes)
def _maximum(builder, a, b):
    """The larger one; b where either is NaN."""
    return _chosen(builder, ">", a, b)


@_instructions(lanes, lanes, lanes)
def _minimum(builder, a, b):
    """The smaller one; b where either is NaN."""
    return _chosen(builder, "<", a, b)


@_instructions(lanes, lanes, lanes, lanes)
def _where_positive(builder, x, a, b):
    """a where x > 0, b elsewhere."""
    return builder.select(builder.fcmp_ordered(">", x, _constant(0.0)), a, b)


def _overload(operation: Callable, instruction: str) -> None:
    """Give an operator of Python its meaning for `lanes`."""

    @_instructions(lanes, lanes, lanes)
    def apply(builder, a, b):
        return getattr(builder, instruction)(a, b, flags=_FLAGS)

    @overload(operation)
    def chosen(a, b):
        if a == b == lanes:
            return lambda a, b: apply(a, b)


_overload(operator.add, "fadd")
_overload(operator.sub, "fsub")
_overload(operator.mul, "fmul")
_overload(operator.truediv, "fdiv")


# 2 ** f = 1 + f q(f) over -1/2 <= f <= 1/2, q's coefficients from the lowest power; relative error 9.2e-8 (own fit).
# The constant is exactly 1: an error there would grow with every step of a slowly decaying state.
_EXP2 = (0.693146977599066, 0.24022242085215748, 0.055507337433248816, 0.009671512650095443, 0.0013264727206447821)


@intrinsic
def exp2(typing, x):
    """2 ** x to 2e-7 relative: exactly 1 at 0, infinity from 128 up, 0 or tiny from -126 down, NaN stays NaN."""

    def generate(context, builder, signature, arguments):
        _, _, features = context.codegen().magic_tuple()
        return (_exp2_avx512 if "+avx512dq" in features else _exp2_portable)(builder, *arguments)

    return lanes(lanes), generate


def _exp2_avx512(builder, x):
    """One instruction each rounds, takes the rest and scales by a power of two; infinities come out right."""
    every_lane, current_rounding = ir.Constant(ir.IntType(16), -1), ir.Constant(_INT, 4)
    nearest = ir.Constant(_INT, 8)
    whole = _call(builder, "llvm.roundeven.v16f32", _VECTOR, x)
    name = "llvm.x86.avx512.mask.reduce.ps.512"
    p = _exp2_fraction(builder, _call(builder, name, _VECTOR, x, nearest, x, every_lane, current_rounding))
    name = "llvm.x86.avx512.mask.scalef.ps.512"
    return _call(builder, name, _VECTOR, p, whole, p, every_lane, current_rounding)


def _exp2_portable(builder, x):
    x = _chosen(builder, ">", _constant(-126.0), x)
    x = _chosen(builder, "<", _constant(128.0), x)
    # Adding 1.5 * 2 ** 23 rounds to an integer and leaves it in the lowest bits, from where it goes into the exponent.
    shifted = builder.fadd(x, _constant(12582912.0))
    p = _exp2_fraction(builder, builder.fsub(x, builder.fsub(shifted, _constant(12582912.0))))
    exponent = builder.shl(builder.bitcast(shifted, _INTS), ir.Constant(_INTS, [23] * LANES))
    return builder.bitcast(builder.add(builder.bitcast(p, _INTS), exponent), _VECTOR)


def _exp2_fraction(builder, f):
    p = _constant(_EXP2[-1])
    for coefficient in (*_EXP2[-2::-1], 1.0):
        p = _call(builder, "llvm.fmuladd.v16f32", _VECTOR, p, f, _constant(coefficient))
    return p


def _chosen(builder, comparison, a, b):
    return builder.select(builder.fcmp_ordered(comparison, a, b), a, b)


@njit(forceinline=True)
def load_four(address):
    """Four vectors that follow each other from a byte address."""
    return (
        load(address), load(address + VECTOR_BYTES), load(address + 2 * VECTOR_BYTES), load(address + 3 * VECTOR_BYTES)
    )  # fmt: skip


@njit(forceinline=True)
def load_numbers(address, count, size):
    """As `load_first`, of numbers of 4 bytes, float32, or of 2, bfloat16."""
    if size == 2:
        return _load_bfloat16(address, count)
    return load_first(address, count)


@njit(forceinline=True)
def store_numbers(address, value, count, size):
    """As `store_first`, as numbers of 4 bytes, float32, or of 2, bfloat16."""
    if size == 2:
        _store_bfloat16(address, value, count)
    else:
        store_first(address, value, count)


@njit(forceinline=True)
def store_four(address, a, b, c, d):
    """Four vectors, one after the other, to a byte address."""
    store(address, a)
    store(address + VECTOR_BYTES, b)
    store(address + 2 * VECTOR_BYTES, c)
    store(address + 3 * VECTOR_BYTES, d)


@njit(forceinline=True)
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return splat(ONE) / (splat(ONE) + exp2(splat(-LOG2_E) * x))


# atanh(s) / s = 1 + w q(w), w = s ** 2 <= 1 / 9, q's coefficients from the lowest power; relative error 4e-9 (own fit).
_ATANH = tuple(np.float32(c) for c in (0.3333315734, 0.2001245514, 0.1398030134, 0.1408916763))


@njit(forceinline=True)
def softplus(x):
    """log(1 + exp(x)) = max(x, 0) + log1p(e), e = exp(-|x|), log1p(e) = 2 atanh(e / (2 + e)).

    Relative error 7e-7 from x = -10 up, 4e-6 at -80, where the product with log2(e) is rounded more coarsely.
    """
    return _softplus(x, exp2(splat(LOG2_E) * _minimum(x, splat(ZERO) - x)))


@njit(forceinline=True)
def softplus_and_slope(x):
    """softplus(x) and its derivative sigmoid(x), which is 1 / (1 + e) for x >= 0 and e / (1 + e) below."""
    e = exp2(splat(LOG2_E) * _minimum(x, splat(ZERO) - x))
    return _softplus(x, e), _where_positive(x, splat(ONE), e) / (splat(ONE) + e)


@njit(forceinline=True)
def _softplus(x, e):
    s = e / (e + splat(TWO))
    w = s * s
    q = fma(splat(_ATANH[3]), w, splat(_ATANH[2]))
    q = fma(q, w, splat(_ATANH[1]))
    q = fma(q, w, splat(_ATANH[0]))
    q = fma(q, w, splat(ONE))
    return fma(s + s, q, _maximum(splat(ZERO), x))


# Instead of min and max: torch.export replaces those while it traces, and a kernel may be compiled at that moment.
@njit(forceinline=True)
def least(a, b):
    """The smaller of two integers."""
    return a if a < b else b


@njit(forceinline=True)
def most(a, b):
    """The larger of two integers."""
    return a if a > b else b
