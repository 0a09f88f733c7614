"""Names of the hydrogens of amino acids and caps, as in the Protein Data Bank.

A hydrogen is called after its heavy atom: H for the element, the letters of the place (HB of CB),
and a number if there are several: 1 to 3 in methyl and amino groups, 2 and 3 on a carbon atom with
two. Which of these is which follows IUPAC (Markley et al., Pure Appl. Chem. 70, 117 (1998)): looked
at from the side of the backbone, the next heavy atom, 2 and 3 follow each other clockwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.biomolecules.residues import CAPS, PARENTS, RESIDUES
from mlmd_calc.biomolecules.structure import BondedStructure
from mlmd_calc.geometry.bonds import CARBON, neighbour_lists

_PLACES: Final = "ABGDEZH"
"""Letters of places along a side chain."""


def with_hydrogen_names(structure: BondedStructure) -> BondedStructure:
    """Return a structure in which the hydrogens of amino acids and caps have standard names.

    Parameters
    ----------
    structure
        With standard names of heavy atoms, and all bonds.
    """
    neighbours = neighbour_lists(len(structure.names), structure.bonds.tolist())
    names = list(structure.names)
    for parent, near in enumerate(neighbours):
        residue = structure.residue_names[structure.residues[parent]]
        kind = PARENTS.get(residue, residue)
        hydrogens = sorted(atom for atom in near if structure.numbers[atom] == 1)
        if kind not in RESIDUES or structure.numbers[parent] == 1 or not hydrogens:
            continue
        heavy = [atom for atom in near if structure.numbers[atom] > 1]
        if structure.numbers[parent] == CARBON and len(hydrogens) == len(heavy) == 2:
            hydrogens = _clockwise(structure, parent, heavy, hydrogens)
        for atom, name in zip(
            hydrogens, _names(structure, kind, parent, len(hydrogens)), strict=True
        ):
            names[atom] = name
    return replace(structure, names=tuple(names))


def _names(structure: BondedStructure, kind: str, parent: int, count: int) -> list[str]:
    name = structure.names[parent]
    # Caps have one group with hydrogens each, and N of NME.
    stem = "H" if kind in CAPS else f"H{name[1:]}"
    if count == 1:
        return [stem]
    first = 2 if count == 2 and structure.numbers[parent] == CARBON else 1
    if kind == "PRO" and name == "N":
        first = 2
    return [f"{stem}{number}" for number in range(first, first + count)]


def _clockwise(
    structure: BondedStructure, parent: int, heavy: Sequence[int], hydrogens: Sequence[int]
) -> list[int]:
    """Hydrogens in the order in which they follow the next heavy atom clockwise."""
    before, after = sorted(heavy, key=lambda atom: _distance(structure.names, parent, atom))
    centre: NDArray[np.float64] = structure.positions[parent]
    axis = centre - structure.positions[before]
    first, second = hydrogens
    turn = np.cross(structure.positions[after] - centre, structure.positions[first] - centre)
    return [first, second] if turn @ axis > 0.0 else [second, first]


def _distance(names: Sequence[str], parent: int, atom: int) -> int:
    """How far an atom is along the chain that begins at the backbone's N and comes to C last."""
    name = names[atom]
    if name == "N" and names[parent] == "CA":
        return -1
    return _PLACES.find(name[1]) if len(name) > 1 and name[1] in _PLACES else len(_PLACES)
