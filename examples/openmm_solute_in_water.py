"""Ethanol by a learned model in classical water: constant temperature, rigid water, periodic box.

    python openmm_solute_in_water.py [STEPS [BOX EDGE IN NM]]

Prints the mean temperature of both parts and how much the bonds of the ethanol changed. The water
comes out of the minimisation cold, so a third as many steps under strong friction precede the run.
"""

import sys
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit
from openmmml import MLPotential
from rich.progress import track

from mlmd_calc.analysis.statistics import block_average

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
edge = float(sys.argv[2]) if len(sys.argv) > 2 else 2.2
folder = Path(__file__).parent

pdb = app.PDBFile(str(folder / "ethanol.pdb"))
field = app.ForceField("tip3p.xml", str(folder / "ethanol_opls.xml"))
model = app.Modeller(pdb.topology, pdb.positions)
model.addSolvent(field, boxSize=openmm.Vec3(edge, edge, edge) * unit.nanometer)
classical = field.createSystem(
    model.topology,
    nonbondedMethod=app.PME,
    nonbondedCutoff=0.45 * edge * unit.nanometer,
    constraints=app.HBonds,
)
solute = list(range(pdb.topology.getNumAtoms()))
water = list(range(len(solute), model.topology.getNumAtoms()))

potential = MLPotential("mdet")  # the model of this package, found through its entry point
system = potential.createMixedSystem(model.topology, classical, solute)

integrator = openmm.LangevinMiddleIntegrator(
    300 * unit.kelvin, 1 / unit.picosecond, 0.5 * unit.femtosecond
)
integrator.setRandomNumberSeed(1)
platform = openmm.Platform.getPlatformByName("CPU")  # or "CUDA"
simulation = app.Simulation(model.topology, system, integrator, platform)
simulation.context.setPositions(model.positions)
simulation.minimizeEnergy(maxIterations=100)
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)

masses = [system.getParticleMass(i)._value for i in range(system.getNumParticles())]
bonds = np.array([(bond[0].index, bond[1].index) for bond in pdb.topology.bonds()])


def temperature(atoms: list[int], degrees_of_freedom: int, velocities: np.ndarray) -> float:
    """Temperature in K of some atoms, velocities in nm/ps."""
    twice_kinetic = sum(masses[i] * (velocities[i] ** 2).sum() for i in atoms)
    return twice_kinetic / (degrees_of_freedom * unit.MOLAR_GAS_CONSTANT_R._value * 1e-3)


def bond_lengths(positions: np.ndarray) -> np.ndarray:
    """Lengths in Å of the bonds of the ethanol, positions in nm."""
    return 10 * np.linalg.norm(positions[bonds[:, 0]] - positions[bonds[:, 1]], axis=1)


def observe() -> tuple[float, float, np.ndarray]:
    """Temperatures of ethanol and water, bond lengths."""
    state = simulation.context.getState(positions=True, velocities=True)
    velocities = state.getVelocities(asNumpy=True)._value
    return (
        temperature(solute, 3 * len(solute), velocities),
        temperature(water, 2 * len(water), velocities),  # a rigid molecule has six, not nine
        bond_lengths(state.getPositions(asNumpy=True)._value),
    )


reference = observe()[2]
integrator.setFriction(20 / unit.picosecond)
for _ in track(range(8), description="thermalise"):
    simulation.step(max(1, steps // 24))
integrator.setFriction(1 / unit.picosecond)
chunk = max(1, min(20, steps // 16))
seen = []
for _ in track(range(steps // chunk), description="dynamics"):
    simulation.step(chunk)
    seen.append(observe())
print(f"{steps * 0.5e-3:.2f} ps of ethanol in {len(water) // 3} water molecules")
for name, series in zip(("ethanol", "water"), list(zip(*seen, strict=True))[:2], strict=True):
    mean = block_average(np.array(series))
    print(f"temperature of {name}: {mean.value:.1f} ± {mean.standard_error:.1f} K")
lengths = np.array([row for _, _, row in seen])
print(f"largest change of a bond: {np.abs(lengths - reference).max():.3f} Å")
early, late = np.array_split(lengths, 2)
print(f"largest drift of a mean bond: {np.abs(late.mean(axis=0) - early.mean(axis=0)).max():.4f} Å")
