"""From atoms to tokens and back, with attention among neighbouring atoms.

AlphaFold 3 (Abramson et al., Nature 630, 493, 2024), algorithms 5 to 7. Module names are those of
Protenix.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlmd_calc.models.atmos.config import ATMOSConfig
from mlmd_calc.models.atmos.diffusion_transformer import BlockConditions, DiffusionTransformer
from mlmd_calc.models.atmos.features import N_ELEMENTS, N_NAME_CHARS, Features
from mlmd_calc.models.atmos.primitives import linear, mask_bias
from mlmd_calc.models.atmos.windows import AtomWindows

_ATOM_FEATURES = 1 + N_ELEMENTS + 4 * N_NAME_CHARS


def token_values_on_atoms(x: Tensor, atom_to_token: Tensor) -> Tensor:
    """Map token features ``(..., n, c)`` to the atoms ``(..., a, c)`` of each token."""
    return torch.take_along_dim(x, atom_to_token[..., None], dim=-2)


def windowed_pairs(z: Tensor, atom_to_token: Tensor, windows: AtomWindows) -> Tensor:
    """Map token pairs ``(..., n, n, c)`` to atom pairs ``(..., windows, queries, keys, c)``."""
    index = atom_to_token[..., None]
    rows, columns = windows.queries(index), windows.keys(index).transpose(-1, -2)
    pairs = rows * z.shape[-2] + columns
    taken = torch.take_along_dim(z.flatten(-3, -2), pairs.flatten(-3)[..., None], dim=-2)
    return taken.view(*pairs.shape, z.shape[-1])


def mean_over_atoms(features: Features, dtype: torch.dtype) -> Tensor:
    """Return the matrix ``(..., n, a)`` that averages atoms over tokens; padding has no weight.

    A matrix product, unlike scattered sums, gives the same bits on every run on a GPU.
    """
    members = functional.one_hot(features.atom_to_token, features.n_tokens).to(dtype)
    members = members * features.atom_mask[..., None]
    return (members / members.sum(-2, keepdim=True).clamp(min=1.0)).transpose(-1, -2)


@dataclass(frozen=True)
class AtomConditioning:
    """All that atom encoder and decoder need besides features that change with the noise.

    Attributes
    ----------
    single
        ``(..., a, c_atom)`` conditioning of each atom.
    pair
        ``(..., windows, queries, keys, c_atompair)`` conditioning of pairs.
    key_bias
        ``(..., windows, 1, 1, keys)`` mask of empty slots.
    pooling
        ``(..., n, a)`` average over the atoms of a token.
    atom_to_token
        ``(..., a)`` token of each atom.
    windows
        Windows of the attention.
    """

    single: Tensor
    pair: Tensor
    key_bias: Tensor
    pooling: Tensor
    atom_to_token: Tensor
    windows: AtomWindows

    def with_sample_axis(self) -> AtomConditioning:
        """Insert an axis of length one behind the batch axis."""
        return replace(
            self,
            single=self.single.unsqueeze(1),
            pair=self.pair.unsqueeze(1),
            key_bias=self.key_bias.unsqueeze(1),
            pooling=self.pooling.unsqueeze(1),
            atom_to_token=self.atom_to_token.unsqueeze(1),
        )


class AtomBlocks(NamedTuple):
    """What the blocks of an atom transformer take from the conditioning."""

    conditions: list[BlockConditions]
    """``(..., a, c_atom)`` each."""
    biases: list[Tensor]
    """``(..., windows, h, queries, keys)`` each."""


class AtomTransformer(nn.Module):
    """Holder of a transformer over atoms, for the sake of its name."""

    def __init__(self, config: ATMOSConfig, blocks: int) -> None:
        super().__init__()
        self.diffusion_transformer = DiffusionTransformer(
            c_a=config.c_atom,
            c_s=config.c_atom,
            c_z=config.c_atompair,
            blocks=blocks,
            heads=config.atom_heads,
            cross=True,
        )

    def blocks(self, conditioning: AtomConditioning) -> AtomBlocks:
        """Prepare the conditioning for every block."""
        transformer = self.diffusion_transformer
        return AtomBlocks(
            transformer.conditions(conditioning.single),
            transformer.biases(conditioning.pair, conditioning.key_bias),
        )

    def forward(self, q: Tensor, blocks: AtomBlocks, windows: AtomWindows) -> Tensor:
        """Transform atoms ``(..., a, c_atom)``."""
        out: Tensor = self.diffusion_transformer(q, blocks.conditions, blocks.biases, windows)
        return out


class AtomAttentionEncoder(nn.Module):
    """Features of atoms, with or without coordinates, gathered into tokens.

    Parameters
    ----------
    config
        Sizes.
    c_token
        Width of the tokens.
    blocks
        Blocks of the atom transformer.
    coordinates
        Coordinates are given.
    embeddings
        Embeddings of tokens and pairs are given.
    """

    def __init__(
        self,
        config: ATMOSConfig,
        c_token: int,
        blocks: int,
        *,
        coordinates: bool = False,
        embeddings: bool = False,
    ) -> None:
        super().__init__()
        c_atom, c_pair = config.c_atom, config.c_atompair
        self.window = (config.atom_queries, config.atom_keys)
        self.linear_no_bias_ref_pos = linear(3, c_atom)
        self.linear_no_bias_ref_charge = linear(1, c_atom)
        self.linear_no_bias_f = linear(_ATOM_FEATURES, c_atom)
        self.linear_no_bias_d = linear(3, c_pair)
        self.linear_no_bias_invd = linear(1, c_pair)
        self.linear_no_bias_v = linear(1, c_pair)
        if embeddings:
            self.layernorm_s = nn.LayerNorm(config.c_s, bias=False)
            self.linear_no_bias_s = linear(config.c_s, c_atom, init="zeros")
            self.layernorm_z = nn.LayerNorm(config.c_z, bias=False)
            self.linear_no_bias_z = linear(config.c_z, c_pair, init="zeros")
        if coordinates:
            self.linear_no_bias_r = linear(3, c_atom)
        self.linear_no_bias_cl = linear(c_atom, c_pair, init="zeros")
        self.linear_no_bias_cm = linear(c_atom, c_pair, init="zeros")
        self.small_mlp = nn.Sequential(
            nn.ReLU(),
            linear(c_pair, c_pair, init="relu"),
            nn.ReLU(),
            linear(c_pair, c_pair, init="relu"),
            nn.ReLU(),
            linear(c_pair, c_pair, init="zeros"),
        )
        self.atom_transformer = AtomTransformer(config, blocks)
        self.linear_no_bias_q = linear(c_atom, c_token, init="relu")

    def windows(self, features: Features) -> AtomWindows:
        """Return the windows the atoms are divided into."""
        return AtomWindows.of(features.n_atoms, *self.window)

    def conditioning(
        self,
        features: Features,
        s: Tensor | None = None,
        z: Tensor | None = None,
        extra_pair: Tensor | None = None,
    ) -> AtomConditioning:
        """Return what does not depend on the coordinates given to :meth:`forward`.

        Parameters
        ----------
        features
            Static features.
        s, z
            ``(..., n, c_s)`` and ``(..., n, n, c_z)`` embeddings, if the encoder takes any.
        extra_pair
            ``(..., windows, queries, keys, c_atompair)`` to add to the pair conditioning.
        """
        windows = self.windows(features)
        single = self._reference_atoms(features)
        pair = self._reference_pairs(features, windows)
        if extra_pair is not None:
            pair = pair + extra_pair
        if s is not None and z is not None:
            atom_to_token = features.atom_to_token
            narrow = self.linear_no_bias_z(self.layernorm_z(z))
            pair = pair + windowed_pairs(narrow, atom_to_token, windows)
            tokens = self.linear_no_bias_s(self.layernorm_s(s))
            single = single + token_values_on_atoms(tokens, atom_to_token)
        active = functional.relu(single)
        pair = pair + windows.queries(self.linear_no_bias_cl(active)).unsqueeze(-2)
        pair = pair + windows.keys(self.linear_no_bias_cm(active)).unsqueeze(-3)
        keys = windows.keys(features.atom_mask[..., None])[..., 0]
        return AtomConditioning(
            single=single,
            pair=pair + self.small_mlp(pair),
            key_bias=mask_bias(keys, single.dtype)[..., None, None, :],
            pooling=mean_over_atoms(features, single.dtype),
            atom_to_token=features.atom_to_token,
            windows=windows,
        )

    def forward(
        self, r: Tensor | None, conditioning: AtomConditioning, blocks: AtomBlocks
    ) -> tuple[Tensor, Tensor]:
        """Encode the atoms.

        Parameters
        ----------
        r
            ``(..., a, 3)`` coordinates, if the encoder takes any.
        conditioning
            From :meth:`conditioning`.
        blocks
            From the atom transformer.

        Returns
        -------
        Tensor
            ``(..., n, c_token)`` tokens.
        Tensor
            ``(..., a, c_atom)`` atoms.
        """
        q = conditioning.single
        if r is not None:
            q = q + self.linear_no_bias_r(r)
        q = self.atom_transformer(q, blocks, conditioning.windows)
        atoms = functional.relu(self.linear_no_bias_q(q))
        return torch.matmul(conditioning.pooling, atoms), q

    def _reference_atoms(self, features: Features) -> Tensor:
        """Embed element, charge, name and reference position of each atom."""
        dtype = self.linear_no_bias_f.weight.dtype
        mask = features.ref_mask[..., None].to(dtype)
        chars = functional.one_hot(features.ref_atom_name_chars, N_NAME_CHARS)
        element = functional.one_hot(features.ref_element, N_ELEMENTS)
        described = torch.cat([mask, element.to(dtype), chars.flatten(-2).to(dtype)], dim=-1)
        charge = torch.arcsinh(features.ref_charge.to(dtype))[..., None]
        out: Tensor = mask * (
            self.linear_no_bias_ref_pos(features.ref_pos.to(dtype))
            + self.linear_no_bias_ref_charge(charge)
            + self.linear_no_bias_f(described)
        )
        return out

    def _reference_pairs(self, features: Features, windows: AtomWindows) -> Tensor:
        """Embed displacements between atoms of the same reference conformer."""
        dtype = self.linear_no_bias_d.weight.dtype
        position = features.ref_pos.to(dtype)
        uid = features.ref_space_uid[..., None]
        d = windows.queries(position).unsqueeze(-2) - windows.keys(position).unsqueeze(-3)
        same = windows.queries(uid) == windows.keys(uid).transpose(-1, -2)
        v = same.to(dtype)[..., None]
        inverse = 1.0 / (1.0 + d.square().sum(-1, keepdim=True))
        out: Tensor = v * (
            self.linear_no_bias_d(d) + self.linear_no_bias_invd(inverse)
        ) + self.linear_no_bias_v(v)
        return out


class AtomAttentionDecoder(nn.Module):
    """Tokens to a displacement of each atom."""

    def __init__(self, config: ATMOSConfig, c_token: int, blocks: int) -> None:
        super().__init__()
        self.linear_no_bias_a = linear(c_token, config.c_atom)
        self.atom_transformer = AtomTransformer(config, blocks)
        self.layernorm_q = nn.LayerNorm(config.c_atom, bias=False)
        self.linear_no_bias_out = linear(config.c_atom, 3, init="zeros")

    def forward(
        self, a: Tensor, q: Tensor, conditioning: AtomConditioning, blocks: AtomBlocks
    ) -> Tensor:
        """Map tokens ``(..., n, c_token)`` and the encoder's atoms to ``(..., a, 3)``."""
        q = q + token_values_on_atoms(self.linear_no_bias_a(a), conditioning.atom_to_token)
        q = self.atom_transformer(q, blocks, conditioning.windows)
        out: Tensor = self.linear_no_bias_out(self.layernorm_q(q))
        return out
