"""Bonds of a structure, completed where its source has none."""

from __future__ import annotations

from collections.abc import Sequence

import ase
import numpy as np
from numpy.typing import NDArray

from mlmd_calc.biomolecules.hydrogens import HydrogenFrames
from mlmd_calc.biomolecules.structure import BondedStructure
from mlmd_calc.errors import InputError
from mlmd_calc.geometry.bonds import find_bonds, fragments_of, neighbour_lists


class BondGraph:
    """Some residues of a structure and the bonds between their atoms.

    A residue that the bonds of the structure do not hold together gets bonds from distances.

    Attributes
    ----------
    structure
        As given.
    bonds
        ``(b, 2)`` the smaller index first.
    heavy_neighbours
        Heavy atoms bonded to each atom.
    notes
        Sentences that say which bonds were found from distances.

    Raises
    ------
    InputError
        If a residue has virtual sites or no heavy atom.
    """

    def __init__(self, structure: BondedStructure, residues: Sequence[int]) -> None:
        self.structure = structure
        self.notes: list[str] = []
        self._atoms = {index: np.flatnonzero(structure.residues == index) for index in residues}
        self._check()
        inside = np.isin(structure.residues, residues)
        given = structure.bonds[inside[structure.bonds].all(axis=1)]
        found = [given, *(self._missing_bonds(residue, given) for residue in residues)]
        self.bonds = np.unique(np.sort(np.concatenate(found), axis=1), axis=0)
        neighbours = neighbour_lists(len(structure.names), self.bonds.tolist())
        heavy = structure.numbers > 1
        self.heavy_neighbours = [[j for j in others if heavy[j]] for others in neighbours]
        self._hydrogens = [len([j for j in others if not heavy[j]]) for others in neighbours]

    def _check(self) -> None:
        for residue, atoms in self._atoms.items():
            numbers = self.structure.numbers[atoms]
            label = self.structure.residue_label(residue)
            if (numbers < 1).any():
                raise InputError(
                    f"{label} has virtual sites, which the model cannot represent; use a force "
                    "field without them for the solute"
                )
            if not (numbers > 1).any():
                raise InputError(
                    f"{label} has no heavy atom, which the model cannot represent; if its "
                    "hydrogens are apart from its other atoms, write the atoms of each residue "
                    "one after the other"
                )

    def _missing_bonds(self, residue: int, given: NDArray[np.int64]) -> NDArray[np.int64]:
        structure, atoms = self.structure, self._atoms[residue]
        local = np.full(len(structure), -1)
        local[atoms] = np.arange(len(atoms))
        own = local[given]
        if fragments_of(len(atoms), own[(own >= 0).all(axis=1)].tolist()).max() == 0:
            return np.empty((0, 2), dtype=np.int64)
        self.notes.append(f"Bonds of {structure.residue_label(residue)} were taken from distances.")
        residue_atoms = ase.Atoms(structure.numbers[atoms], structure.positions[atoms])
        found: NDArray[np.int64] = atoms[find_bonds(residue_atoms).pairs]
        return found

    def heavy_atoms(self, residue: int) -> list[int]:
        """List the heavy atoms of a residue, ascending."""
        atoms = self._atoms[residue]
        heavy: list[int] = atoms[self.structure.numbers[atoms] > 1].tolist()
        return heavy

    def hydrogens_on(self, atoms: Sequence[int]) -> int:
        """Count the hydrogens bonded to heavy atoms."""
        return sum(self._hydrogens[atom] for atom in atoms)

    def across(self, atom: int) -> list[int]:
        """Heavy neighbours of an atom in other residues."""
        residues = self.structure.residues
        return [j for j in self.heavy_neighbours[atom] if residues[j] != residues[atom]]

    def hydrogen_frames(self) -> HydrogenFrames:
        """Heavy atoms that each hydrogen moves with.

        Raises
        ------
        InputError
            If a hydrogen is bonded to no heavy atom.
        """
        structure = self.structure
        parents = []
        for atoms in self._atoms.values():
            for hydrogen in atoms[structure.numbers[atoms] == 1].tolist():
                if not self.heavy_neighbours[hydrogen]:
                    raise InputError(
                        f"{structure.atom_label(hydrogen)} of "
                        f"{structure.residue_label(structure.residues[hydrogen])} is bonded to no "
                        "heavy atom; give its bond, or a structure in which it is near its parent"
                    )
                parents.append((hydrogen, self.heavy_neighbours[hydrogen][0]))
        return HydrogenFrames.from_bonds(parents, self.heavy_neighbours)
