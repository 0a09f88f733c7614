"""Constant-temperature dynamics in jumps of 8 fs by a learned propagator, watched by a guard.

The propagator asks for forces once per jump, where time steps of half a femtosecond ask sixteen
times. The calculator is asked for the energy after each jump, and for forces if a jump fails. The
friction is the one that the propagator recommends, 20/ps: it keeps the small errors of the jumps
from adding up.
"""

import sys

import numpy as np
from ase import units
from ase.build import molecule

from mlmd_calc import MDETCalculator, load_propagator
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
    propagator=load_propagator("atom-small-organics"),
    temperature_K=300,
    guard=Guard(redraws=2, last="stop"),
    logfile="-",
    loginterval=max(1, jumps // 10),
    rng=random,
)
dyn.run(jumps)
print(f"{len(dyn.events)} interventions {dict(dyn.events.counts())}", dyn.stopped or "")
