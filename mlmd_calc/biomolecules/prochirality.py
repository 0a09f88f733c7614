"""Which of two equal arms of valine and leucine is called 1 and which 2.

Nothing but their place in space tells the methyl groups apart; by IUPAC number 1 is the pro-R one
(Markley et al., Pure Appl. Chem. 70, 117 (1998)). A builder of structures need not know that, and
networks that have learnt names would take a molecule with the other names for a mirror image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    if _hand(positions, [atoms[name] for name in centre]) <= 0.0:
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


def with_arms_in_place(
    frames: NDArray[np.float32], structure: BondedStructure, atoms: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return frames in which the first arm is the first one in space, too.

    Files that hold atoms in the order of the network alone were written when that order followed
    names that builders had given by chance.

    Parameters
    ----------
    frames
        ``(f, k, 3)`` Å.
    structure
        Whose atoms these are.
    atoms
        ``(k,)`` index in the structure of each.
    """
    place = {int(atom): k for k, atom in enumerate(atoms)}
    order = np.arange(len(atoms))
    for parent, named in _residues(structure):
        right = named | exchanged_arms(parent, named, structure.positions)
        centre = [place.get(right.get(name, -1), -1) for name in _ARMS.get(parent, ())]
        if centre and min(centre) >= 0 and _hand(frames[0], centre) > 0.0:
            _, _, first, second = centre
            order[[first, second]] = order[[second, first]]
    return frames[:, order]


def _hand(positions: NDArray[np.floating], centre: Sequence[int]) -> float:
    """Sign of the triple product of the vectors from the first atom to the others."""
    return float(handedness(positions[None].astype(np.float64), np.array([centre]))[0, 0])


def _residues(structure: BondedStructure) -> Iterator[tuple[str, dict[str, int]]]:
    """Name of the amino acid and atoms by name of every residue."""
    for residue, given in enumerate(structure.residue_names):
        own = np.flatnonzero(structure.residues == residue).tolist()
        yield PARENTS.get(given, given), {structure.names[atom]: atom for atom in own}
