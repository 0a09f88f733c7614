"""The sum over middle atoms in edge attention, one middle atom at a time.

``o_gicj = sum over l of w_lgij v_lgic v'_lgcj``, with a first derivative. No library has this sum:
it is an element-wise product inside a contraction, and no matrix product. On a CPU loops compiled
by numba compute it, which read and write what they work on in cache; elsewhere, and in other
precisions, one torch operation after the other does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mlmd_calc.models.loops import arrays, compiled, known
from mlmd_calc.models.operations import refuse_second_derivative


def streamed_product(weights: Tensor, value1: Tensor, value2: Tensor) -> Tensor:
    """Sum over middle atoms; that of numbers in half precision is taken in single precision.

    Parameters
    ----------
    weights, value1, value2
        ``(l, g, i, j)``, ``(l, g, i, c)`` and ``(l, g, c, j)``.

    Returns
    -------
    Tensor
        ``(g, i, c, j)``, in the precision of the inputs.
    """
    product: Callable[..., Tensor] = StreamedProduct.apply
    if weights.dtype != torch.bfloat16:
        return product(weights, value1, value2)
    # Long sums in half precision lose what they add, and there are no such loops.
    return product(weights.float(), value1.float(), value2.float()).to(weights.dtype)


class StreamedProduct(torch.autograd.Function):
    """``o_gicj = sum over l of w_lgij v_lgic v'_lgcj`` with the partner j innermost.

    The backward pass uses

    * ``dw_lij = sum over c of (o'_icj v'_lcj) v_lic``
    * ``dv_lic = sum over j of (o'_icj w_lij) v'_lcj``
    * ``dv'_lcj = sum over i of (o'_icj w_lij) v_lic``
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, value1: Tensor, value2: Tensor) -> Tensor:
        """Map ``(l, g, i, j)``, ``(l, g, i, c)``, ``(l, g, c, j)`` to ``(g, i, c, j)``."""
        ctx.save_for_backward(weights, value1, value2)
        out = weights.new_empty(*value1.shape[1:], weights.shape[-1])
        if known(weights):
            _product(*arrays(weights, value1, value2, out))
        else:
            _product_in_torch(weights, value1, value2, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of all three inputs."""
        refuse_second_derivative()
        weights, value1, value2 = ctx.saved_tensors
        # Not empty_like, which would keep the strides of an input that is not contiguous.
        dw, dv1, dv2 = (tensor.new_empty(tensor.shape) for tensor in (weights, value1, value2))
        if known(grad):
            _gradients(*arrays(weights, value1, value2, grad, dw, dv1, dv2))
        else:
            _gradients_in_torch(weights, value1, value2, grad, dw, dv1, dv2)
        return dw, dv1, dv2


@compiled
def _product(weights: Any, value1: Any, value2: Any, out: Any) -> None:
    middles, groups, first, last = weights.shape
    channels = value1.shape[3]
    for g in range(groups):
        for i in range(first):
            own = out[g, i]
            own[:] = 0.0
            for k in range(middles):
                w = weights[k, g, i]
                for c in range(channels):
                    v1 = value1[k, g, i, c]
                    v2 = value2[k, g, c]
                    for j in range(last):
                        own[c, j] += v1 * w[j] * v2[j]


@compiled
def _gradients(
    weights: Any, value1: Any, value2: Any, grad: Any, dweights: Any, dvalue1: Any, dvalue2: Any
) -> None:
    middles, groups, first, last = weights.shape
    channels = value1.shape[3]
    for g in range(groups):
        for k in range(middles):
            dvalue2[k, g] = 0.0
            for i in range(first):
                w, dw = weights[k, g, i], dweights[k, g, i]
                dw[:] = 0.0
                for c in range(channels):
                    v1 = value1[k, g, i, c]
                    v2, dv2, own = value2[k, g, c], dvalue2[k, g, c], grad[g, i, c]
                    # Zero of the precision of the inputs.
                    dv1 = 0 * v1
                    for j in range(last):
                        product = own[j] * v2[j]
                        dv1 += product * w[j]
                        dw[j] += product * v1
                    dvalue1[k, g, i, c] = dv1
                    # By itself, so that the compiler sees that the arrays do not overlap.
                    for j in range(last):
                        dv2[j] += own[j] * w[j] * v1


def _product_in_torch(weights: Tensor, value1: Tensor, value2: Tensor, out: Tensor) -> None:
    out.zero_()
    product = torch.empty_like(out)
    for w, v1, v2 in zip(weights, value1, value2, strict=True):
        torch.mul(v1[..., None], v2[:, None], out=product)
        out.addcmul_(product, w[:, :, None])


def _gradients_in_torch(
    weights: Tensor,
    value1: Tensor,
    value2: Tensor,
    grad: Tensor,
    dweights: Tensor,
    dvalue1: Tensor,
    dvalue2: Tensor,
) -> None:
    weighted, product = torch.empty_like(grad), torch.empty_like(grad)
    for w, v1, v2, dw, dv1, dv2 in zip(
        weights, value1, value2, dweights, dvalue1, dvalue2, strict=True
    ):
        torch.mul(grad, w[:, :, None], out=weighted)
        torch.mul(weighted, v2[:, None], out=product)
        torch.sum(product, -1, out=dv1)
        torch.mul(weighted, v1[..., None], out=product)
        torch.sum(product, 1, out=dv2)
        torch.mul(grad, v2[:, None], out=product)
        torch.matmul(v1[:, :, None], product, out=dw[:, :, None])
