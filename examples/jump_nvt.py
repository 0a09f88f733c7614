"""Constant-temperature dynamics in jumps of 8 fs by a learned propagator, watched by a guard.

The propagator asks for forces once per jump, where time steps of half a femtosecond ask sixteen
times. The calculator is asked only if a jump fails. Strong friction keeps the small errors of the
jumps from adding up.
"""

import sys

import numpy as np
from ase import units
from ase.build import molecule

from mlmd_calc import MDETCalculator, load_propagator
from mlmd_calc.md import JumpNVT
from mlmd_calc.propagation import Guard

jumps = int(sys.argv[1]) if len(sys.argv) > 1 else 250

atoms = molecule("CH3CH2OH")
atoms.calc = MDETCalculator()
dyn = JumpNVT(
    atoms,
    timestep=8 * units.fs,
    propagator=load_propagator("atom-small-organics"),
    temperature_K=300,
    friction=0.02 / units.fs,
    guard=Guard(redraws=2, last="stop"),
    logfile="-",
    loginterval=max(1, jumps // 10),
    rng=np.random.default_rng(1),
)
dyn.run(jumps)
print(f"{len(dyn.events)} interventions {dict(dyn.events.counts())}", dyn.stopped or "")
