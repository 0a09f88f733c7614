"""Pairs of atoms: what an integrator knows of geometry, and what it moves atoms along.

The features of atoms are invariant: elements, lengths and scalar products of velocities and
accelerations. Geometry enters through features of pairs, which bias attention,
and through the directions along which the read-out moves atoms. So the prediction turns, and
mirrors, exactly with the molecule. Blocks see the state at t = 0 only, and times enter in the
read-out, so that more of them cost little.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import ase.units
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mlmd_calc.models.atom.blocks import RMS_EPSILON
from mlmd_calc.models.atom.config import PAIR_WIDTH, IntegratorConfig
from mlmd_calc.models.atom.physical_units import NUM_ELEMENTS
from mlmd_calc.models.atom.springs import NUM_COEFFICIENTS
from mlmd_calc.models.atom.vectors import VectorLayer, agitation, along
from mlmd_calc.models.mdet.network import PairEncoder

# Gaussians of distances, Å.
_NEAREST: Final = 0.7
_FARTHEST: Final = 6.0
_NUM_DISTANCES: Final = 24
_DISTANCE_WIDTH: Final = 0.25

_ELEMENT_WIDTH: Final = 16


class Geometry(NamedTuple):
    """Relative positions and motions of atoms j as seen from atoms i.

    Attributes
    ----------
    distances
        ``(b, n, n)`` Å; 1 where the pair is not real.
    directions
        ``(b, n, n, 3)`` unit vectors from i to j; 0 where i = j.
    radial
        ``(b, n, n, m)`` components of relative velocities (and accelerations) along the directions.
    real
        ``(b, n, n)`` bool, pairs of two different real atoms.
    """

    distances: Tensor
    directions: Tensor
    radial: Tensor
    real: Tensor

    @classmethod
    def of(cls, positions: Tensor, motions: Tensor, mask: Tensor) -> Geometry:
        """Take the geometry of molecules.

        Parameters
        ----------
        positions
            ``(b, n, 3)`` Å; finite for padding as well.
        motions
            ``(b, n, m, 3)`` velocities (and accelerations).
        mask
            ``(b, n)`` bool, True for real atoms.
        """
        same = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        real = mask[:, :, None] & mask[:, None, :] & ~same
        vectors = positions[:, None] - positions[:, :, None]
        # The length of a zero vector has no derivative, even where it is not used.
        squares = vectors.square().sum(dim=-1).masked_fill(~real, 1.0)
        distances = squares.sqrt()
        directions = vectors / distances[..., None]
        return cls(distances, directions, along(directions, motions), real)


class PairLifting(nn.Module):
    """Features of pairs and of atoms, and the bias that pairs give to attention.

    With the option ``encoder`` those of a force field's network go with the own features of pairs,
    and those of the pairs of an atom with itself to the atom.
    """

    def __init__(self, config: IntegratorConfig) -> None:
        super().__init__()
        motions, width, hidden = config.num_motions, config.lifting_dim, config.pair_hidden_dim
        self.element_embedding = nn.Embedding(NUM_ELEMENTS, _ELEMENT_WIDTH)
        self.layers = nn.Sequential(
            nn.Linear(_NUM_DISTANCES + 2 * _ELEMENT_WIDTH + motions, hidden),
            nn.SiLU(),
            nn.Linear(hidden, PAIR_WIDTH),
        )
        self.heads = (config.num_layers, config.num_heads)
        self.bias = nn.Linear(config.pair_width, config.num_layers * config.num_heads)
        self.v_0_linear = nn.Linear(1, width)
        self.concat_feats_linear = nn.Linear(motions * (motions + 1) // 2, width)
        self.encoder: PairEncoder | None = None
        if config.encoder is not None:
            # It stays as the force field learnt it, which halves the time of a training step.
            self.encoder = PairEncoder(config.encoder).requires_grad_(False)
            self.from_encoder = nn.Linear(config.encoder.embd_dim, width, bias=False)

    def forward(
        self,
        positions: Tensor,
        geometry: Geometry,
        motions: Tensor,
        numbers: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Lift a state.

        Parameters
        ----------
        positions
            ``(b, n, 3)`` Å.
        geometry
            Geometry of the molecules.
        motions
            ``(b, n, m, 3)`` velocities (and accelerations).
        numbers, mask
            ``(b, n)`` atomic numbers, and True for real atoms.

        Returns
        -------
        pairs, bias, lifted
            ``(b, n, n, w)``; ``(layers, b, h, n, n)``, minus infinity for padding; and features of
            positions (none), velocities and context, ``(b, n, d)`` each.
        """
        products = motions @ motions.transpose(-1, -2)
        lower = torch.tril_indices(*products.shape[-2:], device=products.device)
        invariants = products[..., lower[0], lower[1]]
        h_v = self.v_0_linear(invariants[..., :1])
        h_c = self.concat_feats_linear(invariants)
        pairs = self._embed(geometry, numbers)
        if self.encoder is not None:
            known = self.encoder.encode(positions / ase.units.Bohr, numbers, mask).pairs
            pairs = torch.cat([pairs, known], dim=-1)
            h_c = h_c + self.from_encoder(known.diagonal(dim1=1, dim2=2).transpose(1, 2))
        bias = self.bias(pairs).unflatten(-1, self.heads).permute(3, 0, 4, 1, 2)
        bias = bias.masked_fill(~mask[:, None, None, :], -torch.inf)
        return pairs, bias, (torch.zeros_like(h_v), h_v, h_c)

    def _embed(self, geometry: Geometry, numbers: Tensor) -> Tensor:
        d = geometry.distances[..., None]
        centres = torch.linspace(
            _NEAREST, _FARTHEST, _NUM_DISTANCES, dtype=d.dtype, device=d.device
        )
        near = torch.exp(-(((d - centres) / _DISTANCE_WIDTH) ** 2)) * geometry.real[..., None]
        z = self.element_embedding(numbers)
        n = z.shape[1]
        elements = (z[:, :, None].expand(-1, -1, n, -1), z[:, None].expand(-1, n, -1, -1))
        features: Tensor = self.layers(torch.cat([near, *elements, geometry.radial], dim=-1))
        return features


class PairReadout(nn.Module):
    """Displacement and velocity change of every atom along what its pairs offer.

    With directions u_ij, distances r_ij, the atoms' velocities, accelerations and vector features
    w_i, and w_ij = w_j - w_i, both read-outs are of the form

        f_i = sum over j of [c⁰ u_ij + c¹ w_ij + c² (w_ij·u_ij) u_ij] / r_ij + c³ w_i

    where the coefficients are functions of both atoms' features, of the pair's, and of time. With
    the option ``exact_limits`` c⁰ is multiplied by :func:`.vectors.agitation`.
    """

    def __init__(self, config: IntegratorConfig) -> None:
        super().__init__()
        width, hidden, motions = config.lifting_dim, config.pair_hidden_dim, config.num_motions
        layers, channels = config.vector_layers, config.vector_channels
        self.vector_layers = nn.ModuleList(
            VectorLayer(config, channels if i else motions) for i in range(layers)
        )
        vectors = motions + channels if layers else motions
        self.exact_limits = config.exact_limits
        self.norm = nn.RMSNorm(width, eps=RMS_EPSILON)
        self.from_receiver = nn.Linear(width, hidden)
        self.from_sender = nn.Linear(width, hidden, bias=False)
        self.from_pair = nn.Linear(config.pair_width, hidden, bias=False)
        self.pair_film = nn.Linear(width, 2 * hidden)
        self.inner = nn.Linear(hidden, hidden)
        self.pair_coefficients = nn.Linear(hidden, 2 * (1 + 2 * vectors))
        self.spring_coefficients: nn.Linear | None = None
        if config.spring_steps:
            self.spring_coefficients = nn.Linear(hidden, NUM_COEFFICIENTS)
        self.from_atom = nn.Linear(width, width)
        self.atom_film = nn.Linear(width, 2 * width)
        self.atom_coefficients = nn.Linear(width, 2 * vectors)

    def forward(
        self, stream: Tensor, pairs: Tensor, motions: Tensor, geometry: Geometry, horizon: Tensor
    ) -> dict[str, Tensor]:
        """Read out positions and velocities.

        Parameters
        ----------
        stream
            ``(b, n, d)`` features of atoms.
        pairs
            ``(b, n, n, w)`` features of pairs.
        motions
            ``(b, n, m, 3)`` velocities (and accelerations).
        geometry
            Geometry of the molecules.
        horizon
            ``(b, t, d)`` embedding of the times.

        Returns
        -------
        dict of Tensor
            "pos" and "vel", ``(b, t, n, 3)``, and with the option ``spring_steps`` "springs",
            ``(b, t, n, n, 4)``.
        """
        u, vectors = geometry.directions, motions
        weight = (geometry.real / geometry.distances)[..., None]
        for layer in self.vector_layers:
            stream, vectors = layer(stream, vectors, pairs, u, weight)
        if self.vector_layers:
            vectors = torch.cat([motions, vectors], dim=2)
        h = self.norm(stream)
        hidden = self.from_receiver(h)[:, :, None] + self.from_sender(h)[:, None]
        hidden = hidden + self.from_pair(pairs)
        scale, shift = self.pair_film(horizon)[:, :, None, None].chunk(2, dim=-1)
        hidden = silu(self.inner(silu(hidden[:, None] * (1.0 + scale) + shift)))
        springs = None if self.spring_coefficients is None else self.spring_coefficients(hidden)
        coefficients = self.pair_coefficients(hidden) * weight[:, None]
        m = vectors.shape[2]
        constant, relative, projected = coefficients.unflatten(-1, (2, -1)).split((1, m, m), dim=-1)
        if self.exact_limits:
            constant = constant * agitation(motions)[:, None, ..., None, None]
        lengths = torch.einsum("btijck,bijk->btijc", projected, along(u, vectors))
        out = torch.einsum("btijc,bijx->btcix", constant[..., 0] + lengths, u)
        out = out + torch.einsum("btijck,bjkx->btcix", relative, vectors)
        scale, shift = self.atom_film(horizon)[:, :, None].chunk(2, dim=-1)
        hidden = silu(self.from_atom(h)[:, None] * (1.0 + scale) + shift)
        own = self.atom_coefficients(hidden).unflatten(-1, (2, -1)) - relative.sum(dim=3)
        out = out + torch.einsum("btick,bikx->btcix", own, vectors)
        found = {"pos": out[:, :, 0], "vel": out[:, :, 1]}
        if springs is not None:
            found["springs"] = springs
        return found
