"""Measure how much the forces depend on how the molecule lies in space.

MD-ET does not know that physics looks the same from every side; it has learned it, not perfectly.
Averaging over orientations makes the error small, and its spread measures it.
"""

from ase.build import molecule

from mlmd_calc import MDETCalculator

atoms = molecule("CH3CH2OH")
for n_rotations in (2, 4, 12, 24):
    atoms.calc = MDETCalculator(forces="direct", rotation="average", n_rotations=n_rotations)
    spread = 1000 * atoms.calc.get_property("forces_std", atoms).mean()
    print(f"{n_rotations:3d} orientations: {spread:6.1f} meV/Å standard deviation per component")
