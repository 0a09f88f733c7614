"""Pairformer: triangle updates of token pairs and attention among tokens.

AlphaFold 3 (Abramson et al., Nature 630, 493, 2024), algorithms 11 to 17 and 24. Module names are
those of Protenix.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlmd_calc.models.atmos.config import ATMOSConfig
from mlmd_calc.models.atmos.primitives import Attention, BlockStack, Transition, linear, mask_bias


class TriangleMultiplication(nn.Module):
    """Update of pair ij by the products of the other two edges of all triangles ijk."""

    def __init__(self, c_z: int, c_hidden: int, *, outgoing: bool) -> None:
        super().__init__()
        self.equation = "...ikc,...jkc->...ijc" if outgoing else "...kic,...kjc->...ijc"
        self.layer_norm_in = nn.LayerNorm(c_z)
        self.layer_norm_out = nn.LayerNorm(c_hidden)
        self.linear_a_p = linear(c_z, c_hidden)
        self.linear_a_g = linear(c_z, c_hidden, init="zeros")
        self.linear_b_p = linear(c_z, c_hidden)
        self.linear_b_g = linear(c_z, c_hidden, init="zeros")
        self.linear_g = linear(c_z, c_z, init="zeros")
        self.linear_z = linear(c_hidden, c_z, init="zeros")

    def forward(self, z: Tensor, mask: Tensor | None) -> Tensor:
        """Return the update of ``(..., n, n, c_z)``; the mask ``(..., n, n)`` is bool."""
        y = self.layer_norm_in(z)
        a = torch.sigmoid(self.linear_a_g(y)) * self.linear_a_p(y)
        b = torch.sigmoid(self.linear_b_g(y)) * self.linear_b_p(y)
        if mask is not None:
            a, b = a * mask[..., None], b * mask[..., None]
        product = torch.einsum(self.equation, a, b)
        gate = torch.sigmoid(self.linear_g(y))
        out: Tensor = gate * self.linear_z(self.layer_norm_out(product))
        return out


class TriangleAttention(nn.Module):
    """Attention among the pairs that share a first token, or (``ending``) a second one."""

    def __init__(self, c_z: int, heads: int, head_width: int, *, ending: bool) -> None:
        super().__init__()
        self.ending = ending
        self.layer_norm = nn.LayerNorm(c_z)
        self.linear = linear(c_z, heads)
        self.mha = Attention(c_z, heads, head_width, query_bias=False, output_init="zeros")

    def forward(self, z: Tensor, mask: Tensor | None) -> Tensor:
        """Return the update of ``(..., n, n, c_z)``; the mask ``(..., n, n)`` is bool."""
        if self.ending:
            z = z.transpose(-3, -2)
            mask = None if mask is None else mask.transpose(-2, -1)
        y = self.layer_norm(z)
        # (..., 1, h, j, l): the same for every first token i.
        bias = self.linear(y).movedim(-1, -3).unsqueeze(-4)
        if mask is not None:
            bias = bias + mask_bias(mask, y.dtype)[..., :, None, None, :]
        out: Tensor = self.mha(y, y, bias)
        return out.transpose(-3, -2) if self.ending else out


class AttentionPairBias(nn.Module):
    """Attention among tokens with logits biased by the pairs."""

    def __init__(self, c_s: int, c_z: int, heads: int) -> None:
        super().__init__()
        self.layernorm_a = nn.LayerNorm(c_s)
        self.layernorm_z = nn.LayerNorm(c_z)
        self.linear_nobias_z = linear(c_z, heads)
        self.attention = Attention(c_s, heads, c_s // heads, query_bias=True, output_init="zeros")

    def forward(self, s: Tensor, z: Tensor, key_mask: Tensor | None) -> Tensor:
        """Return the update of ``(..., n, c_s)``; the mask ``(..., n)`` is bool."""
        x = self.layernorm_a(s)
        bias = self.linear_nobias_z(self.layernorm_z(z)).movedim(-1, -3)
        if key_mask is not None:
            bias = bias + mask_bias(key_mask, x.dtype)[..., None, None, :]
        out: Tensor = self.attention(x, x, bias)
        return out


class PairUpdates(nn.Module):
    """The five updates of the pairs that every block makes."""

    def __init__(self, config: ATMOSConfig) -> None:
        super().__init__()
        heads, width = config.triangle_heads, config.triangle_head_width
        self.dropout = config.pair_dropout
        self.tri_mul_out = TriangleMultiplication(config.c_z, config.c_triangle, outgoing=True)
        self.tri_mul_in = TriangleMultiplication(config.c_z, config.c_triangle, outgoing=False)
        self.tri_att_start = TriangleAttention(config.c_z, heads, width, ending=False)
        self.tri_att_end = TriangleAttention(config.c_z, heads, width, ending=True)
        self.pair_transition = Transition(config.c_z, config.pair_transition_factor)

    def update_pairs(self, z: Tensor, mask: Tensor | None) -> Tensor:
        """Return the new pairs ``(..., n, n, c_z)``; the mask ``(..., n, n)`` is bool."""
        z = z + self._drop(self.tri_mul_out(z, mask), shared=-3)
        z = z + self._drop(self.tri_mul_in(z, mask), shared=-3)
        z = z + self._drop(self.tri_att_start(z, mask), shared=-3)
        z = z + self._drop(self.tri_att_end(z, mask), shared=-2)
        out: Tensor = z + self.pair_transition(z)
        return out

    def _drop(self, update: Tensor, *, shared: int) -> Tensor:
        """Apply dropout with a mask that is the same along one axis."""
        if not self.training or self.dropout == 0.0:
            return update
        shape = list(update.shape)
        shape[shared] = 1
        return update * functional.dropout(update.new_ones(shape), self.dropout)


class PairStack(PairUpdates):
    """Block without tokens."""

    def forward(self, z: Tensor, mask: Tensor | None) -> Tensor:
        """Return the new pairs; see :meth:`PairUpdates.update_pairs`."""
        return self.update_pairs(z, mask)


class PairformerBlock(PairUpdates):
    """Pair updates, then attention and transition of the tokens."""

    def __init__(self, config: ATMOSConfig) -> None:
        super().__init__(config)
        self.attention_pair_bias = AttentionPairBias(config.c_s, config.c_z, config.single_heads)
        self.single_transition = Transition(config.c_s, 4)

    def forward(
        self, s: Tensor, z: Tensor, pair_mask: Tensor | None, key_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return new tokens ``(..., n, c_s)`` and pairs ``(..., n, n, c_z)``.

        Parameters
        ----------
        s, z
            Tokens and pairs.
        pair_mask
            ``(..., n, n)`` bool, True for pairs that the triangle updates may use; None for all.
        key_mask
            ``(..., n)`` bool, True for tokens that others may attend to; None for all. The original
            never masks this attention, because it never pads.
        """
        z = self.update_pairs(z, pair_mask)
        s = s + self.attention_pair_bias(s, z, key_mask)
        return s + self.single_transition(s), z


class PairformerStack(BlockStack):
    """Several Pairformer blocks."""

    def __init__(self, config: ATMOSConfig, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PairformerBlock(config) for _ in range(blocks))

    def forward(
        self, s: Tensor, z: Tensor, pair_mask: Tensor | None, key_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Apply the blocks; arguments as of :meth:`PairformerBlock.forward`."""
        for block in self.blocks:
            s, z = self.apply_block(block, s, z, pair_mask, key_mask)
        return s, z
