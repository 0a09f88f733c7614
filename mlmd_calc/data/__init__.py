"""Labelled molecular frames: readers, splits, molecules, and the GFN2-xTB generator.

The generator is `mlmd_calc.data.generate.generate`, its reference methods are in
`mlmd_calc.data.reference`. Trajectories that follow a force model are made by
`mlmd_calc.data.propagate.propagate`.
Importing this package loads neither torch nor rdkit nor tblite.
"""

from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.data.molecules import (
    MOLECULES,
    Molecule,
    atoms_from_smiles,
    molecule_from_smiles,
    select_molecules,
)
from mlmd_calc.data.npz import write_labels, write_trajectory
from mlmd_calc.data.readers import read_dataset
from mlmd_calc.data.split import split_by_block, split_by_molecule

__all__ = [
    "MOLECULES",
    "Molecule",
    "MoleculeFrames",
    "atoms_from_smiles",
    "molecule_from_smiles",
    "read_dataset",
    "select_molecules",
    "split_by_block",
    "split_by_molecule",
    "write_labels",
    "write_trajectory",
]
