"""Structures of small molecules from SMILES."""

from __future__ import annotations

from collections import Counter

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mlmd_calc.biomolecules import BondedStructure
from mlmd_calc.data.molecules import molecule_from_smiles, start_structures
from mlmd_calc.errors import InputError
from mlmd_calc.optional import require


def structure_from_smiles(smiles: str, name: str = "MOL", seed: int = 0) -> BondedStructure:
    """Build one molecule with RDKit; heavy atoms as written, then hydrogens.

    Atoms are named by element and counter, as C1, C2, O1, H1.

    Parameters
    ----------
    smiles
        One connected molecule.
    name
        Residue name.
    seed
        Seed of the three-dimensional structure, 0 ≤ seed < 2³¹.

    Raises
    ------
    InputError
        If the SMILES cannot be read or built, or names isotopes.
    MissingDependencyError
        If rdkit is not installed.
    """
    built = start_structures(molecule_from_smiles(name, smiles), 1, seed)
    if built.has_isotopes:
        raise InputError(
            f"{smiles!r} names isotopes, which no model of trajectories knows; leave them out"
        )
    chem = require("rdkit.Chem", extra="data", why="build molecules from SMILES")
    formal = [atom.GetFormalCharge() for atom in chem.MolFromSmiles(smiles).GetAtoms()]
    count = len(built.numbers)
    charges = np.zeros(count, dtype=np.int64)
    charges[: len(formal)] = formal
    return BondedStructure(
        names=_names(built.numbers),
        numbers=built.numbers.astype(np.int64),
        residues=np.zeros(count, dtype=np.int64),
        residue_names=(name,),
        residue_numbers=np.ones(1, dtype=np.int64),
        chains=np.zeros(1, dtype=np.int64),
        chain_names=("1",),
        bonds=built.bonds,
        charges=charges,
        positions=built.positions[0],
    )


def _names(numbers: NDArray[np.int64]) -> tuple[str, ...]:
    counts: Counter[str] = Counter()
    names = []
    for number in numbers.tolist():
        symbol = chemical_symbols[number].upper()
        counts[symbol] += 1
        names.append(f"{symbol}{counts[symbol]}")
    return tuple(names)
