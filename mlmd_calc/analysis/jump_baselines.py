"""Predictions of later states that need no learning, as propagators to compare with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import torch

from mlmd_calc.analysis.jumps import JumpErrors, jumps_of, measure_jumps
from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.errors import InputError
from mlmd_calc.geometry.superposition import superpose
from mlmd_calc.propagation import Frames, Propagator, State

MODEL: Final = "model"
ALL: Final = "all"


class Persistence(Propagator):
    """Nothing changes."""

    def propagate(
        self, states: Sequence[State], times_fs: Sequence[float], generator: torch.Generator
    ) -> list[Frames]:
        """Repeat the states; see :meth:`Propagator.propagate`."""
        count = len(times_fs)
        return [
            Frames(
                times=np.array(times_fs, dtype=np.float64),
                positions=np.repeat(state.positions[None], count, axis=0),
                velocities=np.repeat(state.velocities[None], count, axis=0),
            )
            for state in states
        ]


class Ballistic(Propagator):
    """Every atom keeps its velocity."""

    def propagate(
        self, states: Sequence[State], times_fs: Sequence[float], generator: torch.Generator
    ) -> list[Frames]:
        """Move atoms freely; see :meth:`Propagator.propagate`."""
        times = np.array(times_fs, dtype=np.float64)
        return [
            Frames(
                times=times,
                positions=state.positions + times[:, None, None] * state.velocities,
                velocities=np.repeat(state.velocities[None], len(times), axis=0),
            )
            for state in states
        ]


class MeanStructure(Propagator):
    """The mean structure of a molecule at rest, placed and turned like the state.

    Parameters
    ----------
    molecule
        Frames to average, each superposed on the first with the least square deviation.
    """

    def __init__(self, molecule: MoleculeFrames) -> None:
        positions = molecule.positions.astype(np.float64)
        self.name = molecule.name
        self.numbers = molecule.numbers
        self.mean = superpose(positions, positions[0]).mean(axis=0)

    def propagate(
        self, states: Sequence[State], times_fs: Sequence[float], generator: torch.Generator
    ) -> list[Frames]:
        """Repeat the mean structure; see :meth:`Propagator.propagate`.

        Raises
        ------
        InputError
            If a state is of another molecule.
        """
        frames = []
        for state in states:
            if not np.array_equal(state.numbers, self.numbers):
                raise InputError(f"the state is not one of the molecule {self.name!r}")
            (x,) = superpose(self.mean[None], state.positions)
            frames.append(
                Frames(
                    times=np.array(times_fs, dtype=np.float64),
                    positions=np.repeat(x[None], len(times_fs), axis=0),
                    velocities=np.zeros((len(times_fs), *x.shape)),
                )
            )
        return frames


def compare_with_baselines(
    propagator: Propagator,
    molecules: Iterable[MoleculeFrames],
    times_fs: Sequence[float],
    *,
    most: int | None,
    verlet: Propagator | None = None,
    seed: int = 0,
) -> dict[str, dict[str, JumpErrors]]:
    """Measure a propagator and its baselines on the same jumps.

    Parameters
    ----------
    propagator
        What to measure.
    molecules
        Trajectories. The mean structure is that of the same frames, which flatters it.
    times_fs
        Times in fs.
    most
        At most this many jumps of each molecule, evenly spread.
    verlet
        Force-based steps as one more baseline.
    seed
        Seed of random numbers.

    Returns
    -------
    dict
        Name of each molecule, and at the end `ALL`, to errors by name: `MODEL`, "persistence",
        "ballistic", "mean structure" and, if given, "velocity Verlet".
    """
    errors: dict[str, dict[str, JumpErrors]] = {}
    for molecule in molecules:
        jumps = jumps_of(molecule, times_fs, most)
        candidates: dict[str, Propagator] = {
            MODEL: propagator,
            "persistence": Persistence(),
            "ballistic": Ballistic(),
            "mean structure": MeanStructure(molecule),
        }
        if verlet is not None:
            candidates["velocity Verlet"] = verlet
        for name, candidate in candidates.items():
            found = measure_jumps(candidate, jumps, times_fs, seed=seed)
            # Several files may hold trajectories of one molecule.
            for key in (molecule.name, ALL):
                row = errors.setdefault(key, {})
                row[name] = row[name] + found if name in row else found
    return errors | {ALL: errors.pop(ALL)}
