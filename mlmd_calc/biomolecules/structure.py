"""Structures with names and bonds, and those of ASE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import ase
import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mlmd_calc.biomolecules.residues import (
    ION_ELEMENTS,
    NUCLEOTIDES,
    PARENTS,
    RESIDUES,
    WATERS,
)
from mlmd_calc.errors import InputError
from mlmd_calc.geometry.bonds import find_bonds, fragments_of

LIGAND: Final = "ligand"
WATER: Final = "water"
ION: Final = "ion"
NUCLEOTIDE: Final = "nucleotide"
_PDB_COLUMNS: Final = ("residuenames", "atomtypes", "residuenumbers")
"""What ASE calls names and numbers of residues and names of atoms read from PDB files."""


@dataclass(frozen=True)
class BondedStructure:
    """A structure as an engine or a file has it: names, residues, chains, bonds, positions.

    Attributes
    ----------
    names
        Atom names, ``n`` of them; empty where there is none.
    numbers
        ``(n,)`` atomic numbers, 0 for sites that are no atoms.
    residues
        ``(n,)`` residue of each atom, an index to the following four.
    residue_names
        As in the source, e.g. ``"ALA"``.
    residue_numbers
        ``(r,)`` as in the source.
    chains
        ``(r,)`` chain of each residue.
    chain_names
        Of each chain.
    bonds
        ``(b, 2)`` index pairs. Residues with none, or not enough to hold together, get theirs from
        distances where bonds are needed.
    charges
        ``(n,)`` formal charges in e as far as the source knows them, else 0. Those of amino acids
        are not read from here but follow from their hydrogens.
    positions
        ``(n, 3)`` Å. The reference for geometry: chirality, places of hydrogens, conformers of
        ligands without a SMILES. Molecules must be whole.
    insertion_codes
        Of each residue, as PDB files have them after the number; empty if the source has none.
    notes
        Sentences on what was chosen or assumed when the structure was read.

    Raises
    ------
    InputError
        If positions are missing or not finite.
    """

    names: tuple[str, ...]
    numbers: NDArray[np.int64]
    residues: NDArray[np.int64]
    residue_names: tuple[str, ...]
    residue_numbers: NDArray[np.int64]
    chains: NDArray[np.int64]
    chain_names: tuple[str, ...]
    bonds: NDArray[np.int64]
    charges: NDArray[np.int64]
    positions: NDArray[np.float64]
    insertion_codes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.positions.shape != (len(self), 3) or not np.isfinite(self.positions).all():
            raise InputError(
                f"positions have shape {self.positions.shape} for {len(self)} atoms or are not "
                "finite; give one finite position per atom"
            )

    def __len__(self) -> int:
        return len(self.numbers)

    def residue_label(self, residue: int) -> str:
        """Name a residue for people, e.g. ``"ALA 3 of chain A"``."""
        chain = self.chain_names[self.chains[residue]] or "(unnamed)"
        return f"{self.residue_names[residue]} {self.residue_id(residue)} of chain {chain}"

    def residue_id(self, residue: int) -> str:
        """Return the number of a residue with its insertion code, e.g. ``"52A"``."""
        code = self.insertion_codes[residue] if self.insertion_codes else ""
        return f"{self.residue_numbers[residue]}{code}"

    def atom_label(self, atom: int) -> str:
        """Name an atom for people, e.g. ``"atom 7 (CB)"``."""
        return f"atom {atom} ({self.names[atom] or chemical_symbols[self.numbers[atom]]})"


def residue_kind(structure: BondedStructure, residue: int) -> str:
    """Tell what a residue is: an entry of `RESIDUES`, or one of the kinds above."""
    name = structure.residue_names[residue]
    if name in NUCLEOTIDES:
        return NUCLEOTIDE
    parent = PARENTS.get(name, name)
    if parent in RESIDUES:
        return parent
    if name in WATERS:
        return WATER
    atoms = np.flatnonzero(structure.residues == residue)
    alone = len(atoms) == 1 and not np.isin(structure.bonds, atoms).any()
    return ION if alone and int(structure.numbers[atoms[0]]) in ION_ELEMENTS else LIGAND


def bonded_structure_from_ase(atoms: ase.Atoms) -> BondedStructure:
    """Take a structure from ASE, with bonds from distances.

    If ASE read it from a PDB file, it has residues and names, and a chain ends where residue
    numbers go back. Otherwise every molecule is a ligand of its own, called MOL.

    Parameters
    ----------
    atoms
        Whole molecules near equilibrium.
    """
    bonds = find_bonds(atoms).pairs
    if all(column in atoms.arrays for column in _PDB_COLUMNS):
        return _named_structure(atoms, bonds)
    residues = fragments_of(len(atoms), bonds.tolist())
    count = int(residues.max(initial=-1)) + 1
    return BondedStructure(
        names=("",) * len(atoms),
        numbers=atoms.numbers.astype(np.int64),
        residues=residues,
        residue_names=("MOL",) * count,
        residue_numbers=np.ones(count, dtype=np.int64),
        chains=np.arange(count),
        chain_names=tuple(str(index + 1) for index in range(count)),
        bonds=bonds,
        charges=np.zeros(len(atoms), dtype=np.int64),
        positions=atoms.positions.astype(np.float64),
    )


def _named_structure(atoms: ase.Atoms, bonds: NDArray[np.int64]) -> BondedStructure:
    names, numbers = atoms.arrays["residuenames"], atoms.arrays["residuenumbers"]
    begins = np.ones(len(atoms), dtype=bool)
    begins[1:] = (names[1:] != names[:-1]) | (numbers[1:] != numbers[:-1])
    first = np.flatnonzero(begins)
    chains = np.zeros(len(first), dtype=np.int64)
    chains[1:] = np.cumsum(np.diff(numbers[first]) < 0)
    return BondedStructure(
        names=tuple(str(name).strip() for name in atoms.arrays["atomtypes"]),
        numbers=atoms.numbers.astype(np.int64),
        residues=np.cumsum(begins) - 1,
        residue_names=tuple(str(name).strip() for name in names[first]),
        residue_numbers=numbers[first].astype(np.int64),
        chains=chains,
        chain_names=tuple(str(index + 1) for index in range(int(chains.max(initial=-1)) + 1)),
        bonds=bonds,
        charges=np.zeros(len(atoms), dtype=np.int64),
        positions=atoms.positions.astype(np.float64),
    )
