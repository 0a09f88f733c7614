"""Transformer whose every layer is conditioned on a second set of features.

AlphaFold 3 (Abramson et al., Nature 630, 493, 2024), algorithms 23 to 26. It serves tokens, with
attention among all of them, and atoms, with attention inside windows. Module names are those of
Protenix.

What a layer takes from the conditioning features is prepared apart from it, because for atoms it is
the same at all noise levels.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlmd_calc.models.atmos.primitives import Attention, BlockStack, linear
from mlmd_calc.models.atmos.windows import AtomWindows

# Gates that start nearly closed make every block start near the identity.
_CLOSED = -2.0


class Modulation(NamedTuple):
    """Scale and shift ``(..., n, c_a)`` of normalised features."""

    scale: Tensor
    shift: Tensor


class AdaptiveLayerNorm(nn.Module):
    """Layer norm whose scale and shift depend on the conditioning features."""

    def __init__(self, c_a: int, c_s: int) -> None:
        super().__init__()
        self.layernorm_a = nn.LayerNorm(c_a, elementwise_affine=False)
        self.layernorm_s = nn.LayerNorm(c_s, bias=False)
        self.linear_s = linear(c_s, c_a, bias=True, init="zeros")
        self.linear_nobias_s = linear(c_s, c_a, init="zeros")

    def modulation(self, s: Tensor) -> Modulation:
        """Map conditioning ``(..., n, c_s)`` to scale and shift."""
        s = self.layernorm_s(s)
        return Modulation(torch.sigmoid(self.linear_s(s)), self.linear_nobias_s(s))

    def forward(self, a: Tensor, modulation: Modulation) -> Tensor:
        """Normalise ``(..., n, c_a)``."""
        out: Tensor = modulation.scale * self.layernorm_a(a) + modulation.shift
        return out


class AttentionConditions(NamedTuple):
    """What conditioned attention takes from the conditioning features."""

    queries: Modulation
    keys: Modulation | None
    gate: Tensor
    """``(..., n, c_a)``."""


class ConditionedAttention(nn.Module):
    """Attention with pair bias, conditioned input and gated output."""

    def __init__(self, c_a: int, c_s: int, c_z: int, heads: int, *, cross: bool) -> None:
        super().__init__()
        self.layernorm_a = AdaptiveLayerNorm(c_a, c_s)
        if cross:
            self.layernorm_kv = AdaptiveLayerNorm(c_a, c_s)
        self.cross = cross
        self.layernorm_z = nn.LayerNorm(c_z, bias=False)
        self.linear_nobias_z = linear(c_z, heads)
        self.attention = Attention(c_a, heads, c_a // heads, query_bias=True, output_init="lecun")
        self.linear_a_last = linear(c_s, c_a, bias=True, init="zeros", bias_value=_CLOSED)

    def bias(self, z: Tensor) -> Tensor:
        """Map pairs ``(..., n, m, c_z)`` to their part of the logits ``(..., h, n, m)``."""
        out: Tensor = self.linear_nobias_z(self.layernorm_z(z)).movedim(-1, -3)
        return out

    def conditions(self, s: Tensor) -> AttentionConditions:
        """Prepare conditioning features ``(..., n, c_s)``."""
        return AttentionConditions(
            self.layernorm_a.modulation(s),
            self.layernorm_kv.modulation(s) if self.cross else None,
            torch.sigmoid(self.linear_a_last(s)),
        )

    def forward(
        self,
        a: Tensor,
        conditions: AttentionConditions,
        bias: Tensor,
        windows: AtomWindows | None,
    ) -> Tensor:
        """Return the update of ``(..., n, c_a)``."""
        x = self.layernorm_a(a, conditions.queries)
        # The original normalises keys and values a second time.
        others = x if conditions.keys is None else self.layernorm_kv(x, conditions.keys)
        out: Tensor = self.attention(x, others, bias, windows)
        return conditions.gate * out


class TransitionConditions(NamedTuple):
    """What a conditioned transition takes from the conditioning features."""

    inputs: Modulation
    gate: Tensor
    """``(..., n, c_a)``."""


class ConditionedTransition(nn.Module):
    """Gated feed-forward block with conditioned input and gated output."""

    def __init__(self, c_a: int, c_s: int) -> None:
        super().__init__()
        self.adaln = AdaptiveLayerNorm(c_a, c_s)
        self.linear_nobias_a1 = linear(c_a, 2 * c_a, init="relu")
        self.linear_nobias_a2 = linear(c_a, 2 * c_a)
        self.linear_nobias_b = linear(2 * c_a, c_a)
        self.linear_s = linear(c_s, c_a, bias=True, init="zeros", bias_value=_CLOSED)

    def conditions(self, s: Tensor) -> TransitionConditions:
        """Prepare conditioning features ``(..., n, c_s)``."""
        return TransitionConditions(self.adaln.modulation(s), torch.sigmoid(self.linear_s(s)))

    def forward(self, a: Tensor, conditions: TransitionConditions) -> Tensor:
        """Return the update of ``(..., n, c_a)``."""
        y = self.adaln(a, conditions.inputs)
        hidden = functional.silu(self.linear_nobias_a1(y)) * self.linear_nobias_a2(y)
        out: Tensor = conditions.gate * self.linear_nobias_b(hidden)
        return out


class BlockConditions(NamedTuple):
    """What a block takes from the conditioning features."""

    attention: AttentionConditions
    transition: TransitionConditions


class DiffusionTransformerBlock(nn.Module):
    """Attention, then transition, each added to its input."""

    def __init__(self, c_a: int, c_s: int, c_z: int, heads: int, *, cross: bool) -> None:
        super().__init__()
        self.attention_pair_bias = ConditionedAttention(c_a, c_s, c_z, heads, cross=cross)
        self.conditioned_transition_block = ConditionedTransition(c_a, c_s)

    def conditions(self, s: Tensor) -> BlockConditions:
        """Prepare conditioning features ``(..., n, c_s)``."""
        return BlockConditions(
            self.attention_pair_bias.conditions(s), self.conditioned_transition_block.conditions(s)
        )

    def forward(
        self,
        a: Tensor,
        conditions: BlockConditions,
        bias: Tensor,
        windows: AtomWindows | None = None,
    ) -> Tensor:
        """Return new ``(..., n, c_a)``."""
        a = a + self.attention_pair_bias(a, conditions.attention, bias, windows)
        out: Tensor = a + self.conditioned_transition_block(a, conditions.transition)
        return out


class DiffusionTransformer(BlockStack):
    """Several blocks.

    Parameters
    ----------
    c_a, c_s, c_z
        Widths of features, conditioning and pairs.
    blocks, heads
        Number of blocks, and of attention heads in each.
    cross
        Normalise keys and values by themselves, as the atom transformers do.
    """

    def __init__(
        self, c_a: int, c_s: int, c_z: int, blocks: int, heads: int, *, cross: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            DiffusionTransformerBlock(c_a, c_s, c_z, heads, cross=cross) for _ in range(blocks)
        )

    def biases(self, z: Tensor, key_bias: Tensor | None = None) -> list[Tensor]:
        """Return the logits' bias of every block; it does not depend on the features.

        Parameters
        ----------
        z
            ``(..., n, m, c_z)`` pairs.
        key_bias
            Mask of the keys, broadcastable to ``(..., h, n, m)``; see :func:`~.mask_bias`.
        """
        found = [block.attention_pair_bias.bias(z) for block in self._blocks]
        return found if key_bias is None else [bias + key_bias for bias in found]

    def conditions(self, s: Tensor) -> list[BlockConditions]:
        """Prepare conditioning features ``(..., n, c_s)`` for every block."""
        return [block.conditions(s) for block in self._blocks]

    @property
    def _blocks(self) -> list[DiffusionTransformerBlock]:
        return cast("list[DiffusionTransformerBlock]", list(self.blocks))

    def forward(
        self,
        a: Tensor,
        conditions: list[BlockConditions],
        biases: list[Tensor],
        windows: AtomWindows | None = None,
    ) -> Tensor:
        """Transform ``a``.

        Parameters
        ----------
        a
            ``(..., n, c_a)`` features.
        conditions, biases
            From :meth:`conditions` and :meth:`biases`, with leading axes that broadcast with those
            of ``a``.
        windows
            Restrict attention to these windows.
        """
        for block, own, bias in zip(self.blocks, conditions, biases, strict=True):
            a = self.apply_block(block, a, own, bias, windows)
        return a
