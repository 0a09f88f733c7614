"""Context embedder: everything the network knows of a system before it sees coordinates.

The trunk of AlphaFold 3 (Abramson et al., Nature 630, 493, 2024), algorithms 1 to 3, without
templates. Module names are those of Protenix.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlmd_calc.models.atmos.atom_attention import AtomAttentionEncoder
from mlmd_calc.models.atmos.config import ATMOSConfig
from mlmd_calc.models.atmos.features import N_RESTYPES, Context, Features
from mlmd_calc.models.atmos.msa import MSAModule
from mlmd_calc.models.atmos.pairformer import PairformerStack
from mlmd_calc.models.atmos.primitives import linear

_MAX_OFFSET = 32
_MAX_COPY_OFFSET = 2
_OFFSET_CLASSES = 2 * _MAX_OFFSET + 2
_COPY_CLASSES = 2 * _MAX_COPY_OFFSET + 2


class InputFeatureEmbedder(nn.Module):
    """Chemistry of each token: its atoms, residue class and alignment statistics."""

    def __init__(self, config: ATMOSConfig) -> None:
        super().__init__()
        self.atom_attention_encoder = AtomAttentionEncoder(
            config, config.c_token, config.context_atom_blocks
        )

    def forward(self, features: Features) -> Tensor:
        """Return ``(..., n, c_token + 65)``."""
        encoder = self.atom_attention_encoder
        conditioning = encoder.conditioning(features)
        tokens, _ = encoder(None, conditioning, encoder.atom_transformer.blocks(conditioning))
        restype = functional.one_hot(features.restype, N_RESTYPES)
        profile = restype if features.profile is None else features.profile
        deletions = features.deletion_mean
        if deletions is None:
            deletions = torch.zeros_like(features.restype)
        known = [restype, profile, deletions[..., None]]
        return torch.cat([tokens, *(value.to(tokens.dtype) for value in known)], dim=-1)


def _offset_class(index: Tensor, same: Tensor, largest: int) -> Tensor:
    """Clipped difference of indices, and one class for pairs it means nothing for."""
    offset = index[..., :, None] - index[..., None, :]
    clipped = (offset + largest).clamp(0, 2 * largest)
    return torch.where(same, clipped, 2 * largest + 1)


class RelativePositionEncoding(nn.Module):
    """Where two tokens are in chain, residue and copies of a chain, relative to each other."""

    def __init__(self, c_z: int) -> None:
        super().__init__()
        self.linear_no_bias = linear(2 * _OFFSET_CLASSES + 1 + _COPY_CLASSES, c_z)

    def forward(self, features: Features) -> Tensor:
        """Return ``(..., n, n, c_z)``."""
        same_chain = _equal(features.asym_id)
        same_residue = same_chain & _equal(features.residue_index)
        same_entity = _equal(features.entity_id)
        residue = _offset_class(features.residue_index, same_chain, _MAX_OFFSET)
        token = _offset_class(features.token_index, same_residue, _MAX_OFFSET)
        copy = _offset_class(features.sym_id, same_entity, _MAX_COPY_OFFSET)
        code = torch.cat(
            [
                functional.one_hot(residue, _OFFSET_CLASSES),
                functional.one_hot(token, _OFFSET_CLASSES),
                same_entity[..., None],
                functional.one_hot(copy, _COPY_CLASSES),
            ],
            dim=-1,
        )
        out: Tensor = self.linear_no_bias(code.to(self.linear_no_bias.weight.dtype))
        return out


def _equal(index: Tensor) -> Tensor:
    return index[..., :, None] == index[..., None, :]


class ContextEmbedder(nn.Module):
    """Embedding of a system's chemistry, from which every trajectory starts.

    Parameters
    ----------
    config
        Sizes; the alignment module exists only if ``msa_blocks`` is not 0.
    """

    def __init__(self, config: ATMOSConfig) -> None:
        super().__init__()
        self.cycles = config.context_cycles
        self.input_embedder = InputFeatureEmbedder(config)
        self.relative_position_encoding = RelativePositionEncoding(config.c_z)
        self.linear_no_bias_sinit = linear(config.c_s_inputs, config.c_s)
        self.linear_no_bias_zinit1 = linear(config.c_s, config.c_z)
        self.linear_no_bias_zinit2 = linear(config.c_s, config.c_z)
        self.linear_no_bias_token_bond = linear(1, config.c_z)
        self.linear_no_bias_z_cycle = linear(config.c_z, config.c_z, init="zeros")
        self.linear_no_bias_s = linear(config.c_s, config.c_s, init="zeros")
        self.layernorm_z_cycle = nn.LayerNorm(config.c_z)
        self.layernorm_s = nn.LayerNorm(config.c_s)
        self.msa_module = MSAModule(config) if config.msa_blocks else None
        self.pairformer_stack = PairformerStack(config, config.context_blocks)

    def forward(self, features: Features) -> Context:
        """Embed a batch of systems; gradients flow through the last of the cycles only."""
        s_inputs = self.input_embedder(features)
        s_init = self.linear_no_bias_sinit(s_inputs)
        bonds = features.token_bonds[..., None].to(s_init.dtype)
        z_init = (
            self.linear_no_bias_zinit1(s_init)[..., :, None, :]
            + self.linear_no_bias_zinit2(s_init)[..., None, :, :]
            + self.relative_position_encoding(features)
            + self.linear_no_bias_token_bond(bonds)
        )
        s, z = torch.zeros_like(s_init), torch.zeros_like(z_init)
        for cycle in range(self.cycles):
            with torch.set_grad_enabled(torch.is_grad_enabled() and cycle == self.cycles - 1):
                z = z_init + self.linear_no_bias_z_cycle(self.layernorm_z_cycle(z))
                if self.msa_module is not None:
                    z = self.msa_module(z, s_inputs, features)
                s = s_init + self.linear_no_bias_s(self.layernorm_s(s))
                s, z = self.pairformer_stack(s, z, features.pair_mask, features.token_mask)
        return Context(s_inputs, s, z)


class DistogramHead(nn.Module):
    """Distribution of distances between representative atoms, from the pairs."""

    def __init__(self, c_z: int, bins: int) -> None:
        super().__init__()
        self.linear = linear(c_z, bins, bias=True, init="zeros")

    def forward(self, z: Tensor) -> Tensor:
        """Map pairs ``(..., n, n, c_z)`` to symmetric logits ``(..., n, n, bins)``."""
        logits = self.linear(z)
        out: Tensor = logits + logits.transpose(-2, -3)
        return out
