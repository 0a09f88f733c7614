"""Proteins, peptides, ligands and small molecules as ATMOS sees them.

`read_structure`, `bonded_structure_from_ase`, for SMILES
`mlmd_calc.data.biomolecules.structure_from_smiles` and for OpenMM
`openmm_bridge.topology_features.structure_from_topology` make a structure; `build_system` turns it
into features and keeps the way back to the atoms of the engine.
"""

from mlmd_calc.biomolecules.reader import read_structure
from mlmd_calc.biomolecules.structure import BondedStructure, bonded_structure_from_ase
from mlmd_calc.biomolecules.system import MolecularSystem, build_system

__all__ = [
    "BondedStructure",
    "MolecularSystem",
    "bonded_structure_from_ase",
    "build_system",
    "read_structure",
]
