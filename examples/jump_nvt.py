"""Constant-temperature dynamics in jumps of 8 fs by a learned propagator, watched by a guard.

A jump takes one force call, where time steps of half a femtosecond take sixteen: the energy at its
end judges it, and the forces there start the next one. The friction is the one that the propagator
recommends, 10/ps: it keeps the small errors of the jumps from adding up.
"""

import sys

import numpy as np
from ase import units
from ase.build import molecule

from mlmd_calc import MDETCalculator
from mlmd_calc.md import JumpNVT, draw_momenta
from mlmd_calc.propagation import Guard

jumps = int(sys.argv[1]) if len(sys.argv) > 1 else 250

random = np.random.default_rng(1)
atoms = molecule("CH3CH2OH")
atoms.calc = MDETCalculator()  # what the propagator was trained with
# Propagators know molecules in motion; one at rest would first be warmed up by force-based steps.
draw_momenta(atoms, 300, random)
dyn = JumpNVT(
    atoms,
    timestep=8 * units.fs,
    propagator="atom-small-organics",
    temperature_K=300,
    guard=Guard(redraws=2, last="stop"),
    logfile="-",
    loginterval=max(1, jumps // 10),
    rng=random,
)
dyn.run(jumps)
print(f"{len(dyn.events)} interventions {dict(dyn.events.counts())}", dyn.stopped or "")
