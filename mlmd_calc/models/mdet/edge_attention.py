"""Triangular attention over pairs: the one operation of MD-ET whose cost grows as N³.

For every head, with queries q, keys k and two values v, v' on the pairs,

    s_ilj = q_il · k_lj / sqrt(c)
    w_ilj = softmax over l of s_ilj
    o_ij  = sum over l of  w_ilj · v_il ⊙ v'_lj

(edge transformer, Bergen et al., NeurIPS 2021). The value part is an element-wise product and no
matrix product, so fused attention kernels for other layouts do not apply.

Three forms compute the same numbers:

* :func:`edge_attention_reference` writes the formulas down. It is differentiable any number of
  times, and what a compiler should see, but holds N³·E numbers.
* :func:`edge_attention_streamed` visits one middle atom at a time and needs N²·E + N³·H numbers;
  no derivatives.
* :class:`_StreamedProduct` gives the streamed form a first derivative, streamed as well.

:func:`edge_attention` picks the cheapest that the situation allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

AttentionFunction: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Signature shared by all forms: query, key, value1, value2, mask to output."""

# exp(-1e9) is zero in every precision, and a row that is masked throughout stays finite.
_MASKED = -1e9


def edge_attention(
    query: Tensor, key: Tensor, value1: Tensor, value2: Tensor, mask: Tensor | None
) -> Tensor:
    """Attend over the middle atom of every pair of pairs.

    Differentiable once; use :func:`edge_attention_reference` for higher derivatives.

    Parameters
    ----------
    query, key, value1, value2
        ``(b, n, n, h, c)``: batch, first atom, second atom, head, channel.
    mask
        ``(b, n)`` bool, True for real atoms, or None if there is no padding.

    Returns
    -------
    Tensor
        ``(b, n, n, h, c)``; values for padded pairs are finite but meaningless.
    """
    if torch.compiler.is_compiling():
        return edge_attention_reference(query, key, value1, value2, mask)
    return edge_attention_streamed(query, key, value1, value2, mask)


def edge_attention_reference(
    query: Tensor, key: Tensor, value1: Tensor, value2: Tensor, mask: Tensor | None
) -> Tensor:
    """Differentiable form that materialises ``(b, n, n, n, h, c)``; see :func:`edge_attention`."""
    scores = torch.einsum("bilhc,bljhc->bhilj", query, key) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :, None], _MASKED)
    weights = torch.softmax(scores, dim=3)
    # Channel by channel this is sum_l (w_ilj v2_lj) v1_il; written as a broadcast product so that
    # a compiler can fuse the product with the sum.
    products = (
        weights.permute(0, 2, 4, 1, 3)[..., None, :]
        * value1.permute(0, 1, 3, 4, 2)[:, :, None]
        * value2.permute(0, 2, 3, 4, 1)[:, None]
    )
    return products.sum(-1)


def edge_attention_streamed(
    query: Tensor, key: Tensor, value1: Tensor, value2: Tensor, mask: Tensor | None
) -> Tensor:
    """Form with a loop over the middle atom, differentiable once; see :func:`edge_attention`."""
    b, n, _, h, c = query.shape
    # (l, b, h, i, j): one matrix product per middle atom and head.
    scores = torch.matmul(
        query.permute(2, 0, 3, 1, 4) * (1.0 / math.sqrt(c)), key.permute(1, 0, 3, 4, 2)
    )
    if mask is not None:
        scores = scores.masked_fill_(~mask.T[:, :, None, None, None], _MASKED)
    out: Tensor = _StreamedProduct.apply(  # type: ignore[no-untyped-call]
        torch.softmax(scores, dim=0).flatten(1, 2),
        value1.permute(2, 0, 3, 1, 4).reshape(n, b * h, n, c),
        value2.permute(1, 0, 3, 4, 2).reshape(n, b * h, c, n),
    )
    return out.view(b, h, n, c, n).permute(0, 2, 4, 1, 3)


class _StreamedProduct(torch.autograd.Function):
    """``o_gicj = sum over l of w_lgij v_lgic v'_lgcj`` with the partner j innermost.

    Forward and backward pass visit one l at a time. The backward pass uses

    * ``dw_lij = sum over c of (o'_icj v'_lcj) v_lic``
    * ``dv_lic = sum over j of (o'_icj w_lij) v'_lcj``
    * ``dv'_lcj = sum over i of (o'_icj w_lij) v_lic``
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, value1: Tensor, value2: Tensor) -> Tensor:
        """Map ``(l, g, i, j)``, ``(l, g, i, c)``, ``(l, g, c, j)`` to ``(g, i, c, j)``."""
        ctx.save_for_backward(weights, value1, value2)
        out = weights.new_zeros(*value1.shape[1:], weights.shape[-1])
        product = torch.empty_like(out)
        for w, v1, v2 in zip(weights, value1, value2, strict=True):
            torch.mul(v1[..., None], v2[:, None], out=product)
            out.addcmul_(product, w[:, :, None])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of all three inputs."""
        # torch.autograd.function.once_differentiable would not do: torch.autograd.grad takes the
        # missing second derivative for zero if it can reach its inputs by another way.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "streamed edge attention has a first derivative only, so it cannot be "
                "differentiated with create_graph=True; use edge_attention_reference"
            )
        weights, value1, value2 = ctx.saved_tensors
        grads = torch.empty_like(weights), torch.empty_like(value1), torch.empty_like(value2)
        weighted, product = torch.empty_like(grad), torch.empty_like(grad)
        for w, v1, v2, dw, dv1, dv2 in zip(weights, value1, value2, *grads, strict=True):
            torch.mul(grad, w[:, :, None], out=weighted)
            torch.mul(weighted, v2[:, None], out=product)
            torch.sum(product, -1, out=dv1)
            torch.mul(weighted, v1[..., None], out=product)
            torch.sum(product, 1, out=dv2)
            torch.mul(grad, v2[:, None], out=product)
            torch.matmul(v1[:, :, None], product, out=dw[:, :, None])
        return grads
