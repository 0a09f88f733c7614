"""Langevin dynamics of ethanol in vacuum: an OpenMM script whose force is a learned model."""

import sys
from pathlib import Path

import openmm
from openmm import app, unit

from openmm_bridge import check_system, create_force

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2000

pdb = app.PDBFile(str(Path(__file__).parent / "ethanol.pdb"))
system = openmm.System()
for atom in pdb.topology.atoms():
    system.addParticle(atom.element.mass)

force = create_force(pdb.topology)
system.addForce(force)  # this line puts the model in
check_system(system, force)

integrator = openmm.LangevinMiddleIntegrator(
    300 * unit.kelvin, 1 / unit.picosecond, 0.5 * unit.femtosecond
)
platform = openmm.Platform.getPlatformByName("Reference")  # no overhead for so few particles
simulation = app.Simulation(pdb.topology, system, integrator, platform)
simulation.context.setPositions(pdb.positions)
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
simulation.reporters.append(
    app.StateDataReporter(
        sys.stdout,
        max(1, steps // 10),
        time=True,
        temperature=True,
        potentialEnergy=True,
        speed=True,
    )
)
simulation.step(steps)
