"""Force models that relax sampled frames, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import ase

from mlmd_calc.biomolecules.charges import total_charge
from mlmd_calc.data.reference import SO3LR, make_calculator
from mlmd_calc.md.attached import AttachedCalculator
from mlmd_calc.optional import require
from mlmd_calc.sampling.drawing import named_potential

if TYPE_CHECKING:
    from mlmd_calc.biomolecules import BondedStructure
    from mlmd_calc.propagation import ForceModel

AMBER: Final = "amber14"


def relaxation_forces(name: str, structure: BondedStructure) -> ForceModel:
    """Make the force model that relaxes frames.

    Parameters
    ----------
    name
        "amber14": Amber ff14SB in the implicit solvent OBC2, by OpenMM, for amino acids; "so3lr",
        or the import path ``package.module:name`` of something that returns an ASE calculator; or
        the name or file of an MD-ET model.
    structure
        What is relaxed.

    Raises
    ------
    ConfigError
        If there is no such calculator or model.
    InputError
        If the force field does not know the molecule.
    MissingDependencyError
        If a package is needed but not installed.
    """
    if name == AMBER:
        require("openmm", extra="openmm", why="relax frames with Amber")
        from openmm_bridge.peptides import AmberForces

        return AmberForces(structure)
    if name == SO3LR or ":" in name:
        atoms = ase.Atoms(structure.numbers, structure.positions)
        # Calculators of other people look here.
        atoms.info.update(charge=total_charge(structure), spin=1)
        atoms.calc = make_calculator(name)
        return AttachedCalculator(atoms)
    return named_potential(name, structure)
