"""Residues as the network sees them: names, order, charges and conformer of their heavy atoms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray

from mlmd_calc.biomolecules.bond_graph import BondGraph
from mlmd_calc.biomolecules.ligands import embed_ligand, upright
from mlmd_calc.biomolecules.prochirality import exchanged_arms
from mlmd_calc.biomolecules.residues import (
    ACIDS,
    C_TERMINUS,
    CAPS,
    EXCHANGED,
    HYDROGENS,
    N_TERMINUS,
    PROLINE_N_TERMINUS,
    RESIDUES,
    STATED_CHARGES,
    UNKNOWN,
    Acid,
    Residue,
    standard_atom_name,
)
from mlmd_calc.errors import InputError
from mlmd_calc.geometry.bonds import CARBON
from mlmd_calc.wording import counted

LONGEST_NAME: Final = 4
"""Characters of an atom name that the network reads."""


class Part(NamedTuple):
    """Heavy atoms of one residue in the order of the network."""

    residue: int
    """Index of the residue in the structure."""
    kind: Residue | None
    """None for one token per atom."""
    atoms: tuple[int, ...]
    """Indices in the structure."""
    names: tuple[str, ...]
    numbers: NDArray[np.int64]
    charges: NDArray[np.int64]
    conformer: NDArray[np.float64]
    """``(len(atoms), 3)`` Å."""

    @property
    def token_sizes(self) -> list[int]:
        """Number of atoms of each token."""
        return [1] * len(self.atoms) if self.kind is None else [len(self.atoms)]

    @property
    def is_amino_acid(self) -> bool:
        """Whether the part is one of the 20."""
        return self.kind is not None and self.kind.restype < UNKNOWN

    def atom(self, name: str) -> int:
        """Index of an atom in the structure."""
        return self.atoms[self.names.index(name)]


def standard_part(graph: BondGraph, residue: int, parent: str) -> Part:
    """Sort the atoms of an amino acid or cap.

    Raises
    ------
    InputError
        If the residue lacks heavy atoms, or has foreign ones.
    """
    kind = RESIDUES[parent]
    by_name = _atoms_by_name(graph, residue, parent)
    if missing := [name for name in kind.atoms if name not in by_name and name != "OXT"]:
        raise InputError(
            f"{graph.structure.residue_label(residue)} lacks {', '.join(missing)}; complete the "
            "structure first, for example with PDBFixer"
        )
    charges = _formal_charges(graph, residue, parent, by_name)
    # By the names that the network knows them by.
    atoms = {EXCHANGED.get((parent, name), name): atom for name, atom in by_name.items()}
    names = tuple(name for name in kind.atoms if name in atoms)
    return Part(
        residue=residue,
        kind=kind,
        atoms=tuple(atoms[name] for name in names),
        names=names,
        numbers=np.array([atomic_numbers[name[0]] for name in names], dtype=np.int64),
        charges=np.array([charges.get(name, 0) for name in names], dtype=np.int64),
        conformer=kind.conformer[[kind.atoms.index(name) for name in names]],
    )


def _atoms_by_name(graph: BondGraph, residue: int, parent: str) -> dict[str, int]:
    structure = graph.structure
    label, selenium = structure.residue_label(residue), structure.residue_names[residue] == "MSE"
    by_name: dict[str, int] = {}
    for atom in graph.heavy_atoms(residue):
        name = standard_atom_name(parent, structure.names[atom])
        if name not in RESIDUES[parent].atoms or name in by_name:
            raise InputError(
                f"{label} has {structure.atom_label(atom)}, which {parent} does not have or has "
                f"only once; its heavy atoms are {', '.join(RESIDUES[parent].atoms)}. Rename the "
                "residue if it is a modified one"
            )
        symbol = chemical_symbols[structure.numbers[atom]]
        if symbol != name[0] and not selenium:
            raise InputError(
                f"{structure.atom_label(atom)} of {label} is {name[0]} by its name and {symbol} "
                "by its element; correct one of them"
            )
        by_name[name] = atom
    if parent == "ILE" and {"CG1", "CG2", "CD1"} <= by_name.keys():
        first, second = by_name["CG1"], by_name["CG2"]
        if second in graph.heavy_neighbours[by_name["CD1"]]:  # RDKit's names
            by_name |= {"CG1": second, "CG2": first}
    return by_name | exchanged_arms(parent, by_name, structure.positions)


def _formal_charges(
    graph: BondGraph, residue: int, parent: str, by_name: Mapping[str, int]
) -> dict[str, int]:
    """Charges by atom name; from hydrogens where there are any, else those of pH 7."""
    explicit = graph.hydrogens_on(list(by_name.values())) > 0
    if explicit:
        _check_hydrogens(graph, residue, parent, by_name)
    if parent in CAPS:
        return {}
    charges = {}
    for acid in _acids(graph, parent, by_name):
        charge = acid.charged * acid.at_ph_7
        if acid == ACIDS.get(parent):
            charge = STATED_CHARGES.get(graph.structure.residue_names[residue], charge)
        if explicit:
            charge = _proton_charge(graph, residue, by_name, acid)
        charges[acid.atoms[-1]] = charge
    return charges


def _acids(graph: BondGraph, parent: str, by_name: Mapping[str, int]) -> list[Acid]:
    """List the groups of an amino acid that may be charged."""
    acids = [ACIDS[parent]] if parent in ACIDS else []
    if "OXT" in by_name:
        acids.append(C_TERMINUS)
    if not graph.across(by_name["N"]):
        acids.append(PROLINE_N_TERMINUS if parent == "PRO" else N_TERMINUS)
    return acids


def _check_hydrogens(
    graph: BondGraph, residue: int, parent: str, by_name: Mapping[str, int]
) -> None:
    """Refuse unknown protonation states; hydrogens may be missing on all carbon atoms at once."""
    expected = dict(HYDROGENS[parent])
    if parent not in CAPS and graph.across(by_name["N"]):
        expected["N"] = 0 if parent == "PRO" else 1
    numbers = graph.structure.numbers
    carbons = [atom for atom in by_name.values() if numbers[atom] == CARBON]
    polar_only = graph.hydrogens_on(carbons) == 0
    for name, count in expected.items():
        atom = by_name[name]
        found = graph.hydrogens_on([atom])
        if found + _links(graph, atom, name) != count and not (polar_only and atom in carbons):
            raise InputError(
                f"{graph.structure.residue_label(residue)} has {counted(found, 'hydrogen')} on "
                f"{name} where {count} belong; complete the structure first, for example with "
                "PDBFixer"
            )


def _links(graph: BondGraph, atom: int, name: str) -> int:
    """Bonds to other residues that stand for a hydrogen."""
    return 0 if name in ("N", "C") else len(graph.across(atom))


def _proton_charge(graph: BondGraph, residue: int, by_name: Mapping[str, int], acid: Acid) -> int:
    """Charge by the number of hydrogens; a bond to another residue stands for one."""
    atoms = [by_name[name] for name in acid.atoms]
    hydrogens = graph.hydrogens_on(atoms)
    charge = hydrogens + sum(len(graph.across(atom)) for atom in atoms) - acid.hydrogens
    if charge not in (0, acid.charged):
        raise InputError(
            f"{graph.structure.residue_label(residue)} has {counted(hydrogens, 'hydrogen')} on "
            f"{', '.join(acid.atoms)}, which would be a charge of {charge:+d}; possible are 0 and "
            f"{acid.charged:+d}. Complete the structure first, for example with PDBFixer"
        )
    return charge


def ligand_part(graph: BondGraph, residue: int, smiles: str | None) -> Part:
    """Describe a residue that is one token per heavy atom, in the order of the structure.

    Parameters
    ----------
    graph
        Structure and bonds.
    residue
        Index of the residue.
    smiles
        What it is; None takes charges and conformer from the structure.

    Raises
    ------
    InputError
        If the SMILES does not fit.
    """
    structure, atoms = graph.structure, graph.heavy_atoms(residue)
    numbers, charges = structure.numbers[atoms], structure.charges[atoms]
    conformer = structure.positions[atoms]
    if smiles is not None:
        label = structure.residue_label(residue)
        bonds = _inner_bonds(graph, atoms)
        conformer, charges = embed_ligand(numbers, bonds, conformer, smiles, label)
    names = [structure.names[atom] for atom in atoms]
    return Part(
        residue=residue,
        kind=None,
        atoms=tuple(atoms),
        names=tuple(names if _readable(names) else _numbered(numbers)),
        numbers=numbers,
        charges=charges,
        conformer=upright(conformer),
    )


def _inner_bonds(graph: BondGraph, atoms: Sequence[int]) -> NDArray[np.int64]:
    """Bonds between some atoms, as indices into these."""
    local = np.full(len(graph.structure), -1)
    local[list(atoms)] = np.arange(len(atoms))
    bonds = local[graph.bonds]
    inner: NDArray[np.int64] = bonds[(bonds >= 0).all(axis=1)]
    return inner


def _readable(names: Sequence[str]) -> bool:
    """Whether the network can tell the atoms apart by these names."""
    short = all(0 < len(name) <= LONGEST_NAME and name.isascii() for name in names)
    return short and len(set(names)) == len(names)


def _numbered(numbers: NDArray[np.int64]) -> list[str]:
    """Element and counter, e.g. C1 C2 O1."""
    counts: Counter[int] = Counter()
    names = []
    for number in numbers.tolist():
        counts[number] += 1
        names.append(f"{chemical_symbols[number].upper()}{counts[number]}"[:LONGEST_NAME])
    return names
