"""Parts of MD-ET as single operations on the CPU, with first derivatives.

Between the matrix products of a small network lie some hundred operations that each do less than
starting them costs. Here the attention of a layer is one operation and so is an activation, and
their gradients are one each. They are operations of torch, so that they can be recorded, and their
arrays are laid out for the processor: features are ordered by channel and then by head, so that a
few neighbouring numbers are all heads of a channel, for which the same is done.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from mlmd_calc.models.mdet.kernels import attention_gradient_loop, attention_loop, gelu_loop
from mlmd_calc.models.mdet.loops import arrays
from mlmd_calc.models.mdet.streamed_product import refuse_second_derivative
from mlmd_calc.models.operations import single_operation


def _attend(projections: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    b, n, _, _, c, h = projections.shape
    weights = projections.new_empty(b, n, n, n, h)
    out = projections.new_empty(b, n, n, c, h)
    attention_loop(h)(*arrays(projections, _or_nothing(projections, bias), weights, out))
    return out, weights


def _attend_gradients(
    projections: Tensor, bias: Tensor | None, weights: Tensor, out: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    fading = _or_nothing(projections, bias)
    dprojections, dbias = projections.new_empty(projections.shape), fading.new_empty(fading.shape)
    loop = attention_gradient_loop(projections.shape[-1])
    loop(*arrays(projections, fading, weights, out, grad, dprojections, dbias))
    return dprojections, dbias


def _or_nothing(like: Tensor, bias: Tensor | None) -> Tensor:
    return like.new_empty(0, 0, 0) if bias is None else bias


def _gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    out, slope = x.new_empty(x.shape), x.new_empty(x.shape)
    gelu_loop(*(array.ravel() for array in arrays(x, out, slope)))
    return out, slope


_ATTEND: Final = single_operation(
    "attend", "Tensor projections, Tensor? bias", "Tensor, Tensor", _attend
)
_ATTEND_GRADIENTS: Final = single_operation(
    "attend_gradients",
    "Tensor projections, Tensor? bias, Tensor weights, Tensor out, Tensor grad",
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
        out, weights = _ATTEND(projections, bias)
        ctx.save_for_backward(projections, bias, weights, out)
        result: Tensor = out
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gradients of both inputs."""
        refuse_second_derivative()
        projections, bias, weights, out = ctx.saved_tensors
        dprojections, dbias = _ATTEND_GRADIENTS(projections, bias, weights, out, grad)
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
