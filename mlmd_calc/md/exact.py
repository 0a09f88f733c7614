"""The exact canonical ensemble of any method, with trajectories of a cheaper one.

Generalised Hamiltonian Monte Carlo (A. M. Horowitz, Phys. Lett. B 268, 247 (1991)); one step is

1. p ← c p + √((1 − c²) m k T) ξ with c = exp(−γ t), friction γ and length t of the trajectory;
2. (x', p') ← velocity Verlet from (x, p) with the forces of the *proposal*;
3. ΔH = U(x') + K(p') − U(x) − K(p) with the energy U of the *target*; with the probability
   min(1, exp(−ΔH / k T)) go to (x', p'), else to (x, −p).

Velocity Verlet is reversible and keeps the volume of phase space whatever the forces, if only they
are a function of the positions. Thus the target's ensemble is exact for any proposal, its forces
need not be the gradient of an energy, and a bad proposal costs acceptance alone. The target is
asked for one energy in each step.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.trajectory import Trajectory

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, InputError, ModelFileError, PredictionError
from mlmd_calc.md.canonical import acceptance_probability, refreshed
from mlmd_calc.md.force_source import Forces, ForceSource
from mlmd_calc.md.restartable import RestartableDynamics, StepLoop, truncate_trajectory
from mlmd_calc.md.step_length import StepLength
from mlmd_calc.options import check_count, check_positive
from mlmd_calc.potential import Potential
from mlmd_calc.propagation.state import FloatArray

FAR: Final = 2.0
"""Proposals whose ΔH is further than this from zero, in units of k T, are collected."""

_JITTER: Final = 0.1
"""Time steps vary by this fraction, so that no vibration returns to where it started each time."""

_SAME: Final = 1e-3
"""eV; a target whose energy differs by more is another one than the run was started with."""


class _Point(NamedTuple):
    """Positions, the target's energy there, and the proposal's energy and forces."""

    positions: FloatArray
    energy: float
    proposal_energy: float
    forces: FloatArray


@dataclass
class ExactSamples:
    """What every step after the warm-up found.

    Attributes
    ----------
    energies, proposal_energies
        Energy of target and proposal in eV after the step; NaN if the proposal knows none.
    changes
        ΔH in eV; infinity if the proposal could not be followed or evaluated.
    accepted
        Whether the trajectory was accepted.
    """

    energies: list[float] = field(default_factory=list)
    proposal_energies: list[float] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    accepted: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.energies)


class ExactNVT(RestartableDynamics, StepLoop):
    """The canonical ensemble of one method, sampled by trajectories of another one.

    Each step is a trajectory of the proposal that is accepted or rejected by the energy of the
    target; averages over steps, rejected ones included, are exact averages of the target. After a
    step ``atoms.calc`` holds the target's energy. There is no physical time: :meth:`get_time`
    counts the time of all trajectories.

    Parameters
    ----------
    atoms
        The molecule. Its momenta are used; without any they are drawn.
    timestep
        Time step of the trajectories in ASE time units, with which the warm-up begins.
    target
        Whose ensemble is sampled: any ASE calculator or force model that knows energies.
    proposal
        Makes the trajectories: an ASE calculator, a force model such as
        :class:`mlmd_calc.Potential`, or the name of a model.
    temperature_K
        Temperature in K.
    trajectory_steps
        Time steps of a trajectory.
    friction
        How fast momenta are forgotten between trajectories, in inverse ASE time units; infinity
        draws all of them anew.
    warmup
        Steps at the beginning in which the time step is adapted such that four of five trajectories
        are accepted. They do not count in `samples`. 0 keeps the time step.
    frames_file
        An ASE trajectory (.traj), begun anew, that receives proposals which were rejected or have
        |ΔH| above 2 k T, labelled with energies and forces of the target, for ``mlmd finetune``;
        this costs a gradient of the target for each of them. None: they are not kept.
    rng
        Source of randomness; None draws a seed from the system.
    **options
        `trajectory`, `logfile`, `loginterval` and others of ASE's dynamics, and `restart`; see
        :class:`mlmd_calc.md.restartable.RestartableDynamics`.

    Attributes
    ----------
    samples
        What the steps after the warm-up found, see :class:`ExactSamples`;
        :func:`mlmd_calc.analysis.summarise_exact` makes a summary of it.
    frames_file, collected
        As given, and how many frames it has received.

    Raises
    ------
    ConfigError
        If an option has a value that is not allowed, the target knows no energy, or one of both
        sees the molecule in random orientations.
    InputError
        If the atoms carry constraints or one of the models refuses them.

    Examples
    --------
    >>> import numpy as np
    >>> from ase import Atoms, units
    >>> from mlmd_calc.md import ExactNVT
    >>> from mlmd_calc.propagation import FunctionForces
    >>> def spring(k):
    ...     return FunctionForces(lambda x: (0.5 * k * float((x**2).sum()), -k * x))
    >>> atoms = Atoms("CO", [[0, 0, 0], [0.1, 0, 0]])
    >>> dyn = ExactNVT(atoms, 0.5 * units.fs, spring(30.0), spring(33.0), temperature_K=300)
    >>> dyn.run(400)
    True
    >>> dyn.acceptance > 0.5
    True
    """

    def __init__(
        self,
        atoms: ase.Atoms,
        timestep: float,
        target: Forces,
        proposal: Forces | str,
        *,
        temperature_K: float,
        trajectory_steps: int = 80,
        friction: float = 0.02 / units.FS,
        warmup: int = 200,
        frames_file: str | os.PathLike[str] | None = None,
        rng: np.random.Generator | None = None,
        **options: Any,
    ) -> None:
        self.temperature_K, self.friction = temperature_K, friction
        self.trajectory_steps = trajectory_steps
        check_positive(self, "temperature_K")
        check_count(self, "trajectory_steps")
        if friction != math.inf:
            check_positive(self, "friction")
        self._target = ForceSource(atoms, target)
        model = Potential(proposal) if isinstance(proposal, str) else proposal
        self._proposal = ForceSource(atoms, model, partner=target)
        if not self._target.has_energy:
            raise ConfigError(f"target {self._target.name} knows no energy, which decides here")
        if self._proposal.random or self._target.random:
            raise ConfigError(
                "target or proposal has rotation='random' and gives equal positions different "
                "forces, so that trajectories cannot be reversed; use rotation='none' or 'average'"
            )
        self.frames_file = None if frames_file is None else Path(frames_file)
        self.collected = 0
        self._rng = np.random.default_rng() if rng is None else rng
        self._step_length = StepLength(timestep, warmup)
        self.samples = ExactSamples()
        self._time = 0.0
        self._point: _Point | None = None
        super().__init__(atoms, timestep, **options)
        if not self.atoms.get_momenta().any():
            self._refresh(math.inf)
        self._show(self._here())
        if options.get("restart") is None and self.frames_file is not None:
            Trajectory(self.frames_file, "w").close()

    @property
    def warming_up(self) -> bool:
        """Whether the time step is still being adapted."""
        return self._step_length.adapting

    @property
    def trajectory_fs(self) -> float:
        """Length of a trajectory in fs; during the warm-up that of the next one."""
        return self.trajectory_steps * self.dt / units.FS

    @property
    def acceptance(self) -> float:
        """Fraction of trajectories accepted after the warm-up; NaN before the first."""
        return float(np.mean(self.samples.accepted)) if len(self.samples) else math.nan

    def step(self) -> None:
        """Follow a trajectory, and accept or reject it."""
        here = self._here()
        timestep = self.dt * self._rng.uniform(1.0 - _JITTER, 1.0 + _JITTER)
        self._time += self.trajectory_steps * timestep
        self._refresh(self.trajectory_steps * timestep)
        momenta = self.atoms.get_momenta()
        there, reached = self._trajectory(here, momenta, timestep)
        change = math.inf
        if there is not None:
            change = there.energy - here.energy + self._kinetic(reached) - self._kinetic(momenta)
        if not math.isfinite(change):
            there, change = None, math.inf
        probability = acceptance_probability(change, self.temperature_K)
        accepted = self._rng.random() < probability
        if there is not None and accepted:
            self.atoms.set_positions(there.positions)
            self.atoms.set_momenta(reached)
            self._show(there)
        else:
            # The way back starts with the momenta turned round.
            self.atoms.set_momenta(-momenta)
            self._show(here)
        if self._step_length.adapting:
            self._step_length.update(probability)
            self.dt = self._step_length.value
            return
        self._record(change, accepted)
        if there is not None and not (
            accepted and abs(change) <= FAR * units.KB * self.temperature_K
        ):
            self._collect(there)

    def forget(self) -> None:
        """Evaluate the present positions again before the next step: a model has changed."""
        self._point = None

    def set_timestep(self, timestep: float) -> None:
        """Refuse to change the time step, which the warm-up has found."""
        raise ConfigError(f"timestep={timestep:g}: it cannot be changed; start a new ExactNVT")

    def get_time(self) -> float:
        """Return the time of all trajectories, rejected ones too, in ASE time units."""
        return self._time

    def todict(self) -> dict[str, Any]:
        """Return what trajectories store of the run."""
        return {
            **super().todict(),  # type: ignore[no-untyped-call]
            "temperature_K": self.temperature_K,
            "trajectory_steps": self.trajectory_steps,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what decides how the run goes on, besides positions and momenta."""
        return self._state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`, with atoms, target and `frames_file` as they were then."""
        self._load_state(state)

    def _trajectory(
        self, start: _Point, momenta: FloatArray, timestep: float
    ) -> tuple[_Point | None, FloatArray]:
        """Follow the proposal, and evaluate where it ends; None if one of the two fails."""
        positions, forces = start.positions, start.forces
        try:
            for step in range(1, self.trajectory_steps + 1):
                momenta = momenta + 0.5 * timestep * forces
                positions = positions + timestep * momenta / self.masses
                if step < self.trajectory_steps:
                    forces = self._proposal.forces(positions)
                    momenta = momenta + 0.5 * timestep * forces
            end = self._evaluated(positions)
        except (InputError, PredictionError):
            # The same trajectory fails on its way back: rejecting it keeps the balance.
            return None, momenta
        return end, momenta + 0.5 * timestep * end.forces

    def _evaluated(self, positions: FloatArray) -> _Point:
        wanted = ("energy", "forces") if self._proposal.has_energy else ("forces",)
        found = self._proposal.evaluate(positions, wanted)
        assert found.forces is not None
        energy = math.nan if found.energy is None else float(found.energy)
        return _Point(positions, self._target.energy(positions), energy, found.forces)

    def _here(self) -> _Point:
        """Return the present point, evaluated again if the atoms were moved by others."""
        positions = self.atoms.get_positions()
        if self._point is None or not np.array_equal(self._point.positions, positions):
            self._point = self._evaluated(positions)
        return self._point

    def _show(self, point: _Point) -> None:
        """Let the atoms have the target's energy."""
        self._point = point
        self.atoms.calc = SinglePointCalculator(self.atoms, energy=point.energy)

    def _refresh(self, time: float) -> None:
        """Replace as much of the momenta as is forgotten in a time."""
        momenta, damping = self.atoms.get_momenta(), self.friction * time
        self.atoms.set_momenta(
            refreshed(momenta, self.masses, self.temperature_K, damping, self._rng)
        )

    def _kinetic(self, momenta: FloatArray) -> float:
        return 0.5 * float((momenta**2 / self.masses).sum())

    def _record(self, change: float, accepted: bool) -> None:
        point, samples = self._here(), self.samples
        samples.energies.append(point.energy)
        samples.proposal_energies.append(point.proposal_energy)
        samples.changes.append(change)
        samples.accepted.append(accepted)

    def _collect(self, point: _Point) -> None:
        """Write down where the proposal went wrong, with labels of the target."""
        if self.frames_file is None:
            return
        atoms, forces = self.atoms, self._target.forces(point.positions)
        frame = ase.Atoms(atoms.numbers, point.positions, cell=atoms.cell, pbc=atoms.pbc)
        frame.info = {**atoms.info, **self._proposal.info}
        frame.calc = SinglePointCalculator(frame, energy=point.energy, forces=forces)
        with Trajectory(self.frames_file, "a" if self.collected else "w") as file:
            file.write(frame)
        self.collected += 1

    def _identity(self) -> dict[str, Any]:
        return {
            "temperature_K": self.temperature_K,
            "friction": self.friction,
            "trajectory_steps": self.trajectory_steps,
            "warmup": self._step_length.steps,
            "frames": self.frames_file is not None,
            "target": self._target.identity(),
            "proposal": self._proposal.identity(),
        }

    def _state(self) -> dict[str, Any]:
        return {
            "rng": dict(self._rng.bit_generator.state),
            "step_length": self._step_length.state_dict(),
            "samples": {name: np.array(values) for name, values in vars(self.samples).items()},
            "time": self._time,
            "point": self._here()._asdict(),
            "collected": self.collected,
        }

    def _load_state(self, state: Mapping[str, Any]) -> None:
        found, known = self._here().energy, state["point"]["energy"]
        if not abs(found - known) < _SAME:
            raise ModelFileError(
                f"the target gives an energy of {found:.4f} eV where it gave {known:.4f} eV before "
                "the run was interrupted; continue with the target of the run"
            )
        self._rng.bit_generator.state = state["rng"]
        self._step_length.load_state_dict(state["step_length"])
        self.dt = self._step_length.value
        self.samples = ExactSamples(**{k: v.tolist() for k, v in state["samples"].items()})
        self._time = state["time"]
        self._point = _Point(**state["point"])
        self.collected = state["collected"]
        if self.frames_file is not None and (self.collected or self.frames_file.exists()):
            truncate_trajectory(self.frames_file, self.collected)
