"""Alanine dipeptide, its complex with ethanol, and proteins from their sequence."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.data import chemical_symbols

from mlmd_calc.biomolecules import BondedStructure
from mlmd_calc.biomolecules.residues import RESIDUES
from mlmd_calc.data.biomolecules import structure_from_smiles

# Test modules that import this one are skipped without it.
Chem = pytest.importorskip("rdkit.Chem", reason="rdkit, which builds peptides, is not installed")

DIPEPTIDE = """
    CH3  ACE 1   0.231  -3.574  -0.179
    H1   ACE 1  -0.653  -3.702  -0.804
    H2   ACE 1   1.051  -3.852  -0.841
    H3   ACE 1   0.185  -4.232   0.689
    C    ACE 1   0.541  -2.133   0.235
    O    ACE 1   1.285  -1.843   1.143
    N    ALA 2  -0.069  -1.273  -0.565
    H    ALA 2  -0.793  -1.698  -1.126
    CA   ALA 2   0.148   0.192  -0.582
    HA   ALA 2   1.200   0.470  -0.630
    C    ALA 2  -0.575   1.054   0.445
    O    ALA 2  -1.839   0.960   0.704
    CB   ALA 2  -0.247   0.587  -1.990
    HB1  ALA 2   0.198  -0.017  -2.781
    HB2  ALA 2   0.042   1.614  -2.211
    HB3  ALA 2  -1.333   0.490  -1.999
    N    NME 3   0.292   1.923   1.057
    H    NME 3   1.289   1.896   0.895
    C    NME 3  -0.170   3.045   1.964
    H1   NME 3  -0.730   2.702   2.834
    H2   NME 3   0.693   3.602   2.331
    H3   NME 3  -0.747   3.786   1.409
"""
HEAVY_DIPEPTIDE = ["CH3", "C", "O", "N", "CA", "C", "O", "CB", "N", "C"]
"""Names of the heavy atoms in the order of the network."""


def pdb_line(serial: int, name: str, residue: str, chain: str, number: int, x, symbol: str) -> str:
    padded = f" {name:<3}" if len(name) < 4 else name
    place = "".join(f"{value:8.3f}" for value in x)
    return (
        f"HETATM{serial:5d} {padded} {residue:<3} {chain}{number:4d}    {place}  1.00  0.00"
        f"          {symbol:>2}\n"
    )


def write_dipeptide(path: Path, *, complexed: bool = False) -> Path:
    """PDB file of Ace-Ala-Nme, on request with two ethanols, a water and a sodium ion."""
    rows = [line.split() for line in DIPEPTIDE.strip().splitlines()]
    atoms = [(name, res, "A", int(n), map(float, x), name[0]) for name, res, n, *x in rows]
    if complexed:
        ethanol = structure_from_smiles("CCO")
        for number in (1, 2):
            for i, x in enumerate(ethanol.positions + np.array([6.0 * number, 0.0, 3.0])):
                symbol = chemical_symbols[ethanol.numbers[i]]
                atoms.append((f"{symbol}{i + 1}", "LIG", "B", number, x, symbol))
        atoms.append(("O", "HOH", "C", 1, (0.0, 0.0, 20.0), "O"))
        atoms.append(("NA", "NA", "C", 2, (9.0, 0.0, 20.0), "NA"))
    with path.open("w") as file:
        file.writelines(pdb_line(i, *atom) for i, atom in enumerate(atoms, start=1))
        file.write("END\n")
    return path


def sequence_structure(sequence: str, charges: dict[tuple[int, str], int] | None = None):
    """Protein by RDKit's residue templates; residues lie apart, which only bonds can join.

    ``charges`` by residue number and atom name decide how many hydrogens the atoms have.
    """
    molecule = Chem.MolFromSequence(sequence)
    Chem.Kekulize(molecule, clearAromaticFlags=True)
    for atom in molecule.GetAtoms():
        entry = atom.GetPDBResidueInfo()
        place = entry.GetResidueNumber(), entry.GetName().strip()
        atom.SetFormalCharge((charges or {}).get(place, 0))
        atom.SetNoImplicit(False)
        atom.SetNumExplicitHs(0)
    Chem.SanitizeMol(molecule)
    molecule = Chem.AddHs(molecule, addResidueInfo=True)
    info = [atom.GetPDBResidueInfo() for atom in molecule.GetAtoms()]
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    residues = np.array([entry.GetResidueNumber() - 1 for entry in info])
    names = tuple(entry.GetName().strip() for entry in info)
    bonds = np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in molecule.GetBonds()])
    residue_names = [""] * len(sequence)
    for entry in info:
        residue_names[entry.GetResidueNumber() - 1] = entry.GetResidueName()
    positions = np.zeros((len(numbers), 3))
    for atom, (name, residue) in enumerate(zip(names, residues, strict=True)):
        kind = RESIDUES[residue_names[residue]]
        shift = np.array([30.0 * residue, 0.0, 0.0])
        if name in kind.atoms:
            place = kind.conformer[kind.atoms.index(name)]
        else:
            parent = bonds[(bonds == atom).any(axis=1)][0].sum() - atom
            place = positions[parent] + 0.6 - shift
        positions[atom] = place + shift
    return BondedStructure(
        names=names,
        numbers=numbers,
        residues=residues,
        residue_names=tuple(residue_names),
        residue_numbers=np.arange(1, len(sequence) + 1),
        chains=np.zeros(len(sequence), dtype=np.int64),
        chain_names=("A",),
        bonds=bonds,
        charges=np.zeros(len(numbers), dtype=np.int64),
        positions=positions,
    )


def permuted(structure: BondedStructure, order: np.ndarray) -> BondedStructure:
    """The same structure with its atoms in another order."""
    place = np.argsort(order)
    return replace(
        structure,
        names=tuple(structure.names[i] for i in order),
        numbers=structure.numbers[order],
        residues=structure.residues[order],
        bonds=place[structure.bonds],
        charges=structure.charges[order],
        positions=structure.positions[order],
    )


def without(structure: BondedStructure, atoms: list[int]) -> BondedStructure:
    """The structure less some atoms."""
    order = np.array([i for i in range(len(structure)) if i not in atoms])
    bonds = structure.bonds[~np.isin(structure.bonds, atoms).any(axis=1)]
    place = np.full(len(structure), -1)
    place[order] = np.arange(len(order))
    return replace(
        structure,
        names=tuple(structure.names[i] for i in order),
        numbers=structure.numbers[order],
        residues=structure.residues[order],
        bonds=place[bonds],
        charges=structure.charges[order],
        positions=structure.positions[order],
    )
