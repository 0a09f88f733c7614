"""Which of two equal arms of valine and leucine is called 1 and which 2.

Nothing but their place in space tells the methyl groups apart; by IUPAC number 1 is the pro-R one
(Markley et al., Pure Appl. Chem. 70, 117 (1998)). A builder of structures need not know that, and
networks that have learnt names would take a molecule with the other names for a mirror image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.biomolecules.residues import PARENTS
from mlmd_calc.biomolecules.structure import BondedStructure
from mlmd_calc.geometry.stereochemistry import handedness

_ARMS: Final = {"VAL": ("CB", "CA", "CG1", "CG2"), "LEU": ("CG", "CB", "CD1", "CD2")}
"""The branching atom, the one before it, and both arms; the triple product of the vectors to the
latter three is negative."""


def exchanged_arms(
    parent: str, atoms: Mapping[str, int], positions: NDArray[np.float64]
) -> dict[str, int]:
    """Return atoms of a residue whose names must change places, by their right names.

    Parameters
    ----------
    parent
        Name of the amino acid.
    atoms
        Its heavy atoms by name, as indices of `positions`.
    positions
        ``(n, 3)`` Å of the structure.
    """
    centre = _ARMS.get(parent, ())
    if not centre or any(name not in atoms for name in centre):
        return {}
    where = np.array([[atoms[name] for name in centre]])
    if handedness(positions[None], where)[0, 0] <= 0.0:
        return {}
    _, _, first, second = centre
    return {first: atoms[second], second: atoms[first]}


def with_arm_names(structure: BondedStructure) -> BondedStructure:
    """Return a structure in which the arms of valine and leucine have their standard names.

    Parameters
    ----------
    structure
        With standard names of heavy atoms. Names of hydrogens stay as they are.
    """
    names = list(structure.names)
    for parent, atoms in _residues(structure):
        for name, atom in exchanged_arms(parent, atoms, structure.positions).items():
            names[atom] = name
    return replace(structure, names=tuple(names))


def _residues(structure: BondedStructure) -> Iterator[tuple[str, dict[str, int]]]:
    """Name of the amino acid and atoms by name of every residue."""
    for residue, given in enumerate(structure.residue_names):
        own = np.flatnonzero(structure.residues == residue).tolist()
        yield PARENTS.get(given, given), {structure.names[atom]: atom for atom in own}
