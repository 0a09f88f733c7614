"""Linear maps as loops for the processor.

Libraries for matrix products are made for large matrices, and the one of torch uses half of the
vector of some processors. The maps of a network are small and always the same, so their weights are
laid out once in the order in which they are read, and a tile of the output stays in registers.
"""

from __future__ import annotations

import functools
from typing import Any, Final, cast

import llvmlite.binding as llvm  # type: ignore[import-untyped]
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from torch import Tensor

from mlmd_calc.models.loops import Loops, compiled, intrinsic

_BESIDE: Final = 2
"""Vector registers beside each other in a tile."""

_BELOW: Final = 16
"""Tiles below each other for which the weights of a panel stay near the processor."""

# Not FAST_MATH: products are added in one order, whatever the tile.
_FLAGS: Final = ("contract",)


def _registers() -> tuple[int, int]:
    """Bytes of a vector register, and rows with which a tile fills most of them.

    No bytes where it is not known that the product of torch is slower.
    """
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 64, 9
    return (32, 6) if features.get("avx2") and features.get("fma") else (0, 1)


VECTOR_BYTES, _ROWS = _registers()


def panel_columns(dtype: torch.dtype) -> int:
    """Count the outputs that are computed together."""
    return _BESIDE * VECTOR_BYTES // dtype.itemsize


def can_pack(weight: Tensor) -> bool:
    """Whether there are loops for weights ``(outputs, inputs)`` and their transpose."""
    columns = panel_columns(weight.dtype)
    return columns > 0 and not any(size % columns for size in weight.shape)


def pack(weight: Tensor, bias: Tensor | None, columns: int) -> Tensor:
    """Lay weights ``(outputs, inputs)`` out as panels ``(panels, 1 + inputs, columns)``.

    The bias is the first row of each.
    """
    first = weight.new_zeros(len(weight)) if bias is None else bias
    rows = torch.cat([first[None], weight.T])
    return rows.view(len(rows), -1, columns).transpose(0, 1).contiguous()


@intrinsic
def _tile(_: Any, x: Any, panel: Any, out: Any, depth: Any, across: Any, constants: Any) -> Any:
    """Compute a tile from the addresses of its first row, of its panel, and of its result.

    Rows have ``depth`` inputs and ``across`` outputs. Constants are the number of rows, the numbers
    in a vector, and the bits of a number.
    """
    if not all(isinstance(number, types.IntegerLiteral) for number in constants):
        return None
    rows, lanes, bits = (number.literal_value for number in constants)

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        def beyond(place: Any, offset: Any) -> Any:
            constant = isinstance(offset, int)
            return builder.gep(place, [ir.Constant(ir.IntType(64), offset) if constant else offset])

        def vectors(place: Any) -> list[Any]:
            """Addresses of the vectors that begin at a number."""
            return [
                builder.bitcast(beyond(place, beside * lanes), vector.as_pointer())
                for beside in range(_BESIDE)
            ]

        def load(place: Any) -> list[Any]:
            return [builder.load(own, align=bits // 8) for own in vectors(place)]

        def everywhere(value: Any) -> Any:
            index = ir.IntType(32)
            first = builder.insert_element(nothing, value, ir.Constant(index, 0))
            zeros = ir.Constant(ir.VectorType(index, lanes), [0] * lanes)
            return builder.shuffle_vector(first, nothing, zeros)

        number = {32: ir.FloatType(), 64: ir.DoubleType()}[bits]
        vector = ir.VectorType(number, lanes)
        nothing = ir.Constant(vector, ir.Undefined)
        source, weights, target = (
            builder.inttoptr(address, number.as_pointer()) for address in arguments[:3]
        )
        depth, across = arguments[3:5]
        sources, targets = [source], [target]
        for _ in range(1, rows):
            sources.append(beyond(sources[-1], depth))
            targets.append(beyond(targets[-1], across))
        bias, weights = load(weights), beyond(weights, _BESIDE * lanes)
        sums = [[cgutils.alloca_once_value(builder, own) for own in bias] for _ in sources]  # type: ignore[no-untyped-call]
        with cgutils.for_range(builder, depth) as loop:
            here = builder.mul(loop.index, ir.Constant(depth.type, _BESIDE * lanes))
            loaded = load(beyond(weights, here))
            for source, totals in zip(sources, sums, strict=True):
                value = everywhere(builder.load(beyond(source, loop.index)))
                for weight, total in zip(loaded, totals, strict=True):
                    product = builder.fmul(value, weight, flags=_FLAGS)
                    added = builder.fadd(builder.load(total), product, flags=_FLAGS)
                    builder.store(added, total)
        for target, totals in zip(targets, sums, strict=True):
            for place, total in zip(vectors(target), totals, strict=True):
                builder.store(builder.load(total), place, align=bits // 8)
        return context.get_dummy_value()

    return types.void(x, panel, out, depth, across, constants), generate


@functools.cache
def linear_loop(columns: int, size: int) -> Loops:
    """Compile linear maps for a width of panels and bytes of a number, which are constants in it.

    It takes addresses of contiguous rows ``(m, inputs)``, of what :func:`pack` makes, and of
    results ``(m, outputs)``, and the numbers of rows, inputs and panels. A row has the same bits
    whatever the others are. To look at tensors as arrays would take a fifth of the time of a small
    map.
    """
    lanes, height, bits = columns // _BESIDE, _ROWS, 8 * size

    @compiled
    def linear(x: int, panels: int, out: int, rows: int, inputs: int, count: int) -> None:
        outputs = count * columns
        own, made, beside = inputs * size, outputs * size, columns * size
        weights = (1 + inputs) * beside
        if rows < height:
            for row in range(rows):
                for panel in range(count):
                    place, result = panels + panel * weights, out + row * made + panel * beside
                    _tile(x + row * own, place, result, inputs, outputs, (1, lanes, bits))
            return
        tiles = (rows + height - 1) // height
        for block in range(0, tiles, _BELOW):
            for panel in range(count):
                for tile in range(block, min(block + _BELOW, tiles)):
                    # The last one begins earlier instead of being smaller.
                    row = min(tile * height, rows - height)
                    place, result = panels + panel * weights, out + row * made + panel * beside
                    _tile(x + row * own, place, result, inputs, outputs, (height, lanes, bits))

    return cast(Loops, linear)
