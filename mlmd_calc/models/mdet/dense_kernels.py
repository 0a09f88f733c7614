"""Linear maps as loops for the processor.

Libraries for matrix products are made for large matrices, and some use half of what a processor can
do, depending on who made it. The maps of a network are small and always the same, so their weights
are laid out once in the order in which they are read, and a tile of the output stays in registers.
All is in one file because what numba keeps on disk is known to be old by the date of the file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, TypeAlias, cast

import llvmlite.binding as llvm  # type: ignore[import-untyped]
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from torch import Tensor

from mlmd_calc.models.mdet.kernels import intrinsic
from mlmd_calc.models.mdet.loops import compiled

Loop: TypeAlias = Callable[[Any, Any, Any, int, int], None]

_BESIDE: Final = 2
"""Vector registers beside each other in a tile."""

_BELOW: Final = 16
"""Tiles below each other for which the weights of a panel stay near the processor."""

# Products are added in one order, whatever the tile.
_FLAGS: Final = ("contract",)


def _vector_bytes() -> int:
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 64
    return 32 if features.get("avx2") and features.get("fma") else 0


_ROWS: Final = 9 if _vector_bytes() == 64 else 6
"""Rows of a tile, with which it fills most of 32 or 16 registers."""

VECTOR_BYTES: Final = _vector_bytes()
"""Bytes of a vector register; 0 where the product of torch is not known to be slower."""


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
def _tile(
    _: Any, x: Any, panels: Any, out: Any, row: Any, panel: Any, rows: Any, lanes: Any
) -> Any:
    """Compute a tile: some rows of a panel, from a row on. Rows and lanes are constants."""
    if not all(isinstance(number, types.IntegerLiteral) for number in (rows, lanes)):
        return None
    height, lane = range(rows.literal_value), lanes.literal_value
    width, size = _BESIDE * lane, x.dtype.bitwidth // 8

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def array(place: int) -> tuple[Any, Any]:
            """Address of the first number, and length of a row."""
            kind, given = signature.args[place], arguments[place]
            proxy: Any = cgutils.create_struct_proxy(kind)  # type: ignore[no-untyped-call]
            struct = proxy(context, builder, value=given)
            return struct.data, builder.extract_value(struct.shape, kind.ndim - 1)

        def beyond(place: Any, offset: Any) -> Any:
            constant = isinstance(offset, int)
            return builder.gep(place, [ir.Constant(ir.IntType(64), offset) if constant else offset])

        def vectors(place: Any) -> list[Any]:
            """Addresses of the vectors that begin at a number."""
            return [
                builder.bitcast(beyond(place, beside * lane), vector.as_pointer())
                for beside in range(_BESIDE)
            ]

        def load(place: Any) -> list[Any]:
            return [builder.load(own, align=size) for own in vectors(place)]

        def everywhere(value: Any) -> Any:
            index = ir.IntType(32)
            first = builder.insert_element(nothing, value, ir.Constant(index, 0))
            zeros = ir.Constant(ir.VectorType(index, lane), [0] * lane)
            return builder.shuffle_vector(first, nothing, zeros)

        vector = ir.VectorType(context.get_value_type(x.dtype), lane)
        nothing = ir.Constant(vector, ir.Undefined)
        row, panel = arguments[3:5]
        (inputs, depth), (weights, _), (outputs, across) = map(array, range(3))
        left = builder.mul(panel, ir.Constant(panel.type, width))
        # After the weights of the panels before, and their biases.
        weights = beyond(beyond(weights, builder.mul(left, depth)), left)
        sources = [beyond(inputs, builder.mul(row, depth))]
        targets = [beyond(beyond(outputs, builder.mul(row, across)), left)]
        for _ in height[1:]:
            sources.append(beyond(sources[-1], depth))
            targets.append(beyond(targets[-1], across))
        bias, weights = load(weights), beyond(weights, width)
        sums = [[cgutils.alloca_once_value(builder, own) for own in bias] for _ in height]  # type: ignore[no-untyped-call]
        with cgutils.for_range(builder, depth) as loop:
            loaded = load(beyond(weights, builder.mul(loop.index, ir.Constant(left.type, width))))
            for source, totals in zip(sources, sums, strict=True):
                value = everywhere(builder.load(beyond(source, loop.index)))
                for weight, total in zip(loaded, totals, strict=True):
                    product = builder.fmul(value, weight, flags=_FLAGS)
                    added = builder.fadd(builder.load(total), product, flags=_FLAGS)
                    builder.store(added, total)
        for target, totals in zip(targets, sums, strict=True):
            for place, total in zip(vectors(target), totals, strict=True):
                builder.store(builder.load(total), place, align=size)
        return context.get_dummy_value()

    return types.void(x, panels, out, row, panel, rows, lanes), generate


@functools.cache
def linear_loop(columns: int) -> Loop:
    """Compile linear maps for a width of panels, which has to be a constant in it.

    Its arrays are rows ``(m, inputs)``, what :func:`pack` makes, and results ``(m, outputs)``,
    which it fills for a range ``(start, stop)`` of rows. A row has the same bits in any range.
    """
    lanes, rows = columns // _BESIDE, _ROWS

    @compiled
    def linear(x: Any, panels: Any, out: Any, start: int, stop: int) -> None:
        if stop - start < rows:
            for panel in range(len(panels)):
                for row in range(start, stop):
                    _tile(x, panels, out, row, panel, 1, lanes)
            return
        tiles = (stop - start + rows - 1) // rows
        for block in range(0, tiles, _BELOW):
            for panel in range(len(panels)):
                for tile in range(block, min(block + _BELOW, tiles)):
                    # The last one begins earlier instead of being smaller.
                    row = min(start + tile * rows, stop - rows)
                    _tile(x, panels, out, row, panel, rows, lanes)

    return cast(Loop, linear)
