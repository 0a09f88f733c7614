"""Proteins, peptides, ligands and small molecules as ATMOS sees them.

`read_structure`, `structure_from_ase`, for SMILES
`mlmd_calc.data.biomolecules.structure_from_smiles`
and for OpenMM `openmm_bridge.topology_features.structure_from_topology` make a structure;
`build_system` turns it into features and keeps the way back to the atoms of the engine.
"""

from mlmd_calc.biomolecules.domain import Domain
from mlmd_calc.biomolecules.hydrogens import HydrogenFrames
from mlmd_calc.biomolecules.reader import (
    StructureFile,
    is_structure_file,
    read_structure,
    read_structure_file,
)
from mlmd_calc.biomolecules.structure import BondedStructure, structure_from_ase
from mlmd_calc.biomolecules.system import MolecularSystem, build_system

__all__ = [
    "BondedStructure",
    "Domain",
    "HydrogenFrames",
    "MolecularSystem",
    "StructureFile",
    "build_system",
    "is_structure_file",
    "read_structure",
    "read_structure_file",
    "structure_from_ase",
]
