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


WATER_SHAPE = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])


def water_energy_and_forces(positions):
    """Energy and forces of springs of 30 eV/Å² between all atoms of water."""
    i, j = np.triu_indices(3, 1)
    arms = positions[i] - positions[j]
    lengths = np.linalg.norm(arms, axis=1)
    stretch = lengths - np.linalg.norm(WATER_SHAPE[i] - WATER_SHAPE[j], axis=1)
    pull = 30.0 * (stretch / lengths)[:, None] * arms
    forces = np.zeros((3, 3))
    np.add.at(forces, i, -pull)
    np.add.at(forces, j, pull)
    return 15.0 * float(stretch @ stretch), forces
