"""Molecules on springs, and propagators that misbehave, for tests of jumps."""

from dataclasses import replace

import numpy as np
import torch
from ase.data import atomic_masses

from mlmd_calc.errors import PredictionError
from mlmd_calc.models.analytic import Harmonic
from mlmd_calc.propagation import FunctionForces, State
from mlmd_calc.propagation.harmonic import HarmonicPropagator
from mlmd_calc.propagation.thermostats import draw_velocities


def make_state(numbers, positions, *, temperature_K=300.0, seed=0):
    """A state with Maxwell-Boltzmann velocities."""
    numbers = np.array(numbers)
    state = State(positions, np.zeros((len(numbers), 3)), numbers, atomic_masses[numbers])
    velocities = draw_velocities(state, temperature_K, np.random.default_rng(seed))
    return State(positions, velocities, numbers, state.masses)


def springs(n=5):
    """Free molecule on springs of zero rest length, the same from all sides."""
    constants = np.random.default_rng(7).uniform(1.0, 5.0, size=(n, n))
    return Harmonic.springs(constants + constants.T)


def springs_state(n=5, seed=0):
    """A state of `springs`, moving and turning."""
    rng = np.random.default_rng(seed)
    numbers = rng.choice([1, 6, 7, 8], size=n)
    return make_state(numbers, 0.05 * rng.normal(size=(n, 3)) + [3.0, -1.0, 2.0], seed=seed)


def tethered(seed=0):
    """Four atoms, far enough apart to pass every check, each on a spring of its own."""
    anchors = 3.0 * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1.0]])
    harmonic = Harmonic.tethers(5.0, anchors)
    return harmonic, make_state([6, 6, 8, 1], anchors, seed=seed)


def forces_of(harmonic):
    """The potential as force model."""
    return FunctionForces(harmonic.energy_and_forces)


class Noisy(HarmonicPropagator):
    """Exact motion with random kicks, which counts its calls in its memory."""

    stochastic = True

    def propagate(self, states, times_fs, generator):
        answers = []
        for state, frames in zip(
            states, super().propagate(states, times_fs, generator), strict=True
        ):
            kicks = 1e-4 * torch.randn(frames.velocities.shape, generator=generator).double()
            calls = state.memory.get("calls", np.zeros(1, dtype=int)) + 1
            velocities = frames.velocities + kicks.numpy()
            answers.append(replace(frames, velocities=velocities, memory={"calls": calls}))
        return answers


class Spoilt(HarmonicPropagator):
    """Exact motion, spoilt in some calls.

    Parameters
    ----------
    harmonic
        The potential.
    spoil
        From an answer and its state to another answer.
    when
        From the number of the call, from 0, and the stride to whether it is spoilt.
    """

    def __init__(self, harmonic, spoil, when=lambda call, stride: True, *, stochastic=True):
        super().__init__(harmonic)
        self.spoil, self.when, self.calls = spoil, when, 0
        self.stochastic = stochastic

    def propagate(self, states, times_fs, generator):
        answers = super().propagate(states, times_fs, generator)
        if self.when(self.calls, times_fs[-1]):
            answers = [self.spoil(a, s) for a, s in zip(answers, states, strict=True)]
        self.calls += 1
        return answers


def nan(frames, state):
    """An answer that is not a number in one place."""
    positions = frames.positions.copy()
    positions[-1, 0, 0] = np.nan
    return replace(frames, positions=positions)


def explode(frames, state):
    """An answer whose atoms fly apart."""
    return replace(frames, positions=10.0 * frames.positions)


def give_up(frames, state):
    """No answer."""
    raise PredictionError("no idea")
