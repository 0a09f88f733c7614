"""Constant-temperature dynamics in jumps of 8 fs, watched by a guard.

Here each jump is made of sixteen force-based steps, which is exact but gains nothing; a learned
propagator takes its place without another change. The calculator is asked only if a jump fails.
"""

import sys

import numpy as np
from ase import units
from ase.build import molecule

from mlmd_calc import MDETCalculator, Potential
from mlmd_calc.md import JumpNVT
from mlmd_calc.propagation import Guard, VerletPropagator

jumps = int(sys.argv[1]) if len(sys.argv) > 1 else 250

atoms = molecule("CH3CH2OH")
atoms.calc = MDETCalculator()
dyn = JumpNVT(
    atoms,
    timestep=8 * units.fs,
    propagator=VerletPropagator(Potential(), timestep_fs=0.5),
    temperature_K=300,
    friction=0.005 / units.fs,
    guard=Guard(redraws=2, last="stop"),
    logfile="-",
    loginterval=max(1, jumps // 10),
    rng=np.random.default_rng(1),
)
dyn.run(jumps)
print(f"{len(dyn.events)} interventions {dict(dyn.events.counts())}", dyn.stopped or "")
