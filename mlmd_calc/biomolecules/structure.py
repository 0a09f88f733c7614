"""Structures with names and bonds, from files, ASE and SMILES."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import ase
import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mlmd_calc import units
from mlmd_calc.biomolecules.residues import PARENTS, RESIDUES, WATERS
from mlmd_calc.bonds import find_bonds
from mlmd_calc.errors import InputError, ModelFileError
from mlmd_calc.optional import require

_SUFFIXES: Final = (".pdb", ".ent", ".cif", ".mmcif")
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
        chain = self.chain_names[self.chains[residue]]
        number = self.residue_numbers[residue]
        return f"{self.residue_names[residue]} {number} of chain {chain or '(unnamed)'}"

    def atom_label(self, atom: int) -> str:
        """Name an atom for people, e.g. ``"atom 7 (CB)"``."""
        return f"atom {atom} ({self.names[atom] or chemical_symbols[self.numbers[atom]]})"


def read_structure(path: str | os.PathLike[str]) -> BondedStructure:
    """Read the first model of a PDB or mmCIF file with mdtraj.

    Residues and atoms get their standard names, and of alternate locations the first is taken.

    Parameters
    ----------
    path
        File that ends in .pdb, .ent, .cif or .mmcif.

    Raises
    ------
    ModelFileError
        If the file is missing, of another kind, or cannot be read, or if a PDB file has no elements
        for ligands or ions.
    MissingDependencyError
        If mdtraj is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"the structure file {path} does not exist")
    if path.suffix.lower() not in _SUFFIXES:
        raise ModelFileError(
            f"{path} is no structure file by its name; readable are {', '.join(_SUFFIXES)}"
        )
    mdtraj = require("mdtraj", extra="dcd", why="read PDB and mmCIF files")
    if path.suffix.lower() in (".pdb", ".ent"):
        _check_elements(path)
    try:
        model = mdtraj.load_frame(str(path), 0)
    except Exception as error:  # mdtraj raises whatever its parsers meet
        raise ModelFileError(f"the structure file {path} cannot be read: {error}") from error
    atoms, residues = list(model.top.atoms), list(model.top.residues)
    return BondedStructure(
        names=tuple(atom.name for atom in atoms),
        numbers=np.array([atom.element.atomic_number for atom in atoms], dtype=np.int64),
        residues=np.array([atom.residue.index for atom in atoms], dtype=np.int64),
        residue_names=tuple(residue.name for residue in residues),
        residue_numbers=np.array([residue.resSeq for residue in residues], dtype=np.int64),
        chains=np.array([residue.chain.index for residue in residues], dtype=np.int64),
        chain_names=tuple((chain.chain_id or "").strip() for chain in model.top.chains),
        bonds=np.array(
            [(bond[0].index, bond[1].index) for bond in model.top.bonds], dtype=np.int64
        ).reshape(-1, 2),
        charges=np.array([atom.formal_charge or 0 for atom in atoms], dtype=np.int64),
        positions=model.xyz[0].astype(np.float64) * units.NM,
    )


def _check_elements(path: Path) -> None:
    """Refuse PDB files in which elements of ligands or ions would have to be guessed from names."""
    known = {*RESIDUES, *PARENTS, *WATERS}
    with path.open(errors="replace") as lines:
        for line in lines:
            residue = line[17:21].strip()
            atom = line.startswith(("ATOM", "HETATM")) and not line[76:78].strip()
            if atom and residue not in known:
                raise ModelFileError(
                    f"{path}: atom {line[12:16].strip()} of residue {residue} has no element in "
                    "columns 77-78; write the file anew with elements, for example with OpenMM"
                )


def structure_from_ase(atoms: ase.Atoms) -> BondedStructure:
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
    residues = connected(len(atoms), bonds)
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


def connected(count: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Label the connected parts of a graph ``(count,)``, in the order of their first members."""
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


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
