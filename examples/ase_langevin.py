"""Langevin dynamics of ethanol: an ordinary ASE script with one line changed."""

import sys

import numpy as np
from ase import units
from ase.build import molecule
from ase.md.langevin import Langevin

from mlmd_calc import MDETCalculator

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
rng = np.random.default_rng(1)

atoms = molecule("CH3CH2OH")
atoms.calc = MDETCalculator()  # this line is new

# The molecule starts at rest, and the thermostat warms it up within some picoseconds.
dyn = Langevin(
    atoms, 0.5 * units.fs, temperature_K=300, friction=0.001 / units.fs, fixcm=False, rng=rng
)
dyn.attach(
    lambda: print(
        f"{dyn.get_time() / units.fs:8.1f} fs  {atoms.get_temperature():6.1f} K  "
        f"{atoms.get_potential_energy():10.3f} eV"
    ),
    interval=max(1, steps // 10),
)
dyn.run(steps)
