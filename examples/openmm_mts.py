"""Multiple time stepping of ethanol in OpenMM: direct forces often, conservative forces seldom."""

import sys
from pathlib import Path

import openmm
from openmm import app, unit

from openmm_bridge import create_force

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 500
inner_steps = 4

pdb = app.PDBFile(str(Path(__file__).parent / "ethanol.pdb"))
system = openmm.System()
for atom in pdb.topology.atoms():
    system.addParticle(atom.element.mass)

# Group 1, in every inner step: the force head of the model, in single precision.
cheap = {"forces": "direct", "dtype": "float32"}
system.addForce(create_force(pdb.topology, forceGroup=1, **cheap))

# Group 0, once in a step: what is missing to the gradient of the energy.
correction = openmm.CustomCVForce("accurate - cheap")
correction.addCollectiveVariable("accurate", create_force(pdb.topology, forces="conservative"))
correction.addCollectiveVariable("cheap", create_force(pdb.topology, **cheap))
system.addForce(correction)

integrator = openmm.MTSLangevinIntegrator(
    300 * unit.kelvin,
    1 / unit.picosecond,
    inner_steps * 0.5 * unit.femtosecond,
    [(0, 1), (1, inner_steps)],
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
        totalEnergy=True,
        speed=True,
    )
)
simulation.step(steps)
