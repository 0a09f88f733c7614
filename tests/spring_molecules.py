"""Labelled frames of molecules whose every pair of atoms is tied by a spring: a cheap teacher."""

from collections.abc import Sequence

import numpy as np
from ase.data import covalent_radii
from scipy.spatial.distance import pdist, squareform

from mlmd_calc.data import MoleculeFrames

SPRING = 5.0
"""eV/Å²."""

ATOM_ENERGY = {1: -13.0, 6: -1030.0, 8: -2040.0}
"""eV; what the energies are relative to."""


def spring_frames(
    name: str, numbers: Sequence[int], count: int, *, seed: int = 0, scatter: float = 0.1
) -> MoleculeFrames:
    """Frames scattered (Å) around a random geometry in which all springs are at rest."""
    rng = np.random.default_rng(seed)
    rest = rng.normal(size=(len(numbers), 3))
    if len(numbers) > 1:
        # Neighbours as far apart as in molecules, or a reader would doubt that these are Å.
        radii = covalent_radii[list(numbers)]
        distances = squareform(pdist(rest)) + 100.0 * np.eye(len(numbers))
        rest /= np.median((distances / np.add.outer(radii, radii)).min(axis=1))
    positions = rest + scatter * rng.normal(size=(count, len(numbers), 3))
    # Far from the origin: nothing may depend on where a molecule is.
    positions += 10.0 * rng.normal(size=(count, 1, 3))
    vectors = positions[:, :, None] - positions[:, None]
    lengths = np.linalg.norm(vectors, axis=-1)
    stretch = lengths - np.linalg.norm(rest[:, None] - rest[None], axis=-1)
    pulls = SPRING * stretch / (lengths + np.eye(len(numbers)))
    return MoleculeFrames(
        name=name,
        numbers=np.array(numbers),
        positions=positions,
        forces=-(pulls[..., None] * vectors).sum(axis=2),
        # Every pair occurs twice.
        energies=0.25 * SPRING * (stretch**2).sum(axis=(1, 2))
        + sum(ATOM_ENERGY[z] for z in numbers),
        multiplicity=1 + sum(numbers) % 2,
    )
