"""One jump as a map of phase space: whether it is reversible and keeps volume and energy.

Hamiltonian motion returns when velocities are turned round, preserves volume in phase space and
conserves energy. A learned jump does all three only as well as it was trained; what it lacks heats
or damps a run, and a Metropolis test would see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import block_diag, null_space

from mlmd_calc import units
from mlmd_calc.analysis.accuracy import spread_index
from mlmd_calc.errors import ConfigError
from mlmd_calc.propagation import ForceModel, Frames, Propagator, State
from mlmd_calc.propagation.bookkeeping import with_energies
from mlmd_calc.propagation.corrections import rigid_basis

_DISPLACEMENT_A: Final = 1e-3
"""Of central differences; velocities change by as much in the time of the jump."""

_DETERMINANTS: Final = 2
"""States whose determinant is taken; one needs 12 n jumps."""


@dataclass(frozen=True)
class MapErrors:
    """What one jump does that Hamiltonian motion does not.

    Attributes
    ----------
    reversibility_percent
        Distance from the start, in percent of the way, after a jump forwards and one back.
    log_determinant
        Mean of log |det J| over the states, J the derivative of the state after the jump.
    energy_change_meV, energy_spread_meV
        Mean and standard deviation of the change of the total energy per jump.
    acceptance_percent
        Mean of min(1, exp(-ΔE/kT)), what a Metropolis test would accept.
    equivalent_friction_per_ps
        Friction of a thermostat without noise that would take as much energy per time: negative
        where jumps heat.
    growth_per_ps
        Fastest growth of a small deviation from the minimum at rest, 0 for exact motion.
    """

    reversibility_percent: float
    log_determinant: float
    energy_change_meV: float  # noqa: N815
    energy_spread_meV: float  # noqa: N815
    acceptance_percent: float
    equivalent_friction_per_ps: float
    growth_per_ps: float


def measure_map(
    propagator: Propagator,
    forces: ForceModel,
    states: Sequence[State],
    stride_fs: float,
    temperature_K: float,
    *,
    minimum: State,
    seed: int = 0,
) -> MapErrors:
    """Measure one jump from each of some states.

    Parameters
    ----------
    propagator
        Propagator that gives velocities, best in double precision.
    forces
        Force model with energies.
    states
        States of one molecule as a run meets them, at least one.
    stride_fs
        Length of the jump in fs.
    temperature_K
        Temperature of the Metropolis test and of the friction.
    minimum
        State at rest at a minimum, to measure the growth of small deviations from it.
    seed
        Seed of a stochastic propagator.

    Raises
    ------
    ConfigError
        If the propagator gives no velocities.
    """
    jump = JumpMap(propagator, stride_fs, seed)
    states = with_energies(list(states), forces)
    after = with_energies(jump(states), forces)
    changes = energy_changes(states, after)
    energy = units.KB * temperature_K
    degrees = 3 * len(states[0])
    chosen = spread_index(len(states), _DETERMINANTS)
    logs = [jump.log_determinant(states[i]) for i in chosen]
    missed, way = return_ways(jump, states, after)
    return MapErrors(
        reversibility_percent=100.0 * float(np.sqrt(np.mean(missed**2) / np.mean(way**2))),
        log_determinant=float(np.mean(logs)),
        energy_change_meV=float(changes.mean()) / units.MEV,
        energy_spread_meV=float(changes.std()) / units.MEV,
        acceptance_percent=100.0 * float(acceptances(changes, temperature_K).mean()),
        equivalent_friction_per_ps=-float(changes.mean())
        / (degrees * energy * stride_fs / units.FS_PER_PS),
        growth_per_ps=_growth(jump, minimum),
    )


class JumpMap:
    """The map of phase space that a propagator makes of one stride.

    Parameters
    ----------
    propagator
        Propagator that gives velocities.
    stride_fs
        Length of the jump in fs.
    seed
        Seed of a stochastic propagator, whose random numbers are the same in every call.

    Raises
    ------
    ConfigError
        If the propagator gives no velocities, or cannot jump over this stride.
    """

    def __init__(self, propagator: Propagator, stride_fs: float, seed: int = 0) -> None:
        if not propagator.gives_velocities:
            raise ConfigError(
                f"{propagator.identity} predicts no velocities, so its jumps are no map of phase "
                "space; choose a propagator that predicts them"
            )
        propagator.strides.check(stride_fs)
        self.propagator = propagator
        self.stride_fs = stride_fs
        self.seed = seed

    def __call__(self, states: Sequence[State]) -> list[State]:
        """Return the states after a jump; every call draws the same random numbers."""
        generator = torch.Generator().manual_seed(self.seed)
        found = self.propagator.propagate(states, [self.stride_fs], generator)
        return [_moved(state, frames) for state, frames in zip(states, found, strict=True)]

    def derivative(self, state: State) -> NDArray[np.float64]:
        """Differentiate: ``(6 n, 6 n)`` of positions and velocities times the stride, in Å."""
        n = 3 * len(state)
        shifts = _DISPLACEMENT_A * np.eye(2 * n)
        start = self._coordinates(state)
        columns = [
            self._coordinates(after) - self._coordinates(before)
            for after, before in zip(
                self([self._at(state, start + shift) for shift in shifts]),
                self([self._at(state, start - shift) for shift in shifts]),
                strict=True,
            )
        ]
        matrix: NDArray[np.float64] = np.array(columns).T / (2.0 * _DISPLACEMENT_A)
        return matrix

    def log_determinant(self, state: State) -> float:
        """Return log |det J| of the derivative J; 0 where the map keeps the volume."""
        return float(np.linalg.slogdet(self.derivative(state))[1])

    def _coordinates(self, state: State) -> NDArray[np.float64]:
        return np.concatenate([state.positions.ravel(), self.stride_fs * state.velocities.ravel()])

    def _at(self, state: State, coordinates: NDArray[np.float64]) -> State:
        x, v = coordinates.reshape(2, -1, 3)
        return state.moved_to(x, velocities=v / self.stride_fs, memory={})


def _moved(state: State, frames: Frames) -> State:
    assert frames.velocities is not None
    return state.moved_to(frames.positions[0], velocities=frames.velocities[0], memory={})


def energy_changes(before: Sequence[State], after: Sequence[State]) -> NDArray[np.float64]:
    """Take differences ``(k,)`` eV of total energies; potential energies must be known."""
    return np.array([b.total_energy - a.total_energy for a, b in zip(before, after, strict=True)])


def acceptances(changes: NDArray[np.float64], temperature_K: float) -> NDArray[np.float64]:
    """Probabilities of a Metropolis test for changes of the total energy in eV."""
    return np.asarray(np.exp(np.minimum(0.0, -changes / (units.KB * temperature_K))))


def return_ways(
    jump: JumpMap, states: Sequence[State], after: Sequence[State]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances ``(k, n, 3)`` Å from the start after a jump and one back, and after the jump."""
    back = jump([replace(state, velocities=-state.velocities) for state in after])
    missed, way = (
        np.array([end.positions - start.positions for start, end in zip(states, ends, strict=True)])
        for ends in (back, after)
    )
    return missed, way


def _growth(jump: JumpMap, minimum: State) -> float:
    """Fastest growth in 1/ps of a small internal deviation from a minimum."""
    rest = replace(minimum, velocities=np.zeros_like(minimum.velocities))
    internal = null_space(rigid_basis(rest).T)
    scale = np.sqrt(np.tile(np.repeat(rest.masses, 3), 2))
    weighted = scale[:, None] * jump.derivative(rest) / scale
    basis = block_diag(internal, internal)
    factors = np.abs(np.linalg.eigvals(basis.T @ weighted @ basis))
    return float(np.log(factors.max())) * units.FS_PER_PS / jump.stride_fs
