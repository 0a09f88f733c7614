"""What single jumps of a propagator do that motion under a force field does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.analysis.audit.measurement import (
    PERCENT,
    Estimate,
    jackknife,
    relative_size,
)
from mlmd_calc.analysis.jump_map import JumpMap, acceptances, energy_changes, return_ways
from mlmd_calc.analysis.jumps import Jump, rotation_defect
from mlmd_calc.analysis.statistics import root_mean_square
from mlmd_calc.propagation import ForceModel, Frames, Propagator, State, VerletPropagator
from mlmd_calc.propagation.bookkeeping import with_energies
from mlmd_calc.propagation.corrections import centre_of_mass
from mlmd_calc.propagation.state import FloatArray
from mlmd_calc.propagation.thermostats import draw_velocities

_TIMESTEP_FS: Final = 0.5
"""Of the force-based steps that jumps are compared with, or a little shorter."""


@dataclass(frozen=True)
class EnergyChanges:
    """What jumps do to the total energy, which they should conserve.

    Attributes
    ----------
    changes
        ``(k,)`` eV, of one jump from each state.
    atoms
        Number of atoms.
    stride_fs
        Length of the jump in fs.
    temperature_K
        Of the states.
    """

    changes: NDArray[np.float64]
    atoms: int
    stride_fs: float
    temperature_K: float  # noqa: N815

    @property
    def heating_percent_per_ps(self) -> Estimate:
        """Energy that jumps bring per ps, in percent of k T for each degree of freedom."""
        scale = 3 * self.atoms * units.KB * self.temperature_K * self.stride_fs / units.FS_PER_PS
        return jackknife(_mean, self.changes / scale, factor=PERCENT)

    @property
    def rejected_percent(self) -> Estimate:
        """Jumps that a Metropolis test would reject."""
        accepted = acceptances(self.changes, self.temperature_K)
        return jackknife(_mean, 1.0 - accepted, factor=PERCENT)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean())


def jump_energies(
    jump: JumpMap, forces: ForceModel, states: Sequence[State], temperature_K: float
) -> EnergyChanges:
    """Jump once from each state, and evaluate the energies before and after."""
    before = with_energies(list(states), forces)
    after = with_energies(jump(before), forces)
    return EnergyChanges(
        energy_changes(before, after), len(states[0]), jump.stride_fs, temperature_K
    )


def reversibility_percent(jump: JumpMap, states: Sequence[State]) -> Estimate:
    """Distance from the start after a jump forwards and one back, in percent of the way."""
    missed, way = return_ways(jump, states, jump(states))
    return jackknife(relative_size, missed, way, factor=PERCENT)


def log_determinant(jump: JumpMap, states: Sequence[State]) -> Estimate:
    """Root mean square of log |det J|, by which a jump changes volumes of phase space."""
    return jackknife(root_mean_square, np.array([jump.log_determinant(one) for one in states]))


def flight_percent(jump: JumpMap, states: Sequence[State]) -> Estimate:
    """Error of the way of the centre of mass, in percent of its velocity times the stride.

    Nothing acts on the centre of mass of an isolated molecule, so that a wrong unit of velocity or
    time shows here whatever the forces are.
    """
    way, expected = [], []
    for before, after in zip(states, jump(states), strict=True):
        start, end = (centre_of_mass(s.positions, s.masses) for s in (before, after))
        way.append(end - start)
        expected.append(jump.stride_fs * centre_of_mass(before.velocities, before.masses))
    return jackknife(
        relative_size, np.array(way) - np.array(expected), np.array(expected), factor=PERCENT
    )


def reference_for(forces: ForceModel, stride_fs: float) -> VerletPropagator:
    """Propagator that jumps by force-based steps of about half a femtosecond."""
    return VerletPropagator(forces, stride_fs / np.ceil(stride_fs / _TIMESTEP_FS))


def momentum_response_percent(
    propagator: Propagator,
    forces: ForceModel,
    states: Sequence[State],
    stride_fs: float,
    temperature_K: float,
    rng: np.random.Generator,
) -> Estimate:
    """Error of what new momenta change about a jump, in percent of what they should change.

    After a first jump, from whose end the propagator has a memory, momenta are drawn anew, as a
    thermostat does. The difference that this makes to the positions after the second jump is
    compared with the difference for force-based steps: 100 % where momenta are ignored.

    Parameters
    ----------
    propagator, forces
        What is audited, and the force model of its potential.
    states
        States of one molecule.
    stride_fs
        Length of the jump in fs.
    temperature_K
        Of the new momenta.
    rng
        Draws them.
    """
    first = [_end(s, f) for s, f in zip(states, _jump(propagator, states, stride_fs), strict=True)]
    other = [replace(s, velocities=draw_velocities(s, temperature_K, rng)) for s in first]
    reference = reference_for(forces, stride_fs)

    def response(moving: Propagator, *, memory: bool) -> FloatArray:
        ends = []
        for starts in (first, other):
            given = starts if memory else [replace(state, memory={}) for state in starts]
            ends.append([f.positions[-1] for f in _jump(moving, given, stride_fs)])
        return np.asarray(np.array(ends[1]) - np.array(ends[0]))

    found, expected = response(propagator, memory=True), response(reference, memory=False)
    return jackknife(relative_size, found - expected, expected, factor=PERCENT)


def rotation_percent(
    propagator: Propagator, forces: ForceModel, states: Sequence[State], stride_fs: float
) -> Estimate:
    """How much jumps depend on how the molecule lies in space, in percent of their way.

    Over the 60 rotations of the 600-cell; the way is that of force-based steps.
    """
    frames = _jump(reference_for(forces, stride_fs), states, stride_fs)
    defects = []
    for state, true in zip(states, frames, strict=True):
        assert true.velocities is not None
        jump = Jump(state, true.positions, true.velocities)
        defects.append(rotation_defect(propagator, [jump], [stride_fs])[0])
    return jackknife(root_mean_square, np.array(defects), factor=PERCENT)


def _jump(propagator: Propagator, states: Sequence[State], stride_fs: float) -> list[Frames]:
    """Jump with the same random numbers in every call."""
    return propagator.propagate(states, [stride_fs], torch.Generator().manual_seed(0))


def _end(state: State, frames: Frames) -> State:
    """State after a jump, with the memory of the propagator."""
    assert frames.velocities is not None
    return state.moved_to(
        frames.positions[-1],
        velocities=frames.velocities[-1],
        time=state.time + frames.times[-1],
        memory=frames.memory,
    )
