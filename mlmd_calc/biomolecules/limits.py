"""What bonds, angles and contacts of a molecule may be."""

from __future__ import annotations

from typing import Final

import numpy as np
from ase.data import vdw_radii
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.spatial import KDTree

from mlmd_calc.biomolecules.system import MolecularSystem
from mlmd_calc.geometry.bonds import Bonds, bond_lengths, neighbour_lists
from mlmd_calc.geometry.stereochemistry import bond_angles

BOND_LIMIT: Final = 0.2
"""Å; largest change of a bond between heavy atoms from the start. Between frames of molecular
dynamics of peptides at 300 K it is 0.17 Å."""

ANGLE_LIMIT: Final = 25.0
"""Degrees; largest change of an angle between heavy atoms from the start. Between frames of
molecular dynamics of peptides at 300 K it is 19°."""

CONTACT_LIMITS: Final = (0.7, 0.65)
"""Smallest distance of atoms three bonds apart or more over the sum of their van der Waals radii:
of heavy atoms, and with hydrogens. In molecular dynamics of peptides at 300 K, with hydrogens that
are placed as here, it is 0.78 and, in one frame of 1,000, 0.62."""

_MISSING_RADIUS: Final = 1.7
"""Å; van der Waals radius of elements that have none in ASE's table."""


class GeometryLimits:
    """Bonds, angles and contacts of a molecule with their limits.

    Parameters
    ----------
    system
        The molecule; its reference structure is right by definition.
    hydrogens
        Look at the contacts of hydrogens.

    Attributes
    ----------
    bonds
        Between heavy atoms, in the network's order.
    angles
        ``(k, 3)`` angles between them, the middle atom second.
    reference_angles
        ``(k,)`` degrees.
    numbers
        ``(n,)`` atomic numbers in the engine's order; those of water and ions are not known.
    inside
        Atoms whose contacts are looked at, in the engine's order.
    """

    def __init__(self, system: MolecularSystem, *, hydrogens: bool = True) -> None:
        self.bonds = Bonds(system.bonds, bond_lengths(system.reference, system.bonds))
        self.angles = _angles(len(system.atoms), system.bonds)
        self.reference_angles = bond_angles(system.reference[None], self.angles)[0]
        self.numbers = np.ones(system.size, dtype=np.int64)
        self.numbers[system.atoms] = system.features.ref_element.numpy() + 1
        self.inside = np.setdiff1d(np.arange(system.size), system.left_out)
        if not hydrogens:
            self.inside = self.inside[self.numbers[self.inside] > 1]
        radii = vdw_radii[self.numbers]
        self._radii = np.where(np.isfinite(radii), radii, _MISSING_RADIUS)
        self._near_pairs = _near_pairs(system)

    def contacts(
        self, positions: NDArray[np.float64], slack: float = 0.0
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Find atoms three bonds apart or more that are too near.

        Parameters
        ----------
        positions
            ``(m, 3)`` Å of the atoms `inside`.
        slack
            Å; those, too, that are farther than allowed by less than this.

        Returns
        -------
        ndarray
            ``(p, 2)`` places in `inside`, the smaller first.
        ndarray
            ``(p,)`` Å, how near they may be.
        """
        reach = 2.0 * self._radii.max() * max(CONTACT_LIMITS) + slack
        pairs = np.sort(KDTree(positions).query_pairs(reach, output_type="ndarray"), axis=1)
        pairs, limits = self._with_limits(pairs)
        near = bond_lengths(positions, pairs) < limits + slack
        return pairs[near], limits[near]

    def all_contacts(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """All pairs that :meth:`contacts` may find, and how near they may be."""
        return self._with_limits(np.stack(np.triu_indices(len(self.inside), 1), axis=1))

    def _with_limits(
        self, pairs: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Those pairs that are three bonds apart or more, and how near they may be."""
        first, second = self.inside[pairs].T
        pairs = pairs[~np.isin(first * len(self.numbers) + second, self._near_pairs)]
        ends = self.inside[pairs]
        light = (self.numbers[ends] == 1).any(axis=1)
        limits = np.where(light, CONTACT_LIMITS[1], CONTACT_LIMITS[0])
        return pairs, limits * self._radii[ends].sum(axis=1)


def _angles(count: int, bonds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Angles ``(k, 3)`` between bonds, the middle atom second."""
    neighbours = neighbour_lists(count, bonds.tolist())
    found = [
        (first, middle, second)
        for middle, others in enumerate(neighbours)
        for index, first in enumerate(others)
        for second in others[:index]
    ]
    return np.array(found, dtype=np.int64).reshape(-1, 3)


def _near_pairs(system: MolecularSystem) -> NDArray[np.int64]:
    """Pairs of atoms one or two bonds apart, in the engine's order, as smaller × size + larger."""
    hydrogens = np.stack([system.hydrogens.parents, system.hydrogens.hydrogens], axis=1)
    bonds = np.concatenate([system.atoms[system.bonds], hydrogens])
    shape = (system.size, system.size)
    graph = coo_array((np.ones(len(bonds)), (bonds[:, 0], bonds[:, 1])), shape=shape).tocsr()
    graph = graph + graph.T
    first, second = (graph + graph @ graph).nonzero()
    keys: NDArray[np.int64] = (first.astype(np.int64) * system.size + second)[first < second]
    return keys
