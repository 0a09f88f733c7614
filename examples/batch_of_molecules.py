"""Energies and forces of many molecules of different sizes in one call, without an engine."""

import numpy as np
from ase.build import molecule

from mlmd_calc import Potential

names = ["H2O", "CH4", "CH3CH2OH", "C6H6"]
potential = Potential(dtype="float32")
for name, result in zip(names, potential.evaluate([molecule(name) for name in names]), strict=True):
    largest = np.linalg.norm(result.forces, axis=1).max()
    print(f"{name:10s} {result.energy:12.3f} eV   largest force {largest:.3f} eV/Å")
