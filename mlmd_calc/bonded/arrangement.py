"""Whether atoms stand where those did that a force field was fitted to.

Its terms name atoms. Where two hydrogens have each other's place, the molecule is the same, but the
force field is far from all that it knows, and its forces are absurd.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import NDArray

from mlmd_calc.errors import InputError
from mlmd_calc.geometry.bonds import bond_lengths, neighbour_lists
from mlmd_calc.geometry.stereochemistry import handedness

_BROKEN: Final = 1.6
"""Length of a bond, over the sum of the covalent radii, from which it is none: no vibration."""


def senses_of(
    count: int, bonds: NDArray[np.integer], positions: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Find the sense in which three of four neighbours stand round atoms.

    Parameters
    ----------
    count
        Number of atoms.
    bonds
        ``(b, 2)``.
    positions
        ``(f, n, 3)`` Å.

    Returns
    -------
    ndarray
        ``(k, 5)``: atom, three neighbours, and 1 or -1, where it is the same in all structures.
    """
    neighbours = neighbour_lists(count, bonds.tolist())
    rows = [[atom, *sorted(own)[:3]] for atom, own in enumerate(neighbours) if len(own) == 4]
    centres = np.array(rows, dtype=np.int64).reshape(-1, 4)
    signs = handedness(positions, centres).astype(np.int64)
    same = (signs == signs[:1]).all(axis=0)
    found: NDArray[np.int64] = np.column_stack([centres, signs[0]])[same]
    return found


def check_arrangement(
    numbers: NDArray[np.integer],
    bonds: NDArray[np.integer],
    senses: NDArray[np.int64],
    positions: NDArray[np.float64],
) -> None:
    """Refuse atoms in another order, or round another, than in the structures of a fit.

    Parameters
    ----------
    numbers, bonds, senses
        ``(n,)`` atomic numbers; ``(b, 2)`` bonds and :func:`senses_of` there.
    positions
        ``(n, 3)`` Å.

    Raises
    ------
    InputError
        With the atoms in question, and what to do.
    """
    stretch = bond_lengths(positions, bonds) / covalent_radii[numbers[bonds]].sum(axis=1)
    worst = int(stretch.argmax())
    if stretch[worst] > _BROKEN:
        first, second = (_label(numbers, atom) for atom in bonds[worst])
        length = float(np.linalg.norm(positions[bonds[worst, 0]] - positions[bonds[worst, 1]]))
        raise InputError(
            f"{first} and {second} are {length:.2f} Å apart, but are bonded in the structures that "
            "the force field was fitted to: the atoms are in another order, or of another "
            "molecule; give them in the order of the fit, or fit to this structure "
            "(BondedForceField.fit)"
        )
    signs = handedness(positions[None], senses[:, :4])[0]
    turned = np.flatnonzero(signs == -senses[:, 4])
    if not len(turned):
        return
    centre = int(senses[turned[0], 0])
    more = f" and {len(turned) - 1} more" if len(turned) > 1 else ""
    raise InputError(
        f"round {_label(numbers, centre)}{more} the atoms stand in the other sense than in the "
        f"structures that the force field was fitted to{_exchange(numbers, bonds, centre)}; or fit "
        "to this structure (BondedForceField.fit)"
    )


def _exchange(numbers: NDArray[np.integer], bonds: NDArray[np.integer], centre: int) -> str:
    """Say which equal atoms at a centre may be exchanged, if there are any."""
    neighbours = neighbour_lists(len(numbers), bonds.tolist())
    ends = [atom for atom in sorted(neighbours[centre]) if len(neighbours[atom]) == 1]
    for k, first in enumerate(ends):
        for second in ends[k + 1 :]:
            if numbers[first] == numbers[second]:
                return (
                    f", as when {_label(numbers, first)} and {_label(numbers, second)} have each "
                    f"other's place: exchange them, atoms.positions[[{first}, {second}]] = "
                    f"atoms.positions[[{second}, {first}]]"
                )
    return ", as in a mirror image: give that which was fitted to"


def _label(numbers: NDArray[np.integer], atom: int) -> str:
    return f"{chemical_symbols[numbers[atom]]}{atom}"
