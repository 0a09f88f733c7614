"""Where runs start: states that cover what a molecule can meet, not equilibrium alone.

A propagator goes on from its own answers, with thermostats and walls between them, so that the
temperatures of positions and velocities need not agree. Here they are drawn independently.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.data.parallel_runs import ParallelRuns

HOTTEST_K: Final = 1000.0
"""Bound of the temperatures of velocities."""

_HOTTEST_POSITIONS: Final = 0.9
_HOTTEST_ATOM: Final = 3.0
"""Temperatures of positions and of hot atoms, in units of that bound."""

_MINIMA: Final = 0.1
_DISPLACED: Final = 0.2
_AT_REST: Final = 0.1
_HOT_ATOM: Final = 0.1
"""Shares of the runs."""

_LARGEST_DISPLACEMENT: Final = 0.05
"""Å, standard deviation per coordinate at 1000 K; of bonds that is the motion of about 900 K."""

THERMALISE_FS: Final = 100.0
_TIMESTEP_FS: Final = 1.0
_FRICTION_PER_FS: Final = 0.05
"""Strong enough that positions take the temperature of the bath within the time above."""

THERMALISE_STEPS: Final = round(THERMALISE_FS / _TIMESTEP_FS)


@dataclass(frozen=True)
class StartStates:
    """How each of ``r`` runs starts.

    Attributes
    ----------
    position_K
        ``(r,)`` K of the Langevin dynamics that makes the positions; 0 is the minimum itself.
    displacement_A
        ``(r,)`` Å, standard deviation of Gaussian noise on each coordinate after that; mostly 0.
    velocity_K
        ``(r,)`` K of the velocities; 0 is rest.
    hot_atom
        ``(r,)`` index of an atom whose velocity is that of `hot_atom_K`, or -1.
    hot_atom_K
        K of the velocities of hot atoms.
    """

    position_K: NDArray[np.float64]  # noqa: N815
    displacement_A: NDArray[np.float64]  # noqa: N815
    velocity_K: NDArray[np.float64]  # noqa: N815
    hot_atom: NDArray[np.int64]
    hot_atom_K: float  # noqa: N815

    @classmethod
    def draw(
        cls, runs: int, atoms: int, rng: np.random.Generator, hottest_K: float = HOTTEST_K
    ) -> StartStates:
        """Draw starts.

        Positions are at 0 to 900 K, a tenth of them minima, and a fifth is displaced. Velocities
        are at 0 to 1000 K, a tenth of them at rest, and another tenth has a hot atom, at 3000 K.

        Parameters
        ----------
        runs
            How many.
        atoms
            Number of atoms of the molecule.
        rng
            Source of randomness.
        hottest_K
            Takes the place of 1000 K; the other temperatures, and displacements, scale with it.
        """

        def share(*fractions: float) -> list[NDArray[np.int64]]:
            """Draw runs for each kind, as many as its fraction says, none for two kinds."""
            ends = np.cumsum([round(fraction * runs) for fraction in fractions])
            return np.split(rng.permutation(runs), ends)[:-1]

        position_K = rng.uniform(0.0, _HOTTEST_POSITIONS * hottest_K, runs)
        velocity_K = rng.uniform(0.0, hottest_K, runs)
        displacement_A = np.zeros(runs)
        hot_atom = np.full(runs, -1, dtype=np.int64)
        (minima,) = share(_MINIMA)
        (displaced,) = share(_DISPLACED)
        at_rest, with_hot_atom = share(_AT_REST, _HOT_ATOM)
        # Minima at rest would not move at all.
        displaced = np.union1d(displaced, np.intersect1d(minima, at_rest))
        position_K[minima] = 0.0
        velocity_K[at_rest] = 0.0
        largest = _LARGEST_DISPLACEMENT * math.sqrt(hottest_K / HOTTEST_K)
        displacement_A[displaced] = rng.uniform(0.0, largest, len(displaced))
        hot_atom[with_hot_atom] = rng.integers(atoms, size=len(with_hot_atom))
        return cls(position_K, displacement_A, velocity_K, hot_atom, _HOTTEST_ATOM * hottest_K)

    def without_heating(self) -> StartStates:
        """Return the starts of structures that are spread already, which need no heating."""
        return replace(self, position_K=np.zeros_like(self.position_K))

    def prepare(
        self,
        runs: ParallelRuns,
        rng: np.random.Generator,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        """Bring runs at rest to their starts, :data:`THERMALISE_STEPS` steps.

        Afterwards their forces are known, their centres of mass at rest at the origin, and those
        that cannot be started have ended.
        """
        runs.evaluate()
        runs.velocities += runs.thermal(self.position_K, rng)
        for _ in range(THERMALISE_STEPS):
            runs.thermalise(self.position_K, _FRICTION_PER_FS, _TIMESTEP_FS, rng)
            on_step()
        noise = rng.standard_normal(runs.positions.shape)
        runs.positions += self.displacement_A[:, None, None] * noise
        velocities = runs.thermal(self.velocity_K, rng)
        hot = np.flatnonzero(self.hot_atom >= 0)
        atoms = self.hot_atom[hot]
        velocities[hot, atoms] = runs.thermal(np.full(len(runs), self.hot_atom_K), rng)[hot, atoms]
        runs.velocities[:] = velocities
        runs.centre()
        runs.end_broken()
        runs.evaluate()
