"""An ordinary OpenMM script, to be begun in one process and continued in another.

    python openmm_restart_child.py MODEL FOLDER ACTION PLATFORM BACKEND ROTATION

ACTION is "begin", or how to continue: "checkpoint", "state", "xml" (System and state).
"""

import sys
from pathlib import Path

import numpy as np
import openmm
from ase.build import molecule
from openmm import app
from openmm_systems import system_of, topology_of

model, folder = sys.argv[1], Path(sys.argv[2])
action, platform, backend, rotation = sys.argv[3:]
atoms = molecule("CH3OH")
topology = topology_of(atoms)

if action == "xml":
    if backend == "torchscript":
        from openmm_bridge.backends import openmmtorch_module

        openmmtorch_module()
    # Nothing of this package has been imported for the others.
    system = openmm.XmlSerializer.deserialize((folder / "system.xml").read_text())
else:
    from openmm_bridge import create_force

    options = {"rotation": rotation, "seed": 3, "device": "cpu", "backend": backend}
    system = system_of(atoms, create_force(topology, model, **options))

simulation = app.Simulation(
    topology,
    system,
    openmm.VerletIntegrator(0.0005),
    openmm.Platform.getPlatformByName(platform),
)
if action == "begin":
    simulation.context.setPositions(atoms.positions / 10)
    simulation.step(3)
    if rotation == "random":
        from openmm_bridge import store_orientations

        assert store_orientations(simulation.context) == {"mdet_calls_0": 3}
    simulation.saveCheckpoint(str(folder / "checkpoint"))
    simulation.saveState(str(folder / "state"))
    (folder / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
elif action == "checkpoint":
    simulation.loadCheckpoint(str(folder / "checkpoint"))
else:
    simulation.loadState(str(folder / "state"))
if action != "begin" and rotation == "random":
    from openmm_bridge import restore_orientations

    restore_orientations(simulation.context)
simulation.step(3)
state = simulation.context.getState(getPositions=True, getVelocities=True)
np.save(
    folder / f"{action}.npy",
    [state.getPositions(asNumpy=True)._value, state.getVelocities(asNumpy=True)._value],
)

from openmm_bridge import check_system  # noqa: E402

check_system(system)
check_system(system, system.getForce(0))
