"""Alanine dipeptide in implicit solvent: jumps of an ATMOS model, relaxed by forces.

    python openmm_atmos_jump.py [JUMPS [MODEL]]

Each step is a jump, a minimisation, and 0.5 ps of Langevin dynamics with the forces of Amber14 and
OBC2; a jump that the guard rejects is drawn again, and in the end replaced by dynamics of the same
length. Prints how often each basin of (φ, ψ) was visited, and how often the basin changed. MODEL is
a name or a file; by default the first ATMOS model that is shipped.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit

from mlmd_calc import list_models
from mlmd_calc.analysis.stereochemistry import dihedrals
from mlmd_calc.data.biomolecules import build_system
from mlmd_calc.propagation import Guard
from mlmd_calc.propagation.atmos import ATMOSPropagator
from mlmd_calc.zoo import load_atmos
from openmm_bridge import JumpNVTIntegrator
from openmm_bridge.topology_features import structure_from_topology

jumps = int(sys.argv[1]) if len(sys.argv) > 1 else 100
shipped = [card.name for card in list_models() if card.kind == "atmos"]
name = sys.argv[2] if len(sys.argv) > 2 else next(iter(shipped), None)
if name is None:
    sys.exit(print("No ATMOS model is shipped yet; give the file of one as second argument."))
model = load_atmos(name)

pdb = app.PDBFile(str(Path(__file__).parent / "alanine_dipeptide.pdb"))
field = app.ForceField("amber14-all.xml", "implicit/obc2.xml")
system = field.createSystem(pdb.topology, constraints=None)
# The force field makes a CustomGBForce; OpenMM's own force for OBC2 is the same, but faster.
index = next(i for i, f in enumerate(system.getForces()) if isinstance(f, openmm.CustomGBForce))
custom, solvent = system.getForce(index), openmm.GBSAOBCForce()
for particle in range(system.getNumParticles()):
    charge, radius, scaled_radius = custom.getParticleParameters(particle)
    solvent.addParticle(charge, radius + 0.009, scaled_radius / radius)  # OBC's offset in nm
system.removeForce(index)
system.addForce(solvent)

molecule = build_system(structure_from_topology(pdb.topology, pdb.positions))
propagator = ATMOSPropagator(model, molecule)
temperature = (model.card.temperature_K or 300.0) * unit.kelvin
integrator = JumpNVTIntegrator(
    propagator,
    pdb.topology,
    temperature,
    5 / unit.picosecond,
    propagator.strides.longest * unit.femtosecond,
    guard=Guard(redraws=5),
    rng=np.random.default_rng(1),
)
platform = openmm.Platform.getPlatformByName("Reference")  # no overhead for so few particles
langevin = openmm.LangevinMiddleIntegrator(temperature, 5 / unit.picosecond, 0.0005)
equilibration = app.Simulation(pdb.topology, system, langevin, platform)
equilibration.context.setPositions(pdb.positions)
equilibration.minimizeEnergy()
equilibration.step(4000)

simulation = app.Simulation(pdb.topology, system, integrator, platform)
simulation.context.setPositions(equilibration.context.getState(positions=True).getPositions())
simulation.context.setVelocitiesToTemperature(temperature, 1)

basins = []
for _ in range(jumps):
    simulation.step(1)
    state = simulation.context.getState(positions=True)
    positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    heavy = molecule.select(positions)[None]
    phi, psi = np.degrees(dihedrals(heavy, molecule.phi_psi)[0, 0])
    helical = -120.0 <= psi < 60.0
    basins.append("left-handed" if phi > 0.0 else "helical" if helical else "extended")

print(f"{state.getTime().value_in_unit(unit.picosecond):g} ps in {jumps} jumps with {name}")
for basin in ("extended", "helical", "left-handed"):
    print(f"{basin:<12}{100.0 * basins.count(basin) / jumps:5.1f} %")
changes = sum(a != b for a, b in itertools.pairwise(basins))
print(f"{changes} changes of basin; interventions: {dict(integrator.events.counts())}")
