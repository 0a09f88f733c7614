"""Attention and activation as loops for the processor.

What is computed for some neighbouring numbers of an array, which a :func:`load` takes at once,
takes one instruction for all, where the processor has one, whether or not the compiler can prove
that arrays do not overlap. All is in one file because what numba keeps on disk is known to be old
by the date of the file.
"""

from __future__ import annotations

import functools
import math
from decimal import Decimal
from typing import Any, Final, cast

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending, types
from numba.core import cgutils
from numba.core.datamodel.models import PrimitiveModel
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from scipy.special import erfcx

from mlmd_calc.models.loops import FAST_MATH, Loops, compiled, inlined, intrinsic

# ---- some numbers at once -------------------------------------------------------------------


class Lanes(types.Type):
    """Some numbers of one precision; what is done with them is done with each of them."""

    def __init__(self, dtype: Any, count: int) -> None:
        self.dtype = dtype
        self.count = count
        super().__init__(name=f"Lanes({dtype}, {count})")


@extending.register_model(Lanes)
class _LanesModel(PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        scalar = manager.lookup(lanes.dtype).get_value_type()
        super().__init__(  # type: ignore[no-untyped-call]
            manager, lanes, ir.VectorType(scalar, lanes.count)
        )


def _address(context: Any, builder: Any, array_type: Any, arguments: Any, lanes: Any) -> Any:
    array, index = arguments[:2]
    proxy: Any = cgutils.create_struct_proxy(array_type)  # type: ignore[no-untyped-call]
    data = proxy(context, builder, value=array).data
    kind = context.get_value_type(lanes).as_pointer()
    return builder.bitcast(builder.gep(data, [index]), kind)


@intrinsic
def load(_: Any, array: Any, index: Any, count: Any) -> Any:
    """Take ``array[index : index + count]`` of a contiguous array; the count is a constant."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    lanes = Lanes(array.dtype, count.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], arguments, lanes)
        return builder.load(address, align=array.dtype.bitwidth // 8)

    return lanes(array, types.intp, count), generate


@intrinsic
def store(_: Any, array: Any, index: Any, lanes: Any) -> Any:
    """Write numbers to a contiguous array, from an index on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], arguments, lanes)
        builder.store(arguments[2], address, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), generate


@intrinsic
def fill(_: Any, value: Any, count: Any) -> Any:
    """Repeat one number; the count is a constant."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    lanes = Lanes(value, count.literal_value)

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        kind = context.get_value_type(lanes)
        index = ir.IntType(32)
        nothing = ir.Constant(kind, ir.Undefined)
        first = builder.insert_element(nothing, arguments[0], ir.Constant(index, 0))
        everywhere = ir.Constant(ir.VectorType(index, lanes.count), [0] * lanes.count)
        return builder.shuffle_vector(first, nothing, everywhere)

    return lanes(value, count), generate


@intrinsic
def multiply(_: Any, a: Any, b: Any) -> Any:
    """Compute ``a · b``."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.fmul(*arguments, flags=FAST_MATH)

    return a(a, b), generate


@intrinsic
def multiply_add(_: Any, a: Any, b: Any, c: Any) -> Any:
    """Compute ``a · b + c``."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        product = builder.fmul(*arguments[:2], flags=FAST_MATH)
        return builder.fadd(product, arguments[2], flags=FAST_MATH)

    return a(a, b, c), generate


@intrinsic
def add(_: Any, a: Any, b: Any) -> Any:
    """Compute ``a + b``."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.fadd(*arguments, flags=FAST_MATH)

    return a(a, b), generate


@intrinsic
def subtract(_: Any, a: Any, b: Any) -> Any:
    """Compute ``a - b``."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.fsub(*arguments, flags=FAST_MATH)

    return a(a, b), generate


# ---- functions of one number ----------------------------------------------------------------
#
# Those of the C library are not computed for several numbers at once.

_LOWEST: Final = -708.0
"""Below, the exponential function is less than any normal number in double precision."""

_PER_LOG_2: Final = 1.0 / math.log(2.0)
# The first part of log 2 has so few digits that its multiples are exact.
_LOG_2_LEADING: Final = math.floor(math.log(2.0) * 2.0**32) / 2.0**32
_LOG_2_REST: Final = float(Decimal(2).ln() - Decimal(_LOG_2_LEADING))
_TAYLOR: Final = tuple(1.0 / math.factorial(k) for k in range(13, -1, -1))

_MANTISSA_BITS: Final = 52
_EXPONENT_OF_ONE: Final = 1023


@inlined
def polynomial(x: float, coefficients: tuple[float, ...]) -> float:
    """Polynomial with the coefficient of the highest power first, of at most 14 terms.

    The compiler takes more for a loop, and computes nothing around it for several numbers at once.
    """
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


@inlined
def exponential(x: float) -> float:
    """``exp(x)`` of a number in double precision that is at most zero."""
    power = np.floor(max(x, _LOWEST) * _PER_LOG_2 + 0.5)
    rest = (x - power * _LOG_2_LEADING) - power * _LOG_2_REST
    value = polynomial(rest, _TAYLOR)
    bits = np.int64((np.int64(power) + _EXPONENT_OF_ONE) << _MANTISSA_BITS)
    return 0.0 if x < _LOWEST else value * bits.view(np.float64)


_MIDDLE: Final = 4.0
_DEGREE: Final = 20
"""Even, so that the highest power is."""


def _tail_coefficients() -> tuple[float, ...]:
    """Polynomial for the tail of the normal distribution, the highest power first.

    In ``u = (x - m) / (x + m)``, which maps all positive numbers to a short interval, the tail
    divided by ``exp(-x² / 2)`` is so smooth that it is known to rounding.
    """

    def tail(u: NDArray[np.float64]) -> NDArray[np.float64]:
        values: NDArray[np.float64] = 0.5 * erfcx(_MIDDLE * (1.0 + u) / (1.0 - u) / math.sqrt(2.0))
        return values

    # The nodes of the interpolation are inside the interval, where u < 1.
    series: Any = chebyshev.chebinterpolate(tail, _DEGREE)
    return tuple(map(float, chebyshev.cheb2poly(series)[::-1]))


_TAIL_EVEN: Final = _tail_coefficients()[::2]
_TAIL_ODD: Final = _tail_coefficients()[1::2]


@inlined
def normal_tail(x: float, density: float) -> float:
    """Probability of numbers above ``x >= 0`` in the normal distribution, to 1e-15.

    Parameters
    ----------
    x
        In double precision.
    density
        ``exp(-x² / 2)``.
    """
    u = (x - _MIDDLE) / (x + _MIDDLE)
    value: float = polynomial(u * u, _TAIL_EVEN) + u * polynomial(u * u, _TAIL_ODD)
    return density * value


# ---- attention ------------------------------------------------------------------------------
#
# Rows and columns of pairs are visited in tiles, so that what a tile needs of keys and values stays
# near the processor however large the molecule is.

_ROWS: Final = 8
_COLUMNS: Final = 8


@inlined
def dot(left: Any, at_left: int, right: Any, at_right: int, width: int, heads: int) -> Any:
    """Sum over channels of the products of features in two arrays, of all heads at once."""
    total = fill(left.dtype.type(0.0), heads)
    for c in range(0, width, heads):
        total = multiply_add(
            load(left, at_left + c, heads), load(right, at_right + c, heads), total
        )
    return total


@functools.cache
def attention_loop(channels: int, heads: int) -> Loops:
    """Compile attention for numbers of channels and heads, which have to be constants in it.

    Its arrays are projections ``(b, n, n, 4, c, h)``, where the four are query, key and two values;
    bias ``(b, n, n)``, or empty; weights ``(b, i, k, j, h)``, where k is the middle atom, or empty
    if they are not to be kept; norms ``(b, i, 2, j, h)`` and output ``(b, n, n, c, h)``. It fills
    the last three for first atoms i of a range ``(start, stop)``. Norms are the largest score of a
    pair and one over the sum of exponentials relative to it.
    """
    width = channels * heads

    @compiled
    def attend(
        projections: Any, bias: Any, weights: Any, norms: Any, out: Any, part: tuple[int, int]
    ) -> None:
        start, stop = part
        batch, n = projections.shape[:2]
        across = (n + _COLUMNS - 1) // _COLUMNS
        flat, flat_out, flat_norms = projections.ravel(), out.ravel(), norms.ravel()
        scale = fill(flat.dtype.type(1.0 / math.sqrt(channels)), heads)
        top, total = np.empty(_COLUMNS * heads, flat.dtype), np.empty(_COLUMNS * heads, flat.dtype)
        kept = weights.size > 0
        # Of a tile, if they are not kept.
        own = weights.ravel() if kept else np.empty(_ROWS * n * _COLUMNS * heads, flat.dtype)
        for b in range(batch):
            for tile in range(across * ((stop - start + _ROWS - 1) // _ROWS)):
                first, left = start + tile // across * _ROWS, tile % across * _COLUMNS
                last, right = min(first + _ROWS, stop), min(left + _COLUMNS, n)
                row = (right - left) * heads
                # Places of the weights of neighbouring first and middle atoms.
                beyond = n * heads if kept else _COLUMNS * heads
                origin = ((b * n + first) * n * n + left) * heads if kept else 0
                for k in range(n):
                    for i in range(first, last):
                        at_query = ((b * n + i) * n + k) * 4 * width
                        at_weight = origin + ((i - first) * n + k) * beyond
                        for j in range(left, right):
                            at_key = (((b * n + k) * n + j) * 4 + 1) * width
                            score = multiply(dot(flat, at_query, flat, at_key, width, heads), scale)
                            if bias.size:
                                both = bias[b, i, k] + bias[b, k, j]
                                score = add(score, fill(both, heads))
                            store(own, at_weight + (j - left) * heads, score)
                for i in range(first, last):
                    at_weight = origin + (i - first) * n * beyond
                    top[:] = -np.inf
                    total[:] = 0.0
                    for k in range(n):
                        here = own[at_weight + k * beyond :]
                        for e in range(row):
                            top[e] = max(top[e], here[e])
                    for k in range(n):
                        here = own[at_weight + k * beyond :]
                        for e in range(row):
                            here[e] = exponential(np.float64(here[e] - top[e]))
                        for e in range(row):
                            total[e] += here[e]
                    for e in range(row):
                        total[e] = 1.0 / total[e]
                    for k in range(n):
                        here = own[at_weight + k * beyond :]
                        for e in range(row):
                            here[e] *= total[e]
                    at_norm = ((b * n + i) * 2 * n + left) * heads
                    for e in range(row):
                        flat_norms[at_norm + e] = top[e]
                        flat_norms[at_norm + n * heads + e] = total[e]
                    out[b, i, left:right] = 0.0
                for k in range(n):
                    for i in range(first, last):
                        at_value1 = (((b * n + i) * n + k) * 4 + 2) * width
                        at_weight = origin + ((i - first) * n + k) * beyond
                        for j in range(left, right):
                            at_value2 = (((b * n + k) * n + j) * 4 + 3) * width
                            at_out = ((b * n + i) * n + j) * width
                            weight = load(own, at_weight + (j - left) * heads, heads)
                            for c in range(0, width, heads):
                                value = multiply(
                                    load(flat, at_value1 + c, heads),
                                    load(flat, at_value2 + c, heads),
                                )
                                value = multiply_add(
                                    value, weight, load(flat_out, at_out + c, heads)
                                )
                                store(flat_out, at_out + c, value)

    return cast(Loops, attend)


@functools.cache
def attention_gradient_loop(channels: int, heads: int) -> Loops:
    """Compile the gradients of :func:`attention_loop`.

    Its arrays are the five of the attention, where empty weights are computed again, the gradient
    of the output, that of the projections, and those of the bias of pairs with the middle atom
    second and first, which may be one array. It adds to the gradients, of zero to begin with, what
    comes from middle atoms of a range ``(start, stop)``.
    """
    width = channels * heads

    @compiled
    def differentiate(
        projections: Any,
        bias: Any,
        weights: Any,
        norms: Any,
        out: Any,
        grad: Any,
        dprojections: Any,
        dbias_second: Any,
        dbias_first: Any,
        part: tuple[int, int],
    ) -> None:
        start, stop = part
        batch, n = projections.shape[:2]
        across = (n + _COLUMNS - 1) // _COLUMNS
        flat, flat_norms, flat_out = projections.ravel(), norms.ravel(), out.ravel()
        flat_grad, slopes = grad.ravel(), dprojections.ravel()
        zero = fill(flat.dtype.type(0.0), heads)
        scale = fill(flat.dtype.type(1.0 / math.sqrt(channels)), heads)
        # Of one first and middle atom and the columns of a tile: gradients of query and first
        # value, and of scores.
        dquery, dvalue1 = np.empty(width, flat.dtype), np.empty(width, flat.dtype)
        dscores = np.empty(_COLUMNS * heads, flat.dtype)
        kept = weights.size > 0
        own = weights.ravel() if kept else np.empty(_COLUMNS * heads, flat.dtype)
        along = np.empty(n * n * heads, flat.dtype)
        for b in range(batch):
            # The gradient of softmax needs the mean over the middle atoms.
            for ij in range(n * n):
                at_out = (b * n * n + ij) * width
                mean = dot(flat_out, at_out, flat_grad, at_out, width, heads)
                store(along, ij * heads, mean)
            for tile in range(across * ((stop - start + _ROWS - 1) // _ROWS)):
                first, left = start + tile // across * _ROWS, tile % across * _COLUMNS
                last, right = min(first + _ROWS, stop), min(left + _COLUMNS, n)
                row = (right - left) * heads
                for k in range(first, last):
                    for i in range(n):
                        at_query = ((b * n + i) * n + k) * 4 * width
                        at_value1 = at_query + 2 * width
                        at_weight = (((b * n + i) * n + k) * n + left) * heads if kept else 0
                        if not kept:
                            for j in range(left, right):
                                at_key = (((b * n + k) * n + j) * 4 + 1) * width
                                score = multiply(
                                    dot(flat, at_query, flat, at_key, width, heads), scale
                                )
                                if bias.size:
                                    both = bias[b, i, k] + bias[b, k, j]
                                    score = add(score, fill(both, heads))
                                store(own, (j - left) * heads, score)
                            at_norm = ((b * n + i) * 2 * n + left) * heads
                            top = flat_norms[at_norm : at_norm + row]
                            share = flat_norms[at_norm + n * heads : at_norm + n * heads + row]
                            for e in range(row):
                                # Rounded in another way, the largest score may be above it.
                                below = min(np.float64(own[e] - top[e]), 0.0)
                                own[e] = exponential(below) * share[e]
                        for c in range(0, width, heads):
                            store(dquery, c, load(slopes, at_query + c, heads))
                            store(dvalue1, c, load(slopes, at_value1 + c, heads))
                        for j in range(left, right):
                            at_out = ((b * n + i) * n + j) * width
                            at_key = (((b * n + k) * n + j) * 4 + 1) * width
                            at_value2 = at_key + 2 * width
                            weight = load(own, at_weight + (j - left) * heads, heads)
                            dweight = zero
                            for c in range(0, width, heads):
                                slope = load(flat_grad, at_out + c, heads)
                                value1 = load(flat, at_value1 + c, heads)
                                product = multiply(slope, load(flat, at_value2 + c, heads))
                                dweight = multiply_add(product, value1, dweight)
                                store(
                                    dvalue1,
                                    c,
                                    multiply_add(product, weight, load(dvalue1, c, heads)),
                                )
                                dvalue2 = load(slopes, at_value2 + c, heads)
                                dvalue2 = multiply_add(multiply(slope, value1), weight, dvalue2)
                                store(slopes, at_value2 + c, dvalue2)
                            mean = load(along, (i * n + j) * heads, heads)
                            dscore = multiply(weight, subtract(dweight, mean))
                            store(dscores, (j - left) * heads, dscore)
                            dscore = multiply(dscore, scale)
                            for c in range(0, width, heads):
                                key = load(flat, at_key + c, heads)
                                store(dquery, c, multiply_add(dscore, key, load(dquery, c, heads)))
                                query = load(flat, at_query + c, heads)
                                dkey = load(slopes, at_key + c, heads)
                                store(slopes, at_key + c, multiply_add(dscore, query, dkey))
                        for c in range(0, width, heads):
                            store(slopes, at_query + c, load(dquery, c, heads))
                            store(slopes, at_value1 + c, load(dvalue1, c, heads))
                        if bias.size:
                            for j in range(left, right):
                                both = flat.dtype.type(0.0)
                                for h in range(heads):
                                    both += dscores[(j - left) * heads + h]
                                dbias_second[b, i, k] += both
                                dbias_first[b, k, j] += both

    return cast(Loops, differentiate)


# ---- activation -----------------------------------------------------------------------------

_DENSITY: Final = 1.0 / math.sqrt(2.0 * math.pi)


@compiled
def gelu_loop(x: Any, out: Any, slope: Any) -> None:
    """Compute GELU and its slope, arrays ``(m,)`` in double precision."""
    for i in range(len(x)):
        own = x[i]
        density = exponential(-0.5 * own * own)
        # Without a branch, so that several are computed at once.
        below = 0.5 + math.copysign(0.5 - normal_tail(abs(own), density), own)
        out[i] = own * below
        slope[i] = below + own * density * _DENSITY
