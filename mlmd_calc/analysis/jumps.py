"""How well a propagator predicts the later states of trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final, NamedTuple

import ase.data
import numpy as np
import torch

from mlmd_calc import units
from mlmd_calc.analysis.accuracy import spread_index
from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.data.trajectories import Trajectory
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.geometry.rotations import icosahedral_rotations
from mlmd_calc.options import steps_in
from mlmd_calc.propagation import ForceModel, Propagator, State
from mlmd_calc.propagation.bookkeeping import with_energies
from mlmd_calc.propagation.state import FloatArray

_BATCH: Final = 64


class Jump(NamedTuple):
    """A state of a trajectory and what became of it.

    Attributes
    ----------
    state
        Where the jump starts.
    positions, velocities
        ``(t, n, 3)`` Å and Å/fs at the later times.
    """

    state: State
    positions: FloatArray
    velocities: FloatArray


def jumps_of(
    molecule: MoleculeFrames, times_fs: Sequence[float], most: int | None = None
) -> list[Jump]:
    """Take jumps from a trajectory, evenly spread over all frames that may start one.

    Parameters
    ----------
    molecule
        A trajectory: frames with velocities and frame spacing.
    times_fs
        Times in fs, ascending, multiples of the frame spacing.
    most
        At most this many jumps; None for all.

    Raises
    ------
    ConfigError
        If a time is not positive.
    InputError
        If the molecule is no trajectory, a time is not a multiple of the frame spacing, or no
        uninterrupted run is long enough.
    """
    trajectory = Trajectory.of(molecule)
    if wrong := [time for time in times_fs if not 0.0 < time < np.inf]:
        raise ConfigError(f"a jump of {wrong[0]:g} fs is impossible; give positive times")
    strides = []
    for time in times_fs:
        stride = steps_in(time, trajectory.dt_fs)
        if not stride:
            raise InputError(
                f"molecule {molecule.name!r} has frames {trajectory.dt_fs:g} fs apart, of which "
                f"{time:g} fs is not a multiple; choose other times"
            )
        strides.append(stride)
    # A frame before the start as well, so that the choice does not depend on what a model takes.
    starts = trajectory.starts(strides[-1], before=1)
    if not len(starts):
        raise InputError(
            f"molecule {molecule.name!r} has no uninterrupted run of more than {times_fs[-1]:g} "
            "fs; choose shorter times or longer trajectories"
        )
    masses = ase.data.atomic_masses[molecule.numbers]
    return [
        Jump(
            State(
                trajectory.positions[start],
                trajectory.velocities[start],
                molecule.numbers,
                masses,
                charge=molecule.charge,
                multiplicity=molecule.multiplicity,
            ),
            trajectory.positions[start + strides],
            trajectory.velocities[start + strides],
        )
        for start in starts[spread_index(len(starts), most)]
    ]


@dataclass(frozen=True, eq=False)
class JumpErrors:
    """Sums of squares over jumps and coordinates, by element and time.

    Sums of several sets of jumps are added with ``+``.

    Attributes
    ----------
    times
        ``(t,)`` fs.
    coordinates
        ``(119,)`` number of coordinates by atomic number.
    position_errors, velocity_errors
        ``(119, t)`` of prediction minus truth, Å² and Å²/fs².
    position_changes, velocity_changes
        ``(119, t)`` of the true changes since the start.
    """

    times: FloatArray
    coordinates: FloatArray
    position_errors: FloatArray
    velocity_errors: FloatArray
    position_changes: FloatArray
    velocity_changes: FloatArray

    def __add__(self, other: JumpErrors) -> JumpErrors:
        if not np.array_equal(self.times, other.times):
            raise InputError(f"errors at the times {self.times} and {other.times} do not add up")
        sums = {
            item.name: getattr(self, item.name) + getattr(other, item.name)
            for item in fields(self)
            if item.name != "times"
        }
        return JumpErrors(times=self.times, **sums)

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that occur."""
        return [int(z) for z in np.flatnonzero(self.coordinates)]

    def relative(self, quantity: str, element: int | None = None) -> FloatArray:
        """Root mean square error over the root mean square change, ``(t,)``.

        Parameters
        ----------
        quantity
            "position" or "velocity".
        element
            Atomic number; None for all atoms.
        """
        rows = slice(None) if element is None else slice(element, element + 1)
        errors, changes = (
            getattr(self, f"{quantity}_{kind}")[rows].sum(axis=0) for kind in ("errors", "changes")
        )
        ratio: FloatArray = np.sqrt(errors / changes)
        return ratio

    @property
    def s2t(self) -> float:
        """State to trajectory: mean square position error per coordinate over all times, Å²."""
        per_time = self.position_errors.sum(axis=0) / self.coordinates.sum()
        return float(per_time.mean())

    @property
    def s2s(self) -> float:
        """State to state: mean square position error per coordinate at the last time, Å²."""
        return float(self.position_errors[:, -1].sum() / self.coordinates.sum())


def measure_jumps(
    propagator: Propagator,
    jumps: Sequence[Jump],
    times_fs: Sequence[float],
    *,
    times_per_call: int | None = None,
    seed: int = 0,
) -> JumpErrors:
    """Compare a propagator with trajectories.

    Parameters
    ----------
    propagator
        What to measure.
    jumps
        Jumps to the times, see :func:`jumps_of`.
    times_fs
        Times in fs.
    times_per_call
        Ask for at most so many times in one call; None for all at once.
    seed
        Seed of the propagator's random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    times = list(times_fs)
    step = times_per_call or len(times)
    sums = np.zeros((4, len(ase.data.atomic_masses), len(times)))
    coordinates = np.zeros(len(ase.data.atomic_masses))
    for first in range(0, len(jumps), _BATCH):
        batch = jumps[first : first + _BATCH]
        states = [jump.state for jump in batch]
        for begin in range(0, len(times), step):
            part = slice(begin, begin + step)
            predicted = propagator.propagate(states, times[part], generator)
            for jump, frames in zip(batch, predicted, strict=True):
                if frames.velocities is None:
                    raise InputError(f"{type(propagator).__name__} predicts no velocities")
                pairs = (
                    (frames.positions, jump.positions[part]),
                    (frames.velocities, jump.velocities[part]),
                    (jump.state.positions, jump.positions[part]),
                    (jump.state.velocities, jump.velocities[part]),
                )
                for row, (found, true) in enumerate(pairs):
                    squares = np.square(found - true).sum(axis=-1).T
                    np.add.at(sums[row][:, part], jump.state.numbers, squares)
        for state in states:
            np.add.at(coordinates, state.numbers, 3.0)
    return JumpErrors(np.array(times, dtype=np.float64), coordinates, *sums)


def rotation_defect(
    propagator: Propagator, jumps: Sequence[Jump], times_fs: Sequence[float], *, seed: int = 0
) -> FloatArray:
    """How much predicted positions depend on orientation, relative to their change, ``(t,)``.

    With x_r the positions predicted for a state turned by rotation r, turned back, and x̄ their mean
    over the 60 rotations of the 600-cell: the root mean square of x_r − x̄ over that of the true
    change.

    Parameters
    ----------
    propagator, jumps, times_fs, seed
        As in :func:`measure_jumps`; a few jumps are enough.
    """
    generator = torch.Generator().manual_seed(seed)
    rotations = icosahedral_rotations()
    defects, changes = np.zeros(len(times_fs)), np.zeros(len(times_fs))
    for jump in jumps:
        state = jump.state
        turned = [
            state.moved_to(state.positions @ rotation, velocities=state.velocities @ rotation)
            for rotation in rotations
        ]
        frames = propagator.propagate(turned, list(times_fs), generator)
        back = np.stack([f.positions @ r.T for f, r in zip(frames, rotations, strict=True)])
        defects += np.square(back - back.mean(axis=0)).sum(axis=-1).mean(axis=(0, 2))
        changes += np.square(jump.positions - state.positions).sum(axis=-1).mean(axis=1)
    ratio: FloatArray = np.sqrt(defects / changes)
    return ratio


def energy_errors(
    propagator: Propagator,
    judge: ForceModel,
    jumps: Sequence[Jump],
    times_fs: Sequence[float],
    *,
    seed: int = 0,
) -> FloatArray:
    """Root mean square change of the total energy by a jump, meV/atom, ``(t,)``.

    Without a thermostat a perfect jump changes nothing, up to the error of the judge.

    Parameters
    ----------
    propagator, jumps, times_fs, seed
        As in :func:`measure_jumps`.
    judge
        Gives the potential energy of the start and of the predicted frames.
    """
    generator = torch.Generator().manual_seed(seed)
    squares = np.zeros(len(times_fs))
    for jump in jumps:
        (frames,) = propagator.propagate([jump.state], list(times_fs), generator)
        if frames.velocities is None:
            raise InputError(f"{type(propagator).__name__} predicts no velocities")
        states = [
            jump.state.moved_to(x, velocities=v)
            for x, v in zip(frames.positions, frames.velocities, strict=True)
        ]
        known = with_energies([jump.state, *states], judge)
        energies = np.array([state.total_energy for state in known])
        squares += np.square((energies[1:] - energies[0]) / len(jump.state))
    root: FloatArray = np.sqrt(squares / len(jumps)) / units.MEV
    return root
