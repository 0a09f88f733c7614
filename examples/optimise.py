"""Optimise a molecule and compute its vibrations, as with any calculator of ASE.

    python optimise.py [NAME]

NAME is one of ASE's g2 collection, by default CH3CH2OH. Vibrations come from the Hessian of the
model, by automatic differentiation, instead of from finite differences.
"""

import sys

import numpy as np
from ase.build import molecule
from ase.optimize import BFGS
from ase.vibrations import VibrationsData

from mlmd_calc import MDETCalculator

atoms = molecule(sys.argv[1] if len(sys.argv) > 1 else "CH3CH2OH")
atoms.calc = MDETCalculator()
optimiser = BFGS(atoms, logfile=None)
converged = optimiser.run(fmax=0.002, steps=200)
print(f"{'converged' if converged else 'not converged'} after {optimiser.nsteps} steps")

hessian = atoms.calc.get_hessian(atoms)
vibrations = VibrationsData.from_2d(atoms, hessian)
print(f"zero-point energy {vibrations.get_zero_point_energy():.3f} eV")
print("frequencies, 1/cm:", *np.round(vibrations.get_frequencies().real[6:]).astype(int))
