"""Bonds of structures from files: templates and distances, each checked against the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import ase
import numpy as np
from ase.data import atomic_numbers, covalent_radii
from numpy.typing import NDArray

from mlmd_calc.biomolecules.residues import (
    BRIDGED,
    RESIDUE_BONDS,
    RESIDUES,
    standard_atom_name,
)
from mlmd_calc.biomolecules.structure import (
    ION,
    LIGAND,
    WATER,
    BondedStructure,
    residue_kind,
)
from mlmd_calc.errors import InputError
from mlmd_calc.geometry.bonds import STRETCH, check_contacts, find_bonds
from mlmd_calc.wording import counted

_SURE: Final = 1.15
"""Atoms nearer than this times the sum of their covalent radii are bonded, whatever they are."""
_NONMETALS: Final = frozenset(
    atomic_numbers[symbol]
    for symbol in ("H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Se", "Br", "I")
)
_COMPLETE: Final = (
    "model what is missing, for example with PDBFixer, or cap the ends and put TER between them"
)


def find_links(structure: BondedStructure, stated: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
    """Find the bonds of a structure that has none.

    Residues of `RESIDUES` get the bonds of their templates, hydrogens the nearest heavy atom of
    their residue. Residues are linked by peptide bonds and disulfide bridges of fitting length, and
    by stated bonds. Bonds inside other residues are those stated; where these do not hold a residue
    together, its bonds are left to :class:`BondGraph`.

    Parameters
    ----------
    structure
        Without bonds.
    stated
        Bonds that the file states; those of metals are left out.

    Returns
    -------
    ndarray
        ``(b, 2)`` pairs, the smaller index first.

    Raises
    ------
    InputError
        If atoms overlap, a bond is too long, a chain has a gap, or a bridge lacks its other half.
    """
    check_contacts(structure.numbers, structure.positions)
    return _Linker(structure, stated).bonds()


class _Linker:
    def __init__(self, structure: BondedStructure, stated: Iterable[tuple[int, int]]) -> None:
        self._structure = structure
        self._kinds = [residue_kind(structure, r) for r in range(len(structure.residue_names))]
        self._standard = np.array([kind in RESIDUES for kind in self._kinds])
        self._names = [
            standard_atom_name(self._kinds[residue], name) if self._standard[residue] else name
            for residue, name in zip(structure.residues.tolist(), structure.names, strict=True)
        ]
        self._stated = {(min(pair), max(pair)) for pair in stated if self._is_covalent(*pair)}
        near = find_bonds(ase.Atoms(structure.numbers, structure.positions))
        self._near = near.pairs
        self._lengths = near.lengths

    def bonds(self) -> NDArray[np.int64]:
        pairs = [
            *self._in_residues(),
            *self._to_hydrogens(),
            *self._between_residues(),
            *self._others_stated(),
        ]
        self._check_lengths(pairs)
        bonds = np.unique(np.array(pairs, dtype=np.int64).reshape(-1, 2), axis=0)
        self._check_chains(bonds)
        self._check_bridges(bonds)
        return bonds

    def _is_covalent(self, first: int, second: int) -> bool:
        return {int(self._structure.numbers[i]) for i in (first, second)} <= _NONMETALS

    def _label(self, atom: int) -> str:
        residue = int(self._structure.residues[atom])
        return f"{self._structure.names[atom]} of {self._structure.residue_label(residue)}"

    def _in_residues(self) -> list[tuple[int, int]]:
        """Bonds of templates."""
        residues = self._structure.residues
        begins = np.searchsorted(residues, np.arange(len(self._kinds) + 1))
        pairs = []
        for residue in np.flatnonzero(self._standard).tolist():
            place = {self._names[i]: i for i in range(begins[residue], begins[residue + 1])}
            pairs += [
                (min(place[a], place[b]), max(place[a], place[b]))
                for a, b in RESIDUE_BONDS[self._kinds[residue]]
                if a in place and b in place
            ]
        return pairs

    def _to_hydrogens(self) -> list[tuple[int, int]]:
        """Join each hydrogen to the nearest heavy atom of its residue, or, as in H2, hydrogen."""
        numbers, residues = self._structure.numbers, self._structure.residues
        own = residues[self._near[:, 0]] == residues[self._near[:, 1]]
        nearest: dict[int, tuple[bool, float, int]] = {}
        for (i, j), length in zip(
            self._near[own].tolist(), self._lengths[own].tolist(), strict=True
        ):
            for atom, other in ((i, j), (j, i)):
                if numbers[atom] == 1 and numbers[other] > 0:
                    candidate = (bool(numbers[other] == 1), length, other)
                    nearest[atom] = min(nearest.get(atom, candidate), candidate)
        bonded = {atom for pair in self._stated for atom in pair}
        return [
            (min(atom, other), max(atom, other))
            for atom, (_, _, other) in nearest.items()
            if atom not in bonded or self._standard[residues[atom]]
        ]

    def _between_residues(self) -> list[tuple[int, int]]:
        """Peptide bonds, bridges, and bonds of residues without template."""
        structure = self._structure
        pairs = []
        radii = covalent_radii[structure.numbers[self._near]].sum(axis=1)
        for (i, j), length, radius in zip(
            self._near.tolist(), self._lengths.tolist(), radii.tolist(), strict=True
        ):
            first, second = structure.residues[i], structure.residues[j]
            kinds = {self._kinds[first], self._kinds[second]}
            if first == second or min(structure.numbers[i], structure.numbers[j]) <= 1:
                continue
            if kinds & {WATER, ION} or not self._is_covalent(i, j):
                continue
            standard = self._standard[first] and self._standard[second]
            names = {self._names[i], self._names[j]}
            if (
                (i, j) in self._stated
                or (standard and names in ({"C", "N"}, {"SG"}))
                or (not standard and length < _SURE * radius)
            ):
                pairs.append((i, j))
            else:
                raise InputError(
                    f"{self._label(i)} and {self._label(j)} are {length:.2f} Å apart, but nothing "
                    "says that they are bonded; state the bond (LINK, CONECT or _struct_conn) or "
                    "mend the structure"
                )
        return pairs

    def _others_stated(self) -> list[tuple[int, int]]:
        """Stated bonds but those inside residues with a template."""
        residues = self._structure.residues
        return [
            (i, j)
            for i, j in self._stated
            if residues[i] != residues[j] or self._kinds[residues[i]] in (LIGAND, WATER)
        ]

    def _check_lengths(self, pairs: Sequence[tuple[int, int]]) -> None:
        numbers, positions = self._structure.numbers, self._structure.positions
        for i, j in pairs:
            length = float(np.linalg.norm(positions[i] - positions[j]))
            if length > STRETCH * covalent_radii[numbers[[i, j]]].sum():
                raise InputError(
                    f"the bond between {self._label(i)} and {self._label(j)} would be "
                    f"{length:.2f} Å long; mend the structure, or the record that states the bond"
                )

    def _check_chains(self, bonds: NDArray[np.int64]) -> None:
        """Refuse neighbours in a chain that are neither linked nor ends."""
        structure = self._structure
        linked = {tuple(pair) for pair in structure.residues[bonds].tolist()}
        for before in range(len(self._kinds) - 1):
            after = before + 1
            if not (self._standard[before] and self._standard[after]):
                continue
            if structure.chains[before] != structure.chains[after] or (before, after) in linked:
                continue
            carbon, nitrogen = self._atom(before, "C"), self._atom(after, "N")
            ended = self._kinds[before] == "NME" or self._atom(before, "OXT") is not None
            if ended or self._kinds[after] == "ACE" or carbon is None or nitrogen is None:
                continue
            length = np.linalg.norm(structure.positions[carbon] - structure.positions[nitrogen])
            raise InputError(
                f"the chain is interrupted between {structure.residue_label(before)} and "
                f"{structure.residue_label(after)}: C and N are {length:.2f} Å apart; {_COMPLETE}"
            )

    def _check_bridges(self, bonds: NDArray[np.int64]) -> None:
        """Refuse bridges with hydrogens on them, and half bridges."""
        numbers, residues = self._structure.numbers, self._structure.residues
        sulfurs = {i for i, name in enumerate(self._names) if name == "SG"}
        partners: dict[int, list[int]] = {sulfur: [] for sulfur in sulfurs}
        for i, j in bonds.tolist():
            for atom, other in ((i, j), (j, i)):
                if atom in sulfurs:
                    partners[atom].append(other)
        for sulfur, others in partners.items():
            bridged = [other for other in others if residues[other] != residues[sulfur]]
            hydrogens = [other for other in others if numbers[other] == 1]
            name = self._structure.residue_names[residues[sulfur]]
            if len(bridged) + len(hydrogens) > 1:
                raise InputError(
                    f"{self._label(sulfur)} has {counted(len(bridged), 'bond')} to other residues "
                    f"and {counted(len(hydrogens), 'hydrogen')}; remove the hydrogens of disulfide "
                    "bridges, and mend the positions of cysteines that are none"
                )
            if name in BRIDGED and not bridged:
                raise InputError(
                    f"{self._label(sulfur)} has no sulfur within reach, but {name} is a cysteine "
                    "in a disulfide bridge; call it CYS, or mend the structure"
                )

    def _atom(self, residue: int, name: str) -> int | None:
        begin, end = np.searchsorted(self._structure.residues, [residue, residue + 1]).tolist()
        return next((i for i in range(begin, end) if self._names[i] == name), None)
