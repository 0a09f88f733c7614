"""Copies of the network for energies and forces: merged maps, few operations."""

from __future__ import annotations

import copy
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlmd_calc.models.linear import Linear, replace_linear_maps
from mlmd_calc.models.loops import known
from mlmd_calc.models.mdet.compiled import CompiledAttention, CompiledGELU
from mlmd_calc.models.mdet.edge_attention import AttentionFunction, can_fuse, edge_attention
from mlmd_calc.models.mdet.network import MDET, Decomposer, EdgeAttention, PairEncoder

N = TypeVar("N", bound=PairEncoder)


def merge_weights(network: N) -> N:
    """Copy a network for inference: the same results up to rounding, with less work.

    * The four projections of an attention layer are one.
    * The last map before the sum over the partners of an atom comes after it.
    * On the CPU, attention, activations and linear maps are single operations (:mod:`~.compiled`,
      :class:`~mlmd_calc.models.linear.Linear`).

    Parameters
    ----------
    network
        Network to copy. Later changes of its weights do not reach the copy.

    Returns
    -------
    MDET or PairEncoder
        Network in evaluation mode that cannot be trained, has first derivatives only, and whose
        state dict has other names.
    """
    merged = copy.deepcopy(network).eval()
    for layer in merged.layers:
        layer.attention = MergedAttention(cast(EdgeAttention, layer.attention))
    if isinstance(merged, MDET) and merged.decomposer.pooling:
        pooling: nn.Module = MergedDecomposer(merged.decomposer)
        merged.add_module("decomposer", pooling)
    for parent in list(merged.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.GELU):
                setattr(parent, name, GELU())
    replace_linear_maps(merged)
    return merged.requires_grad_(False)


class MergedAttention(nn.Module):
    """An :class:`~.network.EdgeAttention` with one projection.

    Features are ordered by channel and head, as the compiled loops want them, or on a GPU by head
    and channel, so that what a kernel of one head reads lies side by side.
    """

    def __init__(self, attention: EdgeAttention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        weight = attention.olin.weight
        self.by_head = can_fuse(weight)
        order = torch.arange(weight.shape[0], device=weight.device)
        if not self.by_head:
            order = order.view(self.num_heads, -1).T.flatten()
        maps = (attention.qlin, attention.klin, attention.v1lin, attention.v2lin)
        self.projection = Linear(torch.cat([linear.weight[order] for linear in maps]))
        self.out = Linear(weight[:, order])

    def forward(self, pairs: Tensor, bias: Tensor | None, attention: AttentionFunction) -> Tensor:
        """Map pair features ``(b, n, n, E)`` to an update of the same shape."""
        b, n, _, width = pairs.shape
        projections = self.projection(pairs)
        if self.by_head:
            split = projections.view(b, n, n, 4, self.num_heads, width // self.num_heads)
            query, key, value1, value2 = split.unbind(3)
            attended = attention(query, key, value1, value2, bias)
            out: Tensor = self.out(attended.reshape(pairs.shape))
            return out
        projections = projections.view(b, n, n, 4, width // self.num_heads, self.num_heads)
        if attention is edge_attention and known(projections):
            fading = None if bias is None else bias.to(projections.dtype)
            attended = CompiledAttention.apply(  # type: ignore[no-untyped-call]
                projections, fading
            )
        else:
            query, key, value1, value2 = projections.transpose(-1, -2).unbind(3)
            attended = attention(query, key, value1, value2, bias).transpose(-1, -2)
        update: Tensor = self.out(attended.reshape(pairs.shape))
        return update


class MergedDecomposer(nn.Module):
    """A :class:`~.network.Decomposer` that pools before the last map of pairs."""

    bias: Tensor

    def __init__(self, decomposer: Decomposer) -> None:
        super().__init__()
        self.hidden = decomposer.out_proj[:3]
        linear = cast(nn.Linear, decomposer.out_proj[4])
        # Halves for the pairs of an atom as the first and as the second one.
        first, second = linear.weight.detach().chunk(2)
        self.pooled = Linear(torch.cat([first, second], dim=1))
        self.register_buffer("bias", linear.bias.detach().view(2, -1).sum(dim=0))
        self.node_mlp = decomposer.node_mlp

    def forward(self, pairs: Tensor, mask: Tensor | None, weights: Tensor | None = None) -> Tensor:
        """Map ``(b, n, n, E)`` to ``(b, n, E)``; pairs may have weights ``(b, n, n)``."""
        hidden = self.hidden(pairs)
        counts = _counts(pairs, mask, weights)
        hidden = hidden * counts
        both = torch.cat([hidden.sum(dim=2), hidden.sum(dim=1)], dim=-1)
        atoms: Tensor = self.node_mlp(self.pooled(both) + counts.sum(dim=2) * self.bias)
        return atoms


def _counts(pairs: Tensor, mask: Tensor | None, weights: Tensor | None) -> Tensor:
    """How much each pair counts, ``(b, n, n, 1)``, the same for both directions."""
    counts = pairs.new_ones(pairs.shape[:3]) if weights is None else weights.to(pairs.dtype)
    if mask is not None:
        counts = counts * (mask[:, :, None] & mask[:, None, :])
    return counts[..., None]


class GELU(nn.Module):
    """Exact GELU, on the CPU in double precision together with its slope."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to every number."""
        if known(x) and x.dtype == torch.float64:
            out: Tensor = CompiledGELU.apply(x)  # type: ignore[no-untyped-call]
            return out
        return functional.gelu(x)
