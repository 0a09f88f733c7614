"""Structures of one molecule with accurate forces, from short Langevin runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final

import ase
import numpy as np
from ase.md.langevin import Langevin
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.propagation.corrections import thermal_speed

Frame = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Positions in Å and forces in eV/Å, both ``(n, 3)``."""

_FRICTION_PER_FS: Final = 0.02

_STEP_FS: Final = 4.0
_INNER_STEPS: Final = 8
_STEPS: Final = 3
"""Of a stride: length of a step, inner steps in it, and steps between structures."""


def walk(atoms: ase.Atoms, temperature_K: float, rng: np.random.Generator) -> Iterator[Frame]:
    """Yield structures 5 fs apart, in time steps of 1 fs by the atoms' own calculator.

    Parameters
    ----------
    atoms
        With a calculator; they are moved.
    temperature_K
        Temperature in K, also of the velocities at the start.
    rng
        Source of randomness.
    """
    spread = thermal_speed(atoms.get_masses(), temperature_K)[:, None]
    atoms.set_velocities(spread * rng.standard_normal(atoms.positions.shape) / units.FS)
    run = Langevin(
        atoms,
        1.0 * units.FS,
        temperature_K=temperature_K,
        friction=_FRICTION_PER_FS / units.FS,
        fixcm=False,
        rng=rng,
    )
    while True:
        run.run(5)
        yield atoms.get_positions(), atoms.get_forces()


def stride(
    atoms: ase.Atoms,
    cheap: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    temperature_K: float,
    rng: np.random.Generator,
) -> Iterator[Frame]:
    """Yield structures 12 fs apart, in steps of 4 fs by cheap forces with corrections.

    Multiple time stepping, as in :mod:`mlmd_calc.md.mts`: a third as many accurate forces for each
    structure as :func:`walk` needs, for structures that are further apart.

    Parameters
    ----------
    atoms, temperature_K, rng
        As for :func:`walk`, but with the momenta of the atoms at the start.
    cheap
        Forces in eV/Å at positions in Å.
    """
    masses = atoms.get_masses()[:, None]
    time = _STEP_FS * units.FS
    inner = time / _INNER_STEPS
    kept = math.exp(-_FRICTION_PER_FS * _STEP_FS / _INNER_STEPS)
    noise = np.sqrt((1.0 - kept * kept) * units.KB * temperature_K * masses)
    positions, momenta = atoms.get_positions(), atoms.get_momenta()
    accurate, fast = atoms.get_forces(), cheap(positions)
    while True:
        for _ in range(_STEPS):
            momenta = momenta + 0.5 * time * (accurate - fast)
            for _ in range(_INNER_STEPS):
                momenta = momenta + 0.5 * inner * fast
                positions = positions + 0.5 * inner * momenta / masses
                momenta = kept * momenta + noise * rng.standard_normal(momenta.shape)
                positions = positions + 0.5 * inner * momenta / masses
                fast = cheap(positions)
                momenta = momenta + 0.5 * inner * fast
            atoms.set_positions(positions)
            accurate = atoms.get_forces()
            momenta = momenta + 0.5 * time * (accurate - fast)
        yield positions, accurate
