"""Jumps and force-based steps in turn: 8 fs by a learned propagator, then four steps of 0.5 fs.

    python hybrid_loop.py [STEPS]

The steps between the jumps damp what a jump leaves of strain, at the price of four more force
calls. Prints the mean temperature and what the guard did.
"""

import sys

import numpy as np
from ase import units
from ase.build import molecule

from mlmd_calc import MDETCalculator, load_propagator
from mlmd_calc.md import JumpNVT, draw_momenta
from mlmd_calc.propagation import Guard

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200

random = np.random.default_rng(1)
atoms = molecule("CH3CH2OH")
atoms.calc = MDETCalculator()  # what the propagator was trained with
draw_momenta(atoms, 300, random)
dyn = JumpNVT(
    atoms,
    timestep=8 * units.fs,
    propagator=load_propagator("atom-small-organics"),
    temperature_K=300,
    friction=0.01 / units.fs,
    md_steps_per_jump=4,
    md_timestep=0.5 * units.fs,
    guard=Guard(last="stop"),
    rng=random,
)
temperatures = []
dyn.attach(lambda: temperatures.append(atoms.get_temperature()))
dyn.run(steps)
print(f"{dyn.get_time() / units.fs:g} fs, mean temperature {np.mean(temperatures):.0f} K")
print(f"{len(dyn.events)} interventions {dict(dyn.events.counts())}", dyn.stopped or "")
