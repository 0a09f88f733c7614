"""The alignment module of the context embedder, for weights that were trained with one.

AlphaFold 3 (Abramson et al., Nature 630, 493, 2024), algorithms 8 to 10. Module names are those of
Protenix. The alignment is that of the sequence with nothing: one row, without insertions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlmd_calc.models.atmos.config import ATMOSConfig
from mlmd_calc.models.atmos.features import N_RESTYPES, Features
from mlmd_calc.models.atmos.pairformer import PairStack
from mlmd_calc.models.atmos.primitives import BlockStack, Transition, linear, mask_bias

_OUTER_WIDTH = 32
_HEADS = 8
_HEAD_WIDTH = 8
_INSERTIONS = 2
"""Channels of a row that tell of insertions, zero here, after those of the residue class."""


class OuterProductMean(nn.Module):
    """Pairs from products of alignment columns."""

    def __init__(self, c_m: int, c_z: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(c_m)
        self.linear_1 = linear(c_m, _OUTER_WIDTH)
        self.linear_2 = linear(c_m, _OUTER_WIDTH)
        self.linear_out = linear(_OUTER_WIDTH**2, c_z, bias=True, init="zeros")

    def forward(self, m: Tensor) -> Tensor:
        """Map the alignment ``(..., m, n, c_m)`` to ``(..., n, n, c_z)``."""
        x = self.layer_norm(m)
        outer = torch.einsum("...mic,...mjd->...ijcd", self.linear_1(x), self.linear_2(x))
        # The original divides the bias as well.
        out: Tensor = self.linear_out(outer.flatten(-2)) / (m.shape[-3] + 1e-3)
        return out


class PairWeightedAveraging(nn.Module):
    """Average over columns with weights from the pairs."""

    def __init__(self, c_m: int, c_z: int) -> None:
        super().__init__()
        self.layernorm_m = nn.LayerNorm(c_m)
        self.linear_no_bias_mv = linear(c_m, _HEADS * _HEAD_WIDTH)
        self.layernorm_z = nn.LayerNorm(c_z)
        self.linear_no_bias_z = linear(c_z, _HEADS)
        self.linear_no_bias_mg = linear(c_m, _HEADS * _HEAD_WIDTH, init="zeros")
        self.linear_no_bias_out = linear(_HEADS * _HEAD_WIDTH, c_m, init="zeros")

    def forward(self, m: Tensor, z: Tensor, token_mask: Tensor) -> Tensor:
        """Return the update of ``(..., m, n, c_m)``; the mask ``(..., n)`` is bool."""
        x = self.layernorm_m(m)
        value = self.linear_no_bias_mv(x).unflatten(-1, (_HEADS, _HEAD_WIDTH))
        gate = torch.sigmoid(self.linear_no_bias_mg(x))
        logits = self.linear_no_bias_z(self.layernorm_z(z))
        logits = logits + mask_bias(token_mask, logits.dtype)[..., None, :, None]
        weights = torch.softmax(logits, dim=-2)
        mean = torch.einsum("...ijh,...mjhc->...mihc", weights, value)
        out: Tensor = self.linear_no_bias_out(gate * mean.flatten(-2))
        return out


class MSAStack(nn.Module):
    """Update of the alignment."""

    def __init__(self, config: ATMOSConfig) -> None:
        super().__init__()
        self.msa_pair_weighted_averaging = PairWeightedAveraging(config.c_m, config.c_z)
        self.transition_m = Transition(config.c_m, 4)

    def forward(self, m: Tensor, z: Tensor, token_mask: Tensor) -> Tensor:
        """Return the new alignment ``(..., m, n, c_m)``."""
        m = m + self.msa_pair_weighted_averaging(m, z, token_mask)
        out: Tensor = m + self.transition_m(m)
        return out


class MSABlock(nn.Module):
    """Alignment to pairs, then updates of both; the last block leaves the alignment alone."""

    def __init__(self, config: ATMOSConfig, *, last: bool) -> None:
        super().__init__()
        self.outer_product_mean_msa = OuterProductMean(config.c_m, config.c_z)
        self.msa_stack = None if last else MSAStack(config)
        self.pair_stack = PairStack(config)

    def forward(self, m: Tensor, z: Tensor, features: Features) -> tuple[Tensor, Tensor]:
        """Return new alignment and pairs."""
        z = z + self.outer_product_mean_msa(m)
        if self.msa_stack is not None:
            m = self.msa_stack(m, z, features.token_mask)
        return m, self.pair_stack(z, features.pair_mask)


class MSAModule(BlockStack):
    """Pairs updated from the alignment of the sequence with nothing."""

    def __init__(self, config: ATMOSConfig) -> None:
        super().__init__()
        self.linear_no_bias_m = linear(N_RESTYPES + _INSERTIONS, config.c_m)
        self.linear_no_bias_s = linear(config.c_s_inputs, config.c_m)
        count = config.msa_blocks
        self.blocks = nn.ModuleList(MSABlock(config, last=b == count - 1) for b in range(count))

    def forward(self, z: Tensor, s_inputs: Tensor, features: Features) -> Tensor:
        """Return the new pairs ``(..., n, n, c_z)``."""
        row = functional.one_hot(features.restype, N_RESTYPES + _INSERTIONS).to(z.dtype)
        m = self.linear_no_bias_m(row).unsqueeze(-3)
        m = m + self.linear_no_bias_s(s_inputs).unsqueeze(-3)
        for block in self.blocks:
            m, z = self.apply_block(block, m, z, features)
        return z
