"""Exact trajectories of molecules whose every pair of atoms is tied by a spring."""

from collections.abc import Sequence

import ase.data
import numpy as np

from mlmd_calc import units
from mlmd_calc.data import MoleculeFrames
from mlmd_calc.models.analytic import Harmonic
from mlmd_calc.propagation.harmonic import HarmonicPropagator

SPRING = 8.0
"""eV/Å²."""


def springs(count: int) -> Harmonic:
    """Equal springs of zero rest length between all pairs: nothing prefers an orientation."""
    return Harmonic.springs(SPRING * (np.ones((count, count)) - np.eye(count)))


def exact_propagator(count: int) -> HarmonicPropagator:
    return HarmonicPropagator(springs(count))


def harmonic_trajectory(
    name: str,
    numbers: Sequence[int],
    *,
    frames: int = 40,
    segments: int = 2,
    dt_fs: float = 2.0,
    seed: int = 0,
) -> MoleculeFrames:
    """Segments of exact motion from random states, each with its own drift and far from 0."""
    rng = np.random.default_rng(seed)
    potential = springs(len(numbers))
    masses = ase.data.atomic_masses[list(numbers)]
    times = dt_fs * np.arange(frames)
    positions, velocities = [], []
    for _ in range(segments):
        speed = np.sqrt(units.KB * 300.0 / masses)[:, None] * units.FS
        x = 0.7 * rng.normal(size=(len(numbers), 3))
        v = speed * rng.normal(size=(len(numbers), 3))
        moved, speeds = potential.evolve(x, v, masses, times)
        positions.append(moved + 5.0 * rng.normal(size=3))
        velocities.append(speeds)
    return MoleculeFrames(
        name=name,
        numbers=np.array(numbers),
        positions=np.concatenate(positions),
        velocities=np.concatenate(velocities),
        energies=np.zeros(frames * segments),
        dt_fs=dt_fs,
        segment=np.repeat(np.arange(segments), frames),
    )
