"""Export a model for one molecule, and run the file with OpenMM as a program without Python could.

`mlmd export examples/ethanol.pdb --openmm ethanol.pt` writes the same file.
"""

import sys
import tempfile
from pathlib import Path

import openmm
from openmm import app, unit

from mlmd_calc import Potential
from openmm_bridge import export_module
from openmm_bridge.backends import openmmtorch_module
from openmm_bridge.region import region_from_topology

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2000

pdb = app.PDBFile(str(Path(__file__).parent / "ethanol.pdb"))
system = openmm.System()
for atom in pdb.topology.atoms():
    system.addParticle(atom.element.mass)

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "ethanol.pt"
    export_module(Potential(), region_from_topology(pdb.topology), path)
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
    force = openmmtorch_module().TorchForce(str(path))
force.setOutputsForces(True)  # the file returns energy and forces
system.addForce(force)

integrator = openmm.LangevinMiddleIntegrator(
    300 * unit.kelvin, 1 / unit.picosecond, 0.5 * unit.femtosecond
)
simulation = app.Simulation(
    pdb.topology, system, integrator, openmm.Platform.getPlatformByName("Reference")
)
simulation.context.setPositions(pdb.positions)
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
simulation.reporters.append(
    app.StateDataReporter(
        sys.stdout, max(1, steps // 10), time=True, temperature=True, potentialEnergy=True
    )
)
simulation.step(steps)
