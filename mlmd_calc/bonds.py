"""Bonds of a molecule, and how far a geometry is from keeping them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import ase
import numpy as np
from ase.data import chemical_symbols
from ase.neighborlist import natural_cutoffs, neighbor_list
from numpy.typing import NDArray

BOND_LIMIT: Final = 0.5
"""Å; by default guards refuse a larger change of a bond."""

_STRETCH: Final = 1.3
"""Atoms nearer than this times the sum of their covalent radii are bonded."""


@dataclass(frozen=True)
class Bonds:
    """Bonds of a molecule with their reference lengths.

    Attributes
    ----------
    pairs
        ``(b, 2)`` indices of the bonded atoms, the smaller first.
    lengths
        ``(b,)`` Å, reference length of each bond.
    """

    pairs: NDArray[np.int64]
    lengths: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.pairs)

    def deviations(self, positions: NDArray[np.floating]) -> NDArray[np.float64]:
        """Length of each bond minus its reference length.

        Parameters
        ----------
        positions
            ``(..., n, 3)`` Å.

        Returns
        -------
        ndarray
            ``(..., b)`` Å.
        """
        return bond_lengths(positions, self.pairs) - self.lengths

    def label(self, bond: int, numbers: NDArray[np.integer]) -> str:
        """Name of a bond, e.g. ``"C0-H3"``.

        Parameters
        ----------
        bond
            Index of the bond.
        numbers
            Atomic numbers of the molecule.
        """
        return "-".join(f"{chemical_symbols[numbers[i]]}{i}" for i in self.pairs[bond])


def bond_lengths(
    positions: NDArray[np.floating], pairs: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Lengths of bonds.

    Parameters
    ----------
    positions
        ``(..., n, 3)`` Å.
    pairs
        ``(b, 2)`` indices.

    Returns
    -------
    ndarray
        ``(..., b)`` Å.
    """
    first, second = pairs.T
    difference = positions[..., first, :] - positions[..., second, :]
    result: NDArray[np.float64] = np.linalg.norm(difference, axis=-1)
    return result


def find_bonds(atoms: ase.Atoms) -> Bonds:
    """Find the bonds of a structure; its bond lengths become the reference.

    Parameters
    ----------
    atoms
        A structure near equilibrium.
    """
    cutoffs = natural_cutoffs(atoms, mult=_STRETCH)
    first, second, lengths = neighbor_list("ijd", atoms, cutoffs)
    once = first < second
    return Bonds(
        pairs=np.stack([first[once], second[once]], axis=1).astype(np.int64),
        lengths=np.asarray(lengths[once], dtype=np.float64),
    )
