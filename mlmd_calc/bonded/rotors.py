"""Groups of three equal atoms, such as methyl groups, that turn about a bond.

After a third of a turn a molecule is the same as before, but another hydrogen is where the first
one was. A force field whose terms name hydrogens need not learn that: before it is evaluated, atoms
of each group are numbered anew in the same sense, so that the first is always within 60° of one of
the three places. Energies and forces are the same after thirds of a turn, to the last bit; halfway,
where hydrogens are eclipsed, errors of the fit have a small jump.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.bonded.kernels import number_anew
from mlmd_calc.geometry.bonds import neighbour_lists
from mlmd_calc.geometry.stereochemistry import bond_angles, dihedrals

_STRAIGHT: Final = 0.3
"""Sine of an angle below which no dihedral angle is taken about its sides."""


class Rotors:
    """The groups of a molecule.

    Parameters
    ----------
    atoms
        ``(k, 6)`` of each group: its centre, the atom at the other end of the bond, one that is
        bonded to that, and the three equal ones.
    middles
        ``(k,)`` dihedral angles in radians along the chain of the first of the three, the centre
        and the two others, in the middle of its range.
    """

    def __init__(self, atoms: NDArray[np.int64], middles: NDArray[np.float64]) -> None:
        self.atoms = np.ascontiguousarray(atoms, dtype=np.int64).reshape(-1, 6)
        self.middles = np.ascontiguousarray(middles, dtype=np.float64)

    @classmethod
    def find(
        cls,
        numbers: NDArray[np.integer],
        bonds: NDArray[np.integer],
        positions: NDArray[np.float64],
    ) -> Rotors:
        """Find the groups, and the angles about which structures lie.

        Parameters
        ----------
        numbers, bonds
            ``(n,)`` atomic numbers, and ``(b, 2)`` bonds.
        positions
            ``(f, n, 3)`` Å. The three atoms keep the names that they have in the first.
        """
        atoms = _groups(numbers, bonds, positions[0])
        chains = np.stack([atoms[:, [k, 0, 1, 2]] for k in (3, 4, 5)], axis=1)
        angles = dihedrals(positions, chains)
        # Three times the angle is the same for all three atoms of a group.
        thirds = np.angle(np.exp(3j * angles).mean(axis=(0, 2))) / 3.0
        turns = np.round((angles[0, :, 0] - thirds) / (2.0 * np.pi / 3.0))
        return cls(atoms, thirds + turns * 2.0 * np.pi / 3.0)

    def order(self, positions: NDArray[np.float64]) -> NDArray[np.int64] | None:
        """Return the atom ``(n,)`` that takes the place of each; None if all stay where they are.

        Parameters
        ----------
        positions
            ``(n, 3)`` Å.
        """
        if len(self.atoms) == 0:
            return None
        order = np.arange(len(positions))
        return order if number_anew(self.atoms, self.middles, positions, order) else None

    def fold(
        self, positions: NDArray[np.float64], forces: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Renumber atoms of structures ``(f, n, 3)`` and in the forces there."""
        orders = [self.order(own) for own in positions]
        everywhere = slice(None)
        chosen = [everywhere if order is None else order for order in orders]
        return (
            np.stack([own[order] for own, order in zip(positions, chosen, strict=True)]),
            np.stack([own[order] for own, order in zip(forces, chosen, strict=True)]),
        )


def _groups(
    numbers: NDArray[np.integer], bonds: NDArray[np.integer], positions: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Find centres with three equal atoms that are bonded to nothing else, and a fourth one."""
    neighbours = [sorted(own) for own in neighbour_lists(len(numbers), bonds.tolist())]
    groups: dict[int, tuple[int, list[int]]] = {}
    for centre, own in enumerate(neighbours):
        ends = [atom for atom in own if len(neighbours[atom]) == 1]
        others = [atom for atom in own if len(neighbours[atom]) > 1]
        if len(ends) == 3 and len(others) == 1 and len({int(numbers[end]) for end in ends}) == 1:
            groups[centre] = (others[0], ends)
    found = []
    for centre, (other, ends) in list(groups.items()):
        # Of two groups that are bonded to each other one turns: the angle between them counts.
        if centre in groups and other in groups:
            del groups[other]
        turning = {atom for _, own in groups.values() for atom in own}
        fixed = [
            atom
            for atom in neighbours[other]
            if atom != centre
            and atom not in turning
            and np.sin(np.radians(bond_angles(positions[None], np.array([[centre, other, atom]]))))
            > _STRAIGHT
        ]
        if centre in groups and fixed:
            found.append([centre, other, max(fixed, key=lambda atom: numbers[atom]), *ends])
    return np.array(found, dtype=np.int64).reshape(-1, 6)
