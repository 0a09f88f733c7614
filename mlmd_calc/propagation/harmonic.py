"""The exact propagator of quadratic potentials."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mlmd_calc.errors import InputError
from mlmd_calc.models.analytic import Harmonic
from mlmd_calc.propagation.propagator import Propagator
from mlmd_calc.propagation.state import Frames, State
from mlmd_calc.wording import counted


class HarmonicPropagator(Propagator):
    """Exact motion in a quadratic potential, over any time.

    Parameters
    ----------
    harmonic
        The potential. If it is not blind to translation and rotation, switch off the corrections
        that rely on that.
    """

    conserves_energy = True

    def __init__(self, harmonic: Harmonic) -> None:
        self.harmonic = harmonic

    def propagate(
        self, states: Sequence[State], times_fs: Sequence[float], generator: torch.Generator
    ) -> list[Frames]:
        """Follow the motion of each state; see :meth:`Propagator.propagate`.

        Raises
        ------
        InputError
            If a state has another number of atoms than the potential.
        """
        n = len(self.harmonic.equilibrium)
        frames = []
        for state in states:
            if len(state) != n:
                raise InputError(
                    f"the state has {counted(len(state), 'atom')}, but the potential has {n}"
                )
            x, v = self.harmonic.evolve(state.positions, state.velocities, state.masses, times_fs)
            frames.append(Frames(np.array(times_fs, dtype=np.float64), x, v))
        return frames
