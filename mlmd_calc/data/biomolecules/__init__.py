"""Trajectories of biomolecules: readers, splits, simulated peptides, and structures from SMILES."""

from mlmd_calc.data.biomolecules.smiles import structure_from_smiles

__all__ = ["structure_from_smiles"]
