"""Springs along the bonds of a molecule, as the forces that a force field is fitted to."""

import numpy as np

from mlmd_calc.geometry.bonds import find_bonds


def springs(atoms, positions):
    """Forces of harmonic bonds, each of another stiffness, at ``(f, n, 3)`` positions."""
    bonds = find_bonds(atoms)
    i, j = bonds.pairs.T
    forces = np.zeros_like(positions)
    stiffness = 20.0 + np.arange(len(bonds))
    for frame, force in zip(positions, forces, strict=True):
        along = frame[j] - frame[i]
        length = np.linalg.norm(along, axis=1)
        pull = (stiffness * (length - bonds.lengths) / length)[:, None] * along
        np.add.at(force, i, pull)
        np.add.at(force, j, -pull)
    return forces
