"""Bonds of a molecule, and how far a geometry is from keeping them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import ase
import numpy as np
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from mlmd_calc.errors import InputError

BOND_LIMIT: Final = 0.5
"""Å; by default guards refuse a larger change of a bond."""

STRETCH: Final = 1.3
"""Atoms nearer than this times the sum of their covalent radii are bonded."""

APART: Final = 1.6
"""Atoms farther than this times the sum of their covalent radii have no bond, however stretched."""

_CLOSEST: Final = 0.6
"""Smallest distance of atoms over the sum of their covalent radii; triple bonds have 0.77, single
ones that are converted from Bohr to Å once too often 0.53."""

CARBON: Final = 6
_SEVERAL: Final = 2
_TRIPLE_BOND: Final = 1.25
"""Å; the longest triple bond of a carbon atom, to carbon, is 1.21 Å."""
_STRAIGHT: Final = float(np.cos(np.deg2rad(150.0)))

_NEVER_ALONE: Final = frozenset(
    atomic_numbers[symbol] for symbol in ("H", "B", "C", "N", "O", "Si", "P", "S", "Se")
)


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
        """Name of a bond, e.g. ``"C0-H3"``."""
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


def neighbour_lists(count: int, pairs: Iterable[Sequence[int]]) -> list[list[int]]:
    """Return the atoms that each of ``count`` atoms is bonded to, in the order of the bonds.

    Parameters
    ----------
    count
        Number of atoms.
    pairs
        Two indices for each bond.
    """
    neighbours: list[list[int]] = [[] for _ in range(count)]
    for first, second in pairs:
        neighbours[first].append(second)
        neighbours[second].append(first)
    return neighbours


def fragments_of(count: int, groups: Iterable[Sequence[int]]) -> NDArray[np.int64]:
    """Find the fragments that atoms belong to, ``(n,)``, from 0 on in the order of the atoms.

    Parameters
    ----------
    count
        Number of atoms.
    groups
        Atoms that belong together: bonds, angles, torsions.
    """
    pairs = np.array([(g[0], other) for g in groups for other in g[1:]], dtype=np.int64)
    first, second = pairs.reshape(-1, 2).T
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def find_bonds(atoms: ase.Atoms, stretch: float = STRETCH) -> Bonds:
    """Find the bonds of a structure; its bond lengths become the reference.

    Parameters
    ----------
    atoms
        Whole molecules near equilibrium; a cell is not looked at.
    stretch
        Atoms nearer than this times the sum of their covalent radii are bonded.
    """
    radii = stretch * covalent_radii[atoms.numbers]
    tree = KDTree(atoms.positions)
    pairs = tree.query_pairs(2.0 * float(radii.max(initial=0.0)), output_type="ndarray")
    pairs = pairs[np.lexsort(pairs.T[::-1])].astype(np.int64)
    lengths = bond_lengths(atoms.positions, pairs)
    bonded = lengths < radii[pairs].sum(axis=1)
    return Bonds(pairs[bonded], lengths[bonded])


def check_contacts(numbers: NDArray[np.integer], positions: NDArray[np.float64]) -> None:
    """Refuse positions that are not numbers, and atoms that overlap, as when nm are taken for Å.

    Parameters
    ----------
    numbers, positions
        ``(n,)``, 0 for sites that are no atoms, and ``(n, 3)`` Å.

    Raises
    ------
    InputError
        If a coordinate is not finite, or two atoms are nearer than 0.6 times the sum of their
        covalent radii.
    """
    finite = np.isfinite(positions).all(axis=1)
    if not finite.all():
        index = int(np.argmin(finite))
        raise InputError(
            f"atom {chemical_symbols[numbers[index]]}{index} has the position "
            f"{positions[index].tolist()}; all coordinates must be finite numbers in Å"
        )
    atoms = np.flatnonzero(numbers > 0)
    if len(atoms) < 2:
        return
    distances, nearest = KDTree(positions[atoms]).query(positions[atoms], k=2)
    radii = covalent_radii[numbers[atoms]]
    # Where atoms coincide, the nearest may be named before the atom itself.
    itself = nearest[:, 1] == np.arange(len(atoms))
    partner = np.where(itself, nearest[:, 0], nearest[:, 1])
    ratios = distances[:, 1] / (radii + radii[partner])
    worst = int(ratios.argmin())
    if ratios[worst] < _CLOSEST:
        first, second = sorted((int(atoms[worst]), int(atoms[partner[worst]])))
        label = " and ".join(f"{chemical_symbols[numbers[i]]}{i}" for i in (first, second))
        raise InputError(
            f"atoms {label} are {distances[worst, 1]:.3f} Å apart, which is an overlap; give "
            "positions in Å (neither nm nor Bohr), and every atom once"
        )


def check_bonded(atoms: ase.Atoms) -> None:
    """Refuse atoms that belong to no molecule, as all seem to do when Å are taken for nm.

    Parameters
    ----------
    atoms
        What is to be simulated. Ions of metals and halogens, and noble gases, may be alone.

    Raises
    ------
    InputError
        If an atom of another element is bonded to nothing and is not the only one.
    """
    bonded = np.zeros(len(atoms), dtype=bool)
    bonded[find_bonds(atoms).pairs] = True
    alone = [i for i in np.flatnonzero(~bonded).tolist() if atoms.numbers[i] in _NEVER_ALONE]
    if alone and len(atoms) > 1:
        index = alone[0]
        distances = np.linalg.norm(atoms.positions - atoms.positions[index], axis=1)
        distances[index] = np.inf
        raise InputError(
            f"atom {atoms.symbols[index]}{index} is bonded to nothing: the nearest other atom is "
            f"{distances.min():.2f} Å away; give whole molecules with positions in Å"
        )


def check_hydrogens(atoms: ase.Atoms) -> None:
    """Refuse molecules whose hydrogens were left out.

    Only what leaves no doubt is refused: no hydrogen at all, and carbon atoms with two neighbours
    in an angle, or with one that is not as near as in a triple bond.

    Raises
    ------
    InputError
        If most carbon atoms are such.
    """
    carbons = np.flatnonzero(atoms.numbers == CARBON)
    if (atoms.numbers == 1).any() or len(carbons) < _SEVERAL:
        return
    bonds = find_bonds(atoms)
    bare = 0
    for carbon in carbons.tolist():
        own = (bonds.pairs == carbon).any(axis=1)
        others = bonds.pairs[own].sum(axis=1) - carbon
        arms = atoms.positions[others] - atoms.positions[carbon]
        if len(others) == 1:
            bare += bool(bonds.lengths[own][0] > _TRIPLE_BOND)
        elif len(others) == 2:
            arms /= bonds.lengths[own][:, None]
            bare += bool(arms[0] @ arms[1] > _STRAIGHT)
    if 2 * bare > len(carbons):
        raise InputError(
            f"there is no hydrogen, but {bare} of {len(carbons)} carbon atoms have only one or two "
            "neighbours; add the hydrogens first, for example with Open Babel or PDBFixer"
        )
