"""Parts of MD-ET as single operations on the CPU, with first derivatives.

Between the matrix products of a small network lie some hundred operations that each do less than
starting them costs. Here the attention of a layer is one operation and so is an activation, and
their gradients are one each. All are operations of torch, so that they can be recorded, and their
arrays are laid out for the processor: features are ordered by channel and then by head, so that a
few neighbouring numbers are all heads of a channel, for which the same is done.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import torch
from torch import Tensor

from mlmd_calc.models.loops import THREADED_ATOMS, Loops, arrays
from mlmd_calc.models.mdet.kernels import attention_gradient_loop, attention_loop, gelu_loop
from mlmd_calc.models.operations import refuse_second_derivative, single_operation

KEPT_WEIGHTS: Final = 2**21
"""Weights of attention (numbers) of a molecule that are kept for the gradients; more are computed
again, because memory that grows as N³ runs out before time does."""


def _attend(projections: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    b, n, _, _, c, h = projections.shape
    kept = n**3 * h <= KEPT_WEIGHTS
    weights = projections.new_empty((b, n, n, n, h) if kept else (0, 0, 0, 0, h))
    norms = projections.new_empty(b, n, 2, n, h)
    out = projections.new_empty(b, n, n, c, h)
    inputs = arrays(projections, _or_nothing(projections, bias), weights, norms, out)
    _in_parts(attention_loop(c, h), inputs, _ranges(n))
    return out, weights, norms


def _attend_gradients(
    projections: Tensor,
    bias: Tensor | None,
    weights: Tensor,
    norms: Tensor,
    out: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor]:
    fading, n = _or_nothing(projections, bias), projections.shape[1]
    ranges = _ranges(n)
    dprojections, dbias = projections.new_zeros(projections.shape), fading.new_zeros(fading.shape)
    # Threads must not add to the same numbers.
    other = dbias if len(ranges) == 1 else fading.new_zeros(fading.shape)
    loop = attention_gradient_loop(*projections.shape[-2:])
    inputs = arrays(projections, fading, weights, norms, out, grad, dprojections, dbias, other)
    _in_parts(loop, inputs, ranges)
    return dprojections, dbias if other is dbias else dbias + other


def _ranges(atoms: int) -> list[tuple[int, int]]:
    """Parts of a loop over atoms that are done side by side: one, if that is not worth threads."""
    parts = 1 if atoms < THREADED_ATOMS else min(torch.get_num_threads(), atoms // 8)
    cuts = [atoms * part // parts for part in range(parts + 1)]
    return list(itertools.pairwise(cuts))


def _in_parts(loop: Loops, inputs: list[Any], ranges: list[tuple[int, int]]) -> None:
    if len(ranges) == 1:
        loop(*inputs, ranges[0])
        return
    with ThreadPoolExecutor(len(ranges)) as pool:
        for done in [pool.submit(loop, *inputs, part) for part in ranges]:
            done.result()


def _or_nothing(like: Tensor, bias: Tensor | None) -> Tensor:
    return like.new_empty(0, 0, 0) if bias is None else bias


def _gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    out, slope = x.new_empty(x.shape), x.new_empty(x.shape)
    gelu_loop(*(array.ravel() for array in arrays(x, out, slope)))
    return out, slope


_ATTEND: Final = single_operation(
    "attend", "Tensor projections, Tensor? bias", "Tensor, Tensor, Tensor", _attend
)
_ATTEND_GRADIENTS: Final = single_operation(
    "attend_gradients",
    "Tensor projections, Tensor? bias, Tensor weights, Tensor norms, Tensor out, Tensor grad",
    "Tensor, Tensor",
    _attend_gradients,
)
_GELU: Final = single_operation("gelu", "Tensor x", "Tensor, Tensor", _gelu)


class CompiledAttention(torch.autograd.Function):
    """:func:`~.edge_attention.edge_attention` of projections that lie side by side.

    Maps ``(b, n, n, 4, c, h)`` (query, key and both values) and a bias ``(b, n, n)`` of the same
    precision, or None, to ``(b, n, n, c, h)``.
    """

    @staticmethod
    def forward(ctx: Any, projections: Tensor, bias: Tensor | None) -> Tensor:
        """Attend; see the class."""
        out, weights, norms = _ATTEND(projections, bias)
        ctx.save_for_backward(projections, bias, weights, norms, out)
        result: Tensor = out
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gradients of both inputs."""
        refuse_second_derivative()
        projections, bias, weights, norms, out = ctx.saved_tensors
        dprojections, dbias = _ATTEND_GRADIENTS(projections, bias, weights, norms, out, grad)
        return dprojections, None if bias is None else dbias


class CompiledGELU(torch.autograd.Function):
    """Exact GELU in double precision, whose slope is computed along with it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Apply it to every number."""
        out, slope = _GELU(x)
        ctx.save_for_backward(slope)
        result: Tensor = out
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Gradient of the input."""
        refuse_second_derivative()
        (slope,) = ctx.saved_tensors
        dx: Tensor = grad * slope
        return dx
