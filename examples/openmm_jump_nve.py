"""Ethanol in vacuum at constant energy in jumps of 8 fs: an OpenMM script without a force.

Here each jump is made of sixteen force-based steps, which is exact but gains nothing; a learned
propagator takes its place without another change.
"""

import sys
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit

from mlmd_calc import Potential
from mlmd_calc.propagation import VerletPropagator
from openmm_bridge import JumpNVEIntegrator, create_force

jumps = int(sys.argv[1]) if len(sys.argv) > 1 else 250

pdb = app.PDBFile(str(Path(__file__).parent / "ethanol.pdb"))
system = openmm.System()
for atom in pdb.topology.atoms():
    system.addParticle(atom.element.mass)
system.addForce(create_force(pdb.topology))  # for the energies shown, and if a jump is rejected

propagator = VerletPropagator(Potential(), timestep_fs=0.5)
integrator = JumpNVEIntegrator(
    propagator, pdb.topology, 8 * unit.femtosecond, rng=np.random.default_rng(1)
)
platform = openmm.Platform.getPlatformByName("Reference")  # no overhead for so few particles
simulation = app.Simulation(pdb.topology, system, integrator, platform)
simulation.context.setPositions(pdb.positions)
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
simulation.reporters.append(
    app.StateDataReporter(
        sys.stdout, max(1, jumps // 10), time=True, totalEnergy=True, temperature=True, speed=True
    )
)
simulation.step(jumps)
integrator.saveRestart("openmm_jump_nve.npz")
print(f"{len(integrator.events)} interventions {dict(integrator.events.counts())}")
