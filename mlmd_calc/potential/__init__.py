"""Engine-neutral force evaluation: structures in, energies and forces out."""

from mlmd_calc.potential.potential import Potential
from mlmd_calc.potential.results import Evaluation, Hessian
from mlmd_calc.potential.structure import Structure, structure_from_ase

__all__ = ["Evaluation", "Hessian", "Potential", "Structure", "structure_from_ase"]
