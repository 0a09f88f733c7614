"""OpenMM topologies and systems of ASE molecules."""

import ase
import numpy as np
import openmm
from openmm import app, unit

from mlmd_calc.geometry.bonds import find_bonds

KJ = unit.kilojoule_per_mole
PLATFORMS = ("Reference", "CPU")


def topology_of(atoms: ase.Atoms) -> app.Topology:
    """One residue with the bonds of the geometry."""
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    added = [
        topology.addAtom(f"{symbol}{i}", app.Element.getBySymbol(symbol), residue)
        for i, symbol in enumerate(atoms.get_chemical_symbols())
    ]
    for i, j in find_bonds(atoms).pairs:
        topology.addBond(added[i], added[j])
    return topology


def system_of(atoms: ase.Atoms, *forces: openmm.Force) -> openmm.System:
    """System with the atoms' masses and the given forces."""
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    for force in forces:
        system.addForce(force)
    return system


def context_of(
    system: openmm.System,
    positions: np.ndarray,
    platform: str = "Reference",
    integrator: openmm.Integrator | None = None,
) -> openmm.Context:
    """Context at positions in Å."""
    made = openmm.Context(
        system,
        openmm.VerletIntegrator(0.0005) if integrator is None else integrator,
        openmm.Platform.getPlatformByName(platform),
    )
    made.setPositions(positions / 10)
    return made


def energy_and_forces(context: openmm.Context) -> tuple[float, np.ndarray]:
    """kJ/mol and kJ/mol/nm."""
    state = context.getState(getEnergy=True, getForces=True)
    return (
        state.getPotentialEnergy().value_in_unit(KJ),
        state.getForces(asNumpy=True).value_in_unit(KJ / unit.nanometer),
    )
