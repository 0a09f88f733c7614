"""Triangular attention over pairs: the one operation of MD-ET whose cost grows as N³.

For every head, with queries q, keys k and two values v, v' on the pairs,

    s_ilj = q_il · k_lj / sqrt(c) + b_il + b_lj
    w_ilj = softmax over l of s_ilj
    o_ij  = sum over l of  w_ilj · v_il ⊙ v'_lj

(edge transformer, Bergen et al., NeurIPS 2021). The bias b, the same for all heads, is how a pair
is left out (padding) or fades (a cutoff), see :func:`pair_bias`. The value part is an element-wise
product and no matrix product, so fused attention kernels for other layouts do not apply.

Three forms compute the same numbers:

* :func:`edge_attention_reference` writes the formulas down. It is differentiable any number of
  times, and what a compiler should see, but holds N³·E numbers.
* :func:`edge_attention_streamed` visits one middle atom at a time, needs N²·E + N³·H numbers and
  has a first derivative (:func:`~.streamed_product.streamed_product`).
* :func:`~.fused_attention.edge_attention_fused`, for a GPU, is one kernel, needs N²·H numbers and
  has a first derivative.

:func:`edge_attention` picks the cheapest that the situation allows.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from mlmd_calc.models.mdet.streamed_product import streamed_product

AttentionFunction: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Signature shared by all forms: query, key, value1, value2, bias to output."""

# exp(-1e9) is zero in every precision, and a row that is masked throughout stays finite.
_MASKED = -1e9

_FADED = 1e-9
"""Weight below which a pair that fades counts as gone; keeps the logarithm finite."""


def pair_bias(mask: Tensor | None, envelope: Tensor | None) -> Tensor | None:
    """Bias of the scores from what counts of every pair.

    Parameters
    ----------
    mask
        ``(b, n)`` bool, True for real atoms; None if there is no padding.
    envelope
        ``(b, n, n)`` weights of the pairs in [0, 1]; None if all count fully.

    Returns
    -------
    Tensor or None
        ``(b, n, n)``, the logarithm of the weight; None if all pairs count fully.
    """
    if envelope is None:
        if mask is None:
            return None
        shape = (mask.shape[0], mask.shape[1], mask.shape[1])
        # The default type is the caller's, and half precision has no room for what masks.
        fading = torch.zeros(shape, dtype=torch.float32, device=mask.device)
    else:
        fading = torch.log(envelope + _FADED)
    return fading if mask is None else fading.masked_fill(~mask[:, None, :], _MASKED)


def edge_attention(
    query: Tensor, key: Tensor, value1: Tensor, value2: Tensor, bias: Tensor | None
) -> Tensor:
    """Attend over the middle atom of every pair of pairs.

    Differentiable once; use :func:`edge_attention_reference` for higher derivatives.

    Parameters
    ----------
    query, key, value1, value2
        ``(b, n, n, h, c)``: batch, first atom, second atom, head, channel.
    bias
        ``(b, n, n)`` added to the scores of both pairs with the middle atom, or None for zero.

    Returns
    -------
    Tensor
        ``(b, n, n, h, c)``; values for padded pairs are finite but meaningless.
    """
    if torch.compiler.is_compiling():
        return edge_attention_reference(query, key, value1, value2, bias)
    if can_fuse(query):
        # Imports a compiler.
        from mlmd_calc.models.mdet.fused_attention import edge_attention_fused

        return edge_attention_fused(query, key, value1, value2, bias)
    return edge_attention_streamed(query, key, value1, value2, bias)


def can_fuse(tensor: Tensor) -> bool:
    """Whether there are fused kernels for where a tensor is."""
    return tensor.is_cuda and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def edge_attention_reference(
    query: Tensor, key: Tensor, value1: Tensor, value2: Tensor, bias: Tensor | None
) -> Tensor:
    """Differentiable form that materialises ``(b, n, n, n, h, c)``; see :func:`edge_attention`."""
    scores = torch.einsum("bilhc,bljhc->bhilj", query, key) / math.sqrt(query.shape[-1])
    if bias is not None:
        bias = bias.to(scores.dtype)
        scores = scores + bias[:, None, :, :, None] + bias[:, None, None]
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
    query: Tensor,
    key: Tensor,
    value1: Tensor,
    value2: Tensor,
    bias: Tensor | None,
    product: Callable[..., Tensor] = streamed_product,
) -> Tensor:
    """Form with a loop over the middle atom, differentiable once; see :func:`edge_attention`.

    The loop is the product, which does what :func:`~.streamed_product.streamed_product` does.
    """
    b, n, _, h, c = query.shape
    # (l, b, h, i, j): one matrix product per middle atom and head.
    scores = torch.matmul(
        query.permute(2, 0, 3, 1, 4) * (1.0 / math.sqrt(c)), key.permute(1, 0, 3, 4, 2)
    )
    if bias is not None:
        bias = bias.to(scores.dtype)
        scores = scores + bias.permute(2, 0, 1)[:, :, None, :, None]
        scores = scores + bias.permute(1, 0, 2)[:, :, None, None]
    out = product(
        torch.softmax(scores, dim=0).flatten(1, 2),
        value1.permute(2, 0, 3, 1, 4).reshape(n, b * h, n, c),
        value2.permute(1, 0, 3, 4, 2).reshape(n, b * h, c, n),
    )
    return out.view(b, h, n, c, n).permute(0, 2, 4, 1, 3)
