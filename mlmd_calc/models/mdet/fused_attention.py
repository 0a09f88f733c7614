"""Triangular attention on a GPU as fused Triton kernels, with a first derivative.

Every program has a tile of pairs of one head and visits all middle atoms, or all partners, with its
sums in registers. Beside inputs and outputs that takes two numbers per head and pair, the norms:
the largest score of a pair and the sum of exponentials relative to it, from which the gradients
compute the weights again. Sums are in double precision for inputs in double precision, and else in
single precision. Triton comes with the builds of torch that know CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlmd_calc.models.operations import refuse_second_derivative

_jit: Callable[[Callable[..., None]], Any] = triton.jit

_LOWEST: Final = tl.constexpr(-1.0e30)
"""Below every score, also one that is masked."""

# Arguments of a kernel besides the constants of its compilation: tensors, the sizes n, heads and
# channels, and strides of query, key and values (batch, first, second, head, channel). Outputs and
# gradients are contiguous (b, n, n, h, c), norms (2, b, h, n, n), bias (b, n, n). Names follow the
# formulas of edge_attention: pairs (i, l), (l, j) and (i, j).


@_jit
def _attend(  # type: ignore[no-untyped-def]
    query, key, value1, value2, bias, out, norms, n,
    heads, channels, size, sb, si, sj, sh, sc,
    C: tl.constexpr, T: tl.constexpr, BIASED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Output and norms of a tile of pairs (i, j)."""
    place = tl.program_id(0).to(tl.int64)
    b, head = place // heads, place % heads
    i = tl.program_id(1) * T + tl.arange(0, T)
    j = tl.program_id(2) * T + tl.arange(0, T)
    c = tl.arange(0, C)
    has_i = (i < n)[:, None] & (c < channels)[None, :]
    has_j = (j < n)[:, None] & (c < channels)[None, :]
    scale = 1.0 / tl.sqrt(tl.zeros((1, 1), ACC) + channels)
    left = b * sb + head * sh + i[:, None] * si + c[None, :] * sc
    right = b * sb + head * sh + j[:, None] * sj + c[None, :] * sc
    top = tl.full((T, T), _LOWEST, ACC)
    total = tl.zeros((T, T), ACC)
    mean = tl.zeros((T, T, C), ACC)
    for middle in range(n):
        q = tl.load(query + left + middle * sj, mask=has_i, other=0.0).to(ACC)
        k = tl.load(key + right + middle * si, mask=has_j, other=0.0).to(ACC)
        score = tl.sum(q[:, None, :] * k[None, :, :], 2) * scale
        if BIASED:
            own = bias + b * n * n
            score += tl.load(own + i * n + middle, mask=i < n, other=0.0).to(ACC)[:, None]
            score += tl.load(own + middle * n + j, mask=j < n, other=0.0).to(ACC)[None, :]
        higher = tl.maximum(top, score)
        shrink = tl.exp(top - higher)
        weight = tl.exp(score - higher)
        v1 = tl.load(value1 + left + middle * sj, mask=has_i, other=0.0).to(ACC)
        v2 = tl.load(value2 + right + middle * si, mask=has_j, other=0.0).to(ACC)
        mean = mean * shrink[:, :, None] + weight[:, :, None] * (v1[:, None, :] * v2[None, :, :])
        total = total * shrink + weight
        top = higher
    real = (i < n)[:, None] & (j < n)[None, :]
    pair = (b * n + i[:, None]) * n + j[None, :]
    here = (pair[:, :, None] * heads + head) * channels + c[None, None, :]
    mean = mean / total[:, :, None]
    whole = real[:, :, None] & (c < channels)[None, None, :]
    tl.store(out + here, mean.to(out.dtype.element_ty), mask=whole)
    at = (place * n + i[:, None]) * n + j[None, :]
    tl.store(norms + at, top, mask=real)
    tl.store(norms + size + at, total, mask=real)


@_jit
def _left_gradients(  # type: ignore[no-untyped-def]
    query, key, value1, value2, bias, norms, along, grad,
    dquery, dvalue1, dbias, n, heads, channels, size, sb,
    si, sj, sh, sc, C: tl.constexpr, T: tl.constexpr, BIASED: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Gradients of query, first value and bias of a tile of pairs (i, l)."""
    place = tl.program_id(0).to(tl.int64)
    b, head = place // heads, place % heads
    i = tl.program_id(1) * T + tl.arange(0, T)
    middle = tl.program_id(2) * T + tl.arange(0, T)
    c = tl.arange(0, C)
    inside = (c < channels)[None, :]
    has_i, has_l = (i < n)[:, None] & inside, (middle < n)[:, None] & inside
    real = (i < n)[:, None] & (middle < n)[None, :]
    whole = real[:, :, None] & (c < channels)[None, None, :]
    scale = 1.0 / tl.sqrt(tl.zeros((1, 1), ACC) + channels)
    base = b * sb + head * sh
    own = i[:, None, None] * si + middle[None, :, None] * sj + c[None, None, :] * sc
    q = tl.load(query + base + own, mask=whole, other=0.0).to(ACC)
    v1 = tl.load(value1 + base + own, mask=whole, other=0.0).to(ACC)
    if BIASED:
        faded = bias + b * n * n
        fade = tl.load(faded + i[:, None] * n + middle[None, :], mask=real, other=0.0).to(ACC)
    dq = tl.zeros((T, T, C), ACC)
    dv1 = tl.zeros((T, T, C), ACC)
    db = tl.zeros((T, T), ACC)
    for j in range(n):
        right = base + middle[:, None] * si + j * sj + c[None, :] * sc
        k = tl.load(key + right, mask=has_l, other=0.0).to(ACC)
        v2 = tl.load(value2 + right, mask=has_l, other=0.0).to(ACC)
        pair = ((b * n + i[:, None]) * n + j) * heads + head
        g = tl.load(grad + pair * channels + c[None, :], mask=has_i, other=0.0).to(ACC)
        at = (place * n + i) * n + j
        top = tl.load(norms + at, mask=i < n, other=0.0)
        total = tl.load(norms + size + at, mask=i < n, other=1.0)
        shift = tl.load(along + at, mask=i < n, other=0.0)
        score = tl.sum(q * k[None, :, :], 2) * scale
        if BIASED:
            other = tl.load(faded + middle * n + j, mask=middle < n, other=0.0).to(ACC)
            score = score + fade + other[None, :]
        # The largest score may be rounded in another way here.
        weight = tl.exp(tl.minimum(score - top[:, None], 0.0)) / total[:, None]
        weight = tl.where(real, weight, 0.0)
        slope = g[:, None, :] * v2[None, :, :]
        dv1 += weight[:, :, None] * slope
        dscore = weight * (tl.sum(slope * v1, 2) - shift[:, None])
        db += dscore
        dq += (dscore * scale)[:, :, None] * k[None, :, :]
    pairs = (b * n + i[:, None]) * n + middle[None, :]
    here = (pairs[:, :, None] * heads + head) * channels + c[None, None, :]
    tl.store(dquery + here, dq.to(dquery.dtype.element_ty), mask=whole)
    tl.store(dvalue1 + here, dv1.to(dvalue1.dtype.element_ty), mask=whole)
    if BIASED:
        tl.store(dbias + (place * n + i[:, None]) * n + middle[None, :], db, mask=real)


@_jit
def _right_gradients(  # type: ignore[no-untyped-def]
    query, key, value1, value2, bias, norms, along, grad,
    dkey, dvalue2, dbias, n, heads, channels, size, sb,
    si, sj, sh, sc, C: tl.constexpr, T: tl.constexpr, BIASED: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Gradients of key, second value and bias of a tile of pairs (l, j)."""
    place = tl.program_id(0).to(tl.int64)
    b, head = place // heads, place % heads
    middle = tl.program_id(1) * T + tl.arange(0, T)
    j = tl.program_id(2) * T + tl.arange(0, T)
    c = tl.arange(0, C)
    inside = (c < channels)[None, :]
    has_l, has_j = (middle < n)[:, None] & inside, (j < n)[:, None] & inside
    real = (middle < n)[:, None] & (j < n)[None, :]
    whole = real[:, :, None] & (c < channels)[None, None, :]
    scale = 1.0 / tl.sqrt(tl.zeros((1, 1), ACC) + channels)
    base = b * sb + head * sh
    own = middle[:, None, None] * si + j[None, :, None] * sj + c[None, None, :] * sc
    k = tl.load(key + base + own, mask=whole, other=0.0).to(ACC)
    v2 = tl.load(value2 + base + own, mask=whole, other=0.0).to(ACC)
    if BIASED:
        faded = bias + b * n * n
        fade = tl.load(faded + middle[:, None] * n + j[None, :], mask=real, other=0.0).to(ACC)
    dk = tl.zeros((T, T, C), ACC)
    dv2 = tl.zeros((T, T, C), ACC)
    db = tl.zeros((T, T), ACC)
    for i in range(n):
        left = base + i * si + middle[:, None] * sj + c[None, :] * sc
        q = tl.load(query + left, mask=has_l, other=0.0).to(ACC)
        v1 = tl.load(value1 + left, mask=has_l, other=0.0).to(ACC)
        pair = ((b * n + i) * n + j[:, None]) * heads + head
        g = tl.load(grad + pair * channels + c[None, :], mask=has_j, other=0.0).to(ACC)
        at = (place * n + i) * n + j
        top = tl.load(norms + at, mask=j < n, other=0.0)
        total = tl.load(norms + size + at, mask=j < n, other=1.0)
        shift = tl.load(along + at, mask=j < n, other=0.0)
        score = tl.sum(q[:, None, :] * k, 2) * scale
        if BIASED:
            other = tl.load(faded + i * n + middle, mask=middle < n, other=0.0).to(ACC)
            score = score + other[:, None] + fade
        weight = tl.exp(tl.minimum(score - top[None, :], 0.0)) / total[None, :]
        weight = tl.where(real, weight, 0.0)
        slope = v1[:, None, :] * g[None, :, :]
        dv2 += weight[:, :, None] * slope
        dscore = weight * (tl.sum(slope * v2, 2) - shift[None, :])
        db += dscore
        dk += (dscore * scale)[:, :, None] * q[:, None, :]
    pairs = (b * n + middle[:, None]) * n + j[None, :]
    here = (pairs[:, :, None] * heads + head) * channels + c[None, None, :]
    tl.store(dkey + here, dk.to(dkey.dtype.element_ty), mask=whole)
    tl.store(dvalue2 + here, dv2.to(dvalue2.dtype.element_ty), mask=whole)
    if BIASED:
        tl.store(dbias + (place * n + middle[:, None]) * n + j[None, :], db, mask=real)


class FusedAttention(torch.autograd.Function):
    """:func:`~.edge_attention.edge_attention` by these kernels."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value1: Tensor, value2: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Attend; see :func:`~.edge_attention.edge_attention`."""
        inputs = _of_one_layout(query, key, value1, value2)
        fading = None if bias is None else bias.contiguous()
        b, n, _, h, c = query.shape
        out = query.new_empty(b, n, n, h, c)
        norms = query.new_empty(2, b, h, n, n, dtype=_accumulator(query))
        _launch(_attend, inputs, fading, (out, norms))
        ctx.save_for_backward(*inputs, fading, out, norms)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all inputs."""
        refuse_second_derivative()
        *inputs, fading, out, norms = ctx.saved_tensors
        grad = grad.contiguous()
        # The gradient of softmax needs the mean over the middle atoms.
        along = (grad.to(norms.dtype) * out.to(norms.dtype)).sum(-1).permute(0, 3, 1, 2)
        along = along.contiguous()
        dquery, dkey, dvalue1, dvalue2 = (torch.empty_like(out) for _ in inputs)
        second, first = (torch.empty_like(along) for _ in range(2))
        known = (norms, along, grad)
        _launch(_left_gradients, inputs, fading, (*known, dquery, dvalue1, second))
        _launch(_right_gradients, inputs, fading, (*known, dkey, dvalue2, first))
        dbias = None
        if fading is not None and ctx.needs_input_grad[4]:
            dbias = (second + first).sum(dim=1).to(fading.dtype)
        return dquery, dkey, dvalue1, dvalue2, dbias


def edge_attention_fused(
    query: Tensor, key: Tensor, value1: Tensor, value2: Tensor, bias: Tensor | None
) -> Tensor:
    """Form for a GPU, differentiable once; see :func:`~.edge_attention.edge_attention`."""
    out: Tensor = FusedAttention.apply(  # type: ignore[no-untyped-call]
        query, key, value1, value2, bias
    )
    return out


def _of_one_layout(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors with equal strides, as slices of one projection have."""
    if len({tensor.stride() for tensor in tensors}) == 1:
        return tensors
    return tuple(tensor.contiguous() for tensor in tensors)


def _accumulator(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _launch(
    kernel: Any, inputs: tuple[Tensor, ...] | list[Tensor], bias: Tensor | None, others: Any
) -> None:
    query = inputs[0]
    b, n, _, h, c = query.shape
    width = triton.next_power_of_2(c)
    # A tile has to fit into the registers of a program.
    tile = 16 if n > 8 and width <= 16 else 8
    blocks = triton.cdiv(n, tile)
    kernel[b * h, blocks, blocks](
        *inputs, query if bias is None else bias, *others, n, h, c, b * h * n * n, *query.stride(),
        C=width, T=tile, BIASED=bias is not None,
        ACC=tl.float64 if query.dtype == torch.float64 else tl.float32,
    )  # fmt: skip
