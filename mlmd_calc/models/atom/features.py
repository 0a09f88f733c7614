"""Input features of ATOM: lengths of vectors and return probabilities of random walks."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from mlmd_calc.errors import InputError

BOND_LENGTH: Final = 1.6
"""Atoms closer than this are bonded, Å."""

LONGEST_BOND: Final = 10.0
"""The bond length is not raised beyond this, Å."""

_STEP: Final = 1.5


def with_length(vectors: Tensor) -> Tensor:
    """Append its length to every vector, ``(..., 3)`` to ``(..., 4)``."""
    return torch.cat([vectors, torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)], dim=-1)


def input_features(
    positions: Tensor, velocities: Tensor, numbers: Tensor, walks: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Build inputs of the published operator, with one slot in place of T copies.

    Parameters
    ----------
    positions
        ``(b, n, 3)`` Å in the frame of the data set.
    velocities
        ``(b, n, 3)`` Å per frame of the data set.
    numbers
        ``(b, n)`` atomic numbers.
    walks
        ``(b, n, K)`` :func:`return_probabilities`, or None for K = 0.

    Returns
    -------
    x_0, v_0, concatenated_features
        ``(b, 1, n, 4)``, ``(b, 1, n, 4)`` and ``(b, 1, n, 9 + K)``.

    Examples
    --------
    >>> import torch
    >>> from mlmd_calc.models.atom import input_features
    >>> x, v, c = input_features(torch.rand(1, 3, 3), torch.rand(1, 3, 3), torch.ones(1, 3))
    >>> c.shape
    torch.Size([1, 1, 3, 9])
    """
    x_0, v_0 = with_length(positions), with_length(velocities)
    scalars = [numbers[..., None].to(x_0.dtype)]
    if walks is not None:
        scalars.append(walks.to(x_0.dtype))
    context = torch.cat([x_0, v_0, *scalars], dim=-1)
    return x_0[:, None], v_0[:, None], context[:, None]


def return_probabilities(positions: Tensor, length: int) -> Tensor:
    """Probabilities that a random walk along bonds is back after 1, 2, ... steps.

    Relative random walk probabilities, diagonal part: with the adjacency matrix A of atoms closer
    than 1.6 Å and its degrees D, feature k is the diagonal of (D⁻¹A)ᵏ. If there is no bond at all
    the bond length is raised in factors of 1.5 until there is one.

    Parameters
    ----------
    positions
        ``(n, 3)`` Å of one molecule; for published models without its hydrogens.
    length
        Number K of steps.

    Returns
    -------
    Tensor
        ``(n, K)``.

    Raises
    ------
    InputError
        If no two atoms are within 10 Å.
    """
    n = len(positions)
    distances = torch.cdist(positions, positions, compute_mode="donot_use_mm_for_euclid_dist")
    distances = distances.masked_fill(torch.eye(n, dtype=torch.bool, device=distances.device), 1e9)
    cutoff = BOND_LENGTH
    while not (distances < cutoff).any():
        cutoff *= _STEP
        if cutoff > LONGEST_BOND:
            raise InputError(
                f"no two of the {n} atoms are within {LONGEST_BOND:g} Å, so there is no bond for a "
                "random walk; use a model with rrwp_length=0"
            )
    bonds = (distances < cutoff).to(positions.dtype)
    step = bonds / bonds.sum(dim=1, keepdim=True).clamp(min=1.0)
    walk, diagonals = step, []
    for _ in range(length):
        diagonals.append(walk.diagonal())
        walk = walk @ step
    return torch.stack(diagonals, dim=1) if diagonals else positions.new_zeros(n, 0)
