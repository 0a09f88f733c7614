"""Vector features of atoms: what an integrator knows of forces and motions beyond t = 0.

The exact jump of a harmonic molecule is a function of its Hessian, applied to velocities and
accelerations. A read-out that sums over pairs once applies one matrix of blocks between pairs;
layers that send vectors from atom to atom before it apply products of such matrices.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mlmd_calc.models.atom.blocks import RMS_EPSILON
from mlmd_calc.models.atom.config import IntegratorConfig

# Both make up for sums over many neighbours, so that training starts calmly.
_MESSAGE_SCALE: Final = 0.1
_SUM_SCALE: Final = 0.3


def along(directions: Tensor, vectors: Tensor) -> Tensor:
    """Components ``(b, n, n, k)`` of relative vectors along the directions of pairs.

    Parameters
    ----------
    directions
        ``(b, n, n, 3)`` unit vectors from atom i to atom j.
    vectors
        ``(b, n, k, 3)`` vectors of atoms; relative ones are those of j minus those of i.
    """
    of_sender = torch.einsum("bijx,bjkx->bijk", directions, vectors)
    return of_sender - torch.einsum("bijx,bikx->bijk", directions, vectors)


def agitation(vectors: Tensor) -> Tensor:
    """How much pairs of atoms move, ``(b, n, n)``: log(1 + the mean square of relative vectors).

    It vanishes with the square of motion, so that what is multiplied by it does not matter where
    motion is small.
    """
    flat = vectors.flatten(2)
    squares = flat.square().sum(dim=-1)
    products = flat @ flat.transpose(1, 2)
    relative = squares[:, :, None] + squares[:, None, :] - 2.0 * products
    return torch.log1p(relative.clamp(min=0.0) / vectors.shape[2])


class VectorLayer(nn.Module):
    """One exchange of vectors between atoms, and what it tells their features.

    With linear combinations V_i of an atom's vectors, directions u_ij, distances r_ij and
    W_ij = V_j - V_i, an atom's new vectors are, channel by channel,

        V_i + sum over j of [c⁰ u_ij + c¹ W_ij + c² (W_ij·u_ij) u_ij] / r_ij

    where the coefficients are functions of both atoms' features, of the pair's, and of W_ij·u_ij.
    With the option ``exact_limits`` c⁰ is multiplied by :func:`agitation`.

    Parameters
    ----------
    config
        Options of the network.
    channels
        Vectors per atom before the layer; there are ``vector_channels`` after it.
    """

    def __init__(self, config: IntegratorConfig, channels: int) -> None:
        super().__init__()
        width, hidden, k = config.lifting_dim, config.pair_hidden_dim, config.vector_channels
        self.exact_limits = config.exact_limits
        self.norm = nn.RMSNorm(width, eps=RMS_EPSILON)
        self.mix = nn.Linear(channels, k, bias=False)
        self.from_receiver = nn.Linear(width, hidden)
        self.from_sender = nn.Linear(width, hidden, bias=False)
        self.from_pair = nn.Linear(config.pair_width, hidden, bias=False)
        self.from_radial = nn.Linear(k, hidden, bias=False)
        self.inner = nn.Linear(hidden, hidden)
        self.vector_coefficients = nn.Linear(hidden, 3 * k)
        self.left = nn.Linear(k, k, bias=False)
        self.right = nn.Linear(k, k, bias=False)
        self.from_neighbours = nn.Linear(hidden, hidden)
        self.update = nn.Linear(width + 2 * k + hidden, width)
        self.update_coefficients = nn.Linear(width, width)

    def forward(
        self, stream: Tensor, vectors: Tensor, pairs: Tensor, directions: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Update features and vectors of atoms.

        Parameters
        ----------
        stream
            ``(b, n, d)`` features of atoms.
        vectors
            ``(b, n, m, 3)`` vectors of atoms.
        pairs
            ``(b, n, n, w)`` features of pairs.
        directions
            ``(b, n, n, 3)`` unit vectors from i to j.
        weight
            ``(b, n, n, 1)`` weight of a pair, 1/r in 1/Å; 0 where the pair is not real.

        Returns
        -------
        stream, vectors
            ``(b, n, d)`` and ``(b, n, vector_channels, 3)``.
        """
        h = self.norm(stream)
        mixed = _combine(self.mix, vectors)
        radial = along(directions, mixed)
        hidden = self.from_receiver(h)[:, :, None] + self.from_sender(h)[:, None]
        hidden = hidden + self.from_pair(pairs) + self.from_radial(torch.asinh(radial))
        hidden = silu(self.inner(silu(hidden)))
        coefficients = _MESSAGE_SCALE * self.vector_coefficients(hidden) * weight
        constant, relative, projected = coefficients.chunk(3, dim=-1)
        if self.exact_limits:
            constant = constant * agitation(mixed)[..., None]
        # Sums of relative vectors without an array of the vectors of all pairs.
        new = mixed - relative.sum(dim=2)[..., None] * mixed
        new = new + torch.einsum("bijk,bjkx->bikx", relative, mixed)
        new = new + torch.einsum("bijk,bijx->bikx", constant + projected * radial, directions)
        products = (_combine(self.left, new) * _combine(self.right, new)).sum(dim=-1)
        # Logarithms of large values: energies of fast hydrogens are far above the others.
        invariants = torch.asinh(torch.cat([products, new.square().sum(dim=-1)], dim=-1))
        around = self.from_neighbours(_SUM_SCALE * (hidden * weight).sum(dim=2))
        change = silu(self.update(torch.cat([h, invariants, around], dim=-1)))
        return stream + self.update_coefficients(change), new


def _combine(linear: nn.Linear, vectors: Tensor) -> Tensor:
    """Linear combinations of the vectors of every atom."""
    return torch.einsum("kc,bicx->bikx", linear.weight, vectors)
