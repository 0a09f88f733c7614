"""What force-based runs say about a force field: drift of the energy, and temperatures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import ase
import numpy as np
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.analysis.audit.measurement import Estimate, jackknife
from mlmd_calc.analysis.jump_ensemble import Sample
from mlmd_calc.analysis.statistics import fit_drift, root_mean_square
from mlmd_calc.data.parallel_runs import ParallelRuns
from mlmd_calc.errors import PredictionError
from mlmd_calc.geometry.bonds import find_bonds
from mlmd_calc.potential import Structure
from mlmd_calc.propagation import ForceModel, State
from mlmd_calc.propagation.state import FloatArray
from mlmd_calc.wording import counted

TIMESTEP_FS: Final = 1.0
"""Of thermostatted runs. Momenta keep their distribution at any time step, as long as vibrations
are harmonic: velocity Verlet conserves one of them with slightly softer springs."""

_FRICTION_PER_FS: Final = 0.05
"""So strong that a run of a picosecond has many independent momenta."""

_FINE_FS: Final = 0.5
_WEAK_PER_FS: Final = 0.001
"""Time step and friction of a run that is to be like those of users."""

_WARMING_FS: Final = 150.0
"""Three relaxation times of an oscillator whose friction is the above."""

_FRAME_FS: Final = 10.0


@dataclass(frozen=True)
class ThermalRun:
    """Frames of replicas of a molecule under a Langevin thermostat, after it has warmed up.

    Attributes
    ----------
    sample
        Frames of the replicas that came through.
    kind
        The molecule; its positions are those at the minimum.
    replicas
        How many began.
    """

    sample: Sample
    kind: Structure
    replicas: int

    @property
    def died_percent(self) -> float:
        """Replicas in which a bond broke, or which the force model refused."""
        return 100.0 - 100.0 * int(self.sample.positions.shape[1]) / self.replicas

    def structures(self, count: int) -> list[Structure]:
        """Structures evenly spread over time and replicas."""
        return [state.structure for state in self.states(count)]

    def states(self, count: int) -> list[State]:
        """States evenly spread over time and replicas."""
        frames, replicas = self.sample.positions.shape[:2]
        chosen = np.linspace(0, frames * replicas - 1, count).round().astype(int)
        # Replicas take turns, so that neighbours in the list are of different ones.
        pairs = [(index // replicas, index % replicas) for index in chosen.tolist()]
        return [
            State(
                self.sample.positions[frame, replica],
                self.sample.velocities[frame, replica],
                self.sample.numbers,
                self.sample.masses,
                charge=self.kind.charge,
                multiplicity=self.kind.multiplicity,
            )
            for frame, replica in pairs
        ]


def thermal_run(
    forces: ForceModel,
    minimum: Structure,
    *,
    temperature_K: float,
    replicas: int,
    duration_fs: float,
    rng: np.random.Generator,
) -> ThermalRun:
    """Run replicas of a molecule under a thermostat.

    Parameters
    ----------
    forces
        Force model.
    minimum
        Where the replicas start.
    temperature_K
        Of the thermostat.
    replicas
        How many.
    duration_fs
        Length of the run after 150 fs of warming.
    rng
        Source of randomness.

    Raises
    ------
    PredictionError
        If no replica comes through.
    """
    runs = _set_off(forces, minimum, replicas, temperature_K, rng)
    temperatures = np.full(replicas, temperature_K)
    stride = round(_FRAME_FS / TIMESTEP_FS)
    warming, frames = round(_WARMING_FS / _FRAME_FS), max(1, round(duration_fs / _FRAME_FS))
    positions, velocities = [], []
    for frame in range(warming + frames):
        for _ in range(stride):
            runs.thermalise(temperatures, _FRICTION_PER_FS, TIMESTEP_FS, rng)
        runs.end_broken()
        if frame >= warming:
            positions.append(runs.positions.copy())
            velocities.append(runs.velocities.copy())
    alive = runs.running
    if not len(alive):
        raise PredictionError(
            f"none of {counted(replicas, 'replica')} came through {duration_fs + _WARMING_FS:g} fs "
            f"at {temperature_K:g} K ({', '.join(sorted(set(runs.ended.values())))})"
        )
    sample = Sample(
        np.array(minimum.numbers),
        runs.masses,
        _FRAME_FS * np.arange(frames, dtype=np.float64),
        np.array(positions)[:, alive],
        np.array(velocities)[:, alive],
    )
    return ThermalRun(sample, minimum, replicas)


@dataclass(frozen=True)
class Survival:
    """How long replicas under a thermostat hold together.

    Attributes
    ----------
    replicas
        How many began.
    duration_ps
        How long they were watched.
    failures_ps
        When a bond had changed by more than 0.5 Å, or a structure was refused, of those that
        failed.
    """

    replicas: int
    duration_ps: float
    failures_ps: tuple[float, ...]


def survival(
    forces: ForceModel,
    minimum: Structure,
    *,
    temperature_K: float,
    replicas: int,
    duration_ps: float,
    rng: np.random.Generator,
    on_frame: Callable[[FloatArray], None] = lambda positions: None,
) -> Survival:
    """Run replicas with time steps of half a femtosecond and a friction of 1/ps.

    Parameters
    ----------
    forces, minimum, temperature_K, replicas, rng
        As in :func:`thermal_run`.
    duration_ps
        After so long a replica has survived.
    on_frame
        Called every 10 fs with the positions ``(r, n, 3)`` in Å of the replicas that still hold.
    """
    runs = _set_off(forces, minimum, replicas, temperature_K, rng)
    temperatures = np.full(replicas, temperature_K)
    failures: list[float] = []
    for step in range(1, max(1, round(duration_ps * units.FS_PER_PS / _FINE_FS)) + 1):
        runs.thermalise(temperatures, _WEAK_PER_FS, _FINE_FS, rng)
        runs.end_broken()
        failures += [step * _FINE_FS / units.FS_PER_PS] * (len(runs.ended) - len(failures))
        if not len(runs.running):
            break
        if step % round(_FRAME_FS / _FINE_FS) == 0:
            on_frame(runs.positions[runs.running])
    return Survival(replicas, duration_ps, tuple(failures))


@dataclass(frozen=True)
class Drift:
    """Drift of the energy in runs without a thermostat, at several time steps.

    Attributes
    ----------
    timesteps_fs
        ``(t,)`` fs.
    drifts
        ``(t, r)`` meV/atom/ps of each replica, of the energy that velocity Verlet conserves.
    """

    timesteps_fs: NDArray[np.float64]
    drifts: NDArray[np.float64]

    @property
    def limits(self) -> NDArray[np.float64]:
        """Drift of each replica at Δt → 0 by a straight line in Δt⁴, ``(r,)`` meV/atom/ps."""
        powers = np.stack([np.ones_like(self.timesteps_fs), self.timesteps_fs**4], axis=1)
        line: NDArray[np.float64] = np.linalg.lstsq(powers, self.drifts, rcond=None)[0][0]
        return line

    @property
    def extrapolated(self) -> Estimate:
        """Root mean square over the replicas of the drift at Δt → 0, meV/atom/ps.

        Forces that are no slope do work of either sign, which cancels in the mean.
        """
        return jackknife(root_mean_square, self.limits)


def energy_drift(
    forces: ForceModel,
    run: ThermalRun,
    *,
    replicas: int,
    duration_fs: float,
    timesteps_fs: tuple[float, ...],
) -> Drift:
    """Measure how the total energy drifts in runs of velocity Verlet.

    All runs start from the same states. The energy is the one that velocity Verlet conserves to
    fourth order in the time step, see :class:`mlmd_calc.data.parallel_runs.ParallelRuns`, so that
    vibrations do not hide the drift of a short run.

    Raises
    ------
    PredictionError
        If a bond breaks or a structure is refused.
    """
    states = run.states(replicas)
    drifts = []
    for timestep in timesteps_fs:
        runs = _at_rest(forces, run.kind, np.array([state.positions for state in states]))
        runs.velocities[:] = [state.velocities for state in states]
        runs.evaluate()
        energies = []
        for _ in range(round(duration_fs / timestep)):
            runs.step(timestep)
            energies.append(runs.conserved_energies.copy())
        if runs.ended:
            reasons = ", ".join(sorted(set(runs.ended.values())))
            raise PredictionError(
                f"{len(runs.ended)} of {counted(replicas, 'run')} ended: {reasons}"
            )
        times = timestep / units.FS_PER_PS * np.arange(len(energies))
        scale = units.MEV * len(run.kind)
        drifts.append([fit_drift(times, e).slope / scale for e in np.array(energies).T])
    return Drift(np.array(timesteps_fs), np.array(drifts))


def _set_off(
    forces: ForceModel,
    minimum: Structure,
    replicas: int,
    temperature_K: float,
    rng: np.random.Generator,
) -> ParallelRuns:
    """Put replicas at the minimum, with velocities that will be those of a temperature."""
    runs = _at_rest(forces, minimum, np.repeat(minimum.positions[None], replicas, axis=0))
    # Half of the kinetic energy of vibrations becomes potential energy.
    runs.velocities[:] = math.sqrt(2.0) * runs.thermal(np.full(replicas, temperature_K), rng)
    runs.evaluate()
    return runs


def _at_rest(forces: ForceModel, kind: Structure, positions: FloatArray) -> ParallelRuns:
    """Put replicas at rest; a bond that differs too much from that at the minimum ends one."""
    bonds = find_bonds(ase.Atoms(kind.numbers, kind.positions)).pairs
    runs = ParallelRuns(
        forces, kind, np.repeat(kind.positions[None], len(positions), axis=0), bonds
    )
    runs.positions[:] = positions
    return runs
