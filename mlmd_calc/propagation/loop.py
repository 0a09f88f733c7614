"""The loop behind every engine: thermostat, jump, thermostat.

How a jump is proposed is in :mod:`.propose`, how it is judged and corrected in :mod:`.judging`, and
what is done with one that fails in :mod:`.acceptance`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, fields, replace
from typing import Any, TypeGuard

import numpy as np
import torch

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, InputError, ModelFileError
from mlmd_calc.propagation.acceptance import Mover, Stopped
from mlmd_calc.propagation.bookkeeping import Logbook, Molecule, Setup, with_energies
from mlmd_calc.propagation.corrections import Corrections
from mlmd_calc.propagation.events import EventLog
from mlmd_calc.propagation.forces import ForceModel, load_model_state, model_state
from mlmd_calc.propagation.guards import Check, Guard, Temperature, default_checks
from mlmd_calc.propagation.other_forces import COMPARE_EVERY, OtherForces, checked_choice, compare
from mlmd_calc.propagation.propagator import Propagator
from mlmd_calc.propagation.restart import read_restart, write_restart
from mlmd_calc.propagation.state import State
from mlmd_calc.propagation.thermostats import Bussi, Langevin, Thermostat


class JumpLoop:
    """Dynamics of one or more molecules made of long jumps.

    A step is a jump of every molecule, and after it a number of force-based steps if these are
    wanted. The thermostat acts for half the time before and for half the time after each of the
    two.

    Parameters
    ----------
    states
        Molecules to move, of any sizes: replicas of one or different ones. They advance in one call
        of the propagator.
    propagator
        Makes the jumps.
    stride_fs
        Length of a jump in fs.
    thermostat
        None for constant energy.
    corrections
        Corrections of a jump.
    guard
        Checks of a jump; None for the usual ones.
    forces
        Force model for energies, fallbacks and force-based steps; None: the propagator's potential,
        if it tells it.
    other_forces
        What is done if these forces are not those of the propagator's potential: "refuse", "kick"
        (the difference acts before and after each of two jumps over half the stride) or "ignore"
        (it acts in force-based steps alone).
    md_steps_per_jump
        Force-based steps after each jump.
    md_timestep_fs
        Time step of force-based steps and of fallbacks, which is shortened if it does not divide
        the stride.
    rng
        Source of all randomness; None draws a seed from the system.

    Attributes
    ----------
    step
        Steps done.
    events
        What the guard found and did.
    stopped
        Why the run stopped; None while it has not.

    Raises
    ------
    ConfigError
        If the options do not fit together.
    InputError
        If a state is not finite.
    """

    def __init__(
        self,
        states: Sequence[State],
        propagator: Propagator,
        stride_fs: float,
        *,
        thermostat: Thermostat | None = None,
        corrections: Corrections | None = None,
        guard: Guard | None = None,
        forces: ForceModel | None = None,
        other_forces: OtherForces = "refuse",
        md_steps_per_jump: int = 0,
        md_timestep_fs: float = 0.5,
        rng: np.random.Generator | None = None,
    ) -> None:
        corrections = Corrections() if corrections is None else corrections
        if not propagator.gives_velocities:
            # Velocities that are drawn anew have no momentum to keep, nor tell where it leads.
            corrections = replace(
                corrections, centre_of_mass=False, momentum=False, angular_momentum=False
            )
        rng = _checked_rng(rng)
        generator = torch.Generator()
        generator.manual_seed(int(rng.integers(2**62)))
        self._setup = Setup(
            propagator=propagator,
            thermostat=thermostat,
            corrections=corrections,
            guard=Guard() if guard is None else guard,
            forces=propagator.potential if forces is None else forces,
            other_forces=checked_choice(other_forces),
            md_timestep_fs=md_timestep_fs,
            rng=rng,
            generator=generator,
        )
        self._stride_fs = stride_fs
        self._began_with = repr(thermostat), stride_fs
        self.md_steps_per_jump = md_steps_per_jump
        self.stopped: str | None = None
        checks = self._usual_checks() if self.guard.checks is None else self.guard.checks
        self._setup.needs_energy = corrections.rescale_energy or any(
            check.needs_energy for check in checks
        )
        self._check_options()
        self._states = _checked(states)
        for state in self._states:
            propagator.check(state)
        self._compared = False
        if self._setup.forces is not None:
            self._compare_forces()
        self._molecules = [Molecule(i, deepcopy(checks)) for i in range(len(self._states))]
        self._log = Logbook(self.guard.frames_file)
        self._mover = Mover(self._setup, self._molecules, self._log)
        self._begin_checks()

    @property
    def propagator(self) -> Propagator:
        """What makes the jumps."""
        return self._setup.propagator

    @property
    def corrections(self) -> Corrections:
        """Corrections of a jump."""
        return self._setup.corrections

    @property
    def guard(self) -> Guard:
        """Checks of a jump, and what happens with those that fail."""
        return self._setup.guard

    @property
    def other_forces(self) -> OtherForces:
        """What is done with forces that the propagator does not know."""
        return self._setup.other_forces

    @property
    def md_timestep_fs(self) -> float:
        """Time step of force-based steps in fs."""
        return self._setup.md_timestep_fs

    @property
    def rng(self) -> np.random.Generator:
        """Source of all randomness."""
        return self._setup.rng

    @property
    def generator(self) -> torch.Generator:
        """Source of random numbers of propagators and rotations."""
        return self._setup.generator

    @property
    def step(self) -> int:
        """Steps done."""
        return self._log.step

    @property
    def events(self) -> EventLog:
        """What the guard found and did."""
        return self._log.events

    def _usual_checks(self) -> tuple[Check, ...]:
        usual = default_checks(energies=self._has_usable_energy)
        if not self.propagator.gives_velocities:
            # What is drawn has the temperature of the thermostat, but no memory to average.
            usual = tuple(check for check in usual if not isinstance(check, Temperature))
        return (*usual, *self.propagator.checks())

    @property
    def _has_usable_energy(self) -> bool:
        """Whether energies can tell good jumps from bad ones."""
        if self.corrections.rescale_energy:
            return True
        known = bool(getattr(self.forces, "has_energy", False))
        return known and self.propagator.gives_velocities and self.other_forces != "ignore"

    def _check_stride(self, stride_fs: float) -> None:
        self.propagator.strides.check(stride_fs)
        if self.other_forces == "kick" and 0.5 * stride_fs not in self.propagator.strides:
            raise ConfigError(
                f"with other_forces='kick' a jump of {stride_fs:g} fs is two of "
                f"{0.5 * stride_fs:g} fs, but the propagator was made for "
                f"{self.propagator.strides}; choose another stride"
            )

    def _check_options(self) -> None:
        self._check_stride(self.stride_fs)
        if self.md_steps_per_jump < 0 or not self.md_timestep_fs > 0.0:
            raise ConfigError(
                f"md_steps_per_jump={self.md_steps_per_jump} with md_timestep_fs="
                f"{self.md_timestep_fs}; steps must not be negative and their length positive"
            )
        if self.thermostat is None and not self.propagator.gives_velocities:
            raise ConfigError(
                f"{self.propagator.identity} predicts no velocities, so constant energy has no "
                "meaning; run it with a thermostat"
            )
        self._check_thermostat()
        self.propagator.conditions.check_potential(self.propagator.potential)
        if self.thermostat is not None and self.corrections.rescale_energy:
            raise ConfigError(
                "rescale_energy with a thermostat would undo what the thermostat does; use one"
            )
        if self.forces is None and (self._setup.needs_energy or self.md_steps_per_jump):
            raise ConfigError(
                "energy rescaling, the energy check and force-based steps need forces; attach a "
                "calculator or pass a force model"
            )
        if self.other_forces == "kick" and (
            self.forces is None
            or self.propagator.potential is None
            or not self.propagator.gives_velocities
        ):
            raise ConfigError(
                f"other_forces='kick' needs forces of the engine and a propagator that tells its "
                f"potential and predicts velocities, which {self.propagator.identity} may not; "
                "attach a calculator or pass a force model, or leave other_forces out"
            )

    def _check_thermostat(self) -> None:
        if self.thermostat is None:
            return
        made_for, temperature = self.propagator.temperature_K, self.thermostat.temperature_K
        if made_for not in (None, temperature):
            raise ConfigError(
                f"{self.propagator.identity} was made for {made_for:g} K, but the thermostat has "
                f"{temperature:g} K; set that to the former"
            )
        rescales = isinstance(self.thermostat, Bussi)
        friction = 0.0 if rescales else units.FS_PER_PS / self.thermostat.relaxation_fs
        self.propagator.conditions.check(temperature, friction)

    @property
    def thermostat(self) -> Thermostat | None:
        """The thermostat; None at constant energy. Another one may be set at any time."""
        return self._setup.thermostat

    @thermostat.setter
    def thermostat(self, thermostat: Thermostat) -> None:
        if self._setup.thermostat is None:
            raise ConfigError("a run at constant energy has no thermostat to change; start another")
        self._setup.thermostat = thermostat
        self._check_thermostat()
        self._begin_checks()

    @property
    def stride_fs(self) -> float:
        """Length of a jump in fs. Another one may be set at any time."""
        return self._stride_fs

    @stride_fs.setter
    def stride_fs(self, stride_fs: float) -> None:
        self._check_stride(stride_fs)
        self._stride_fs = stride_fs

    @property
    def forces(self) -> ForceModel | None:
        """Force model of the engine. Setting it tells the loop that the engine's forces changed."""
        return self._setup.forces

    @forces.setter
    def forces(self, forces: ForceModel | None) -> None:
        self._setup.forces = self.propagator.potential if forces is None else forces
        self._states = [state.moved_to(state.positions) for state in self._states]
        for molecule in self._molecules:
            molecule.total = None
        self._compared = False
        self._check_options()

    def _compare_forces(self) -> None:
        """Refuse an engine with forces that jumps do not know, unless they were asked for."""
        self._compared = True
        potential = self.propagator.potential
        if self.other_forces == "refuse" and self.forces is not None and potential is not None:
            compare(self.forces, potential, self._states[0])

    def _begin_checks(self) -> None:
        for state, molecule in zip(self._states, self._molecules, strict=True):
            for check in molecule.checks:
                check.begin(state, self.thermostat)

    @property
    def states(self) -> tuple[State, ...]:
        """Present states of the molecules.

        Setting them is for an engine whose user has moved atoms: times and memories should be those
        of the old states. The total energy is taken anew where a state has changed.
        """
        return tuple(self._states)

    @states.setter
    def states(self, states: Sequence[State]) -> None:
        new = _checked(states)
        for molecule, old, state in zip(self._molecules, self._states, new, strict=True):
            if not np.array_equal(old.numbers, state.numbers):
                raise InputError(
                    f"molecule {molecule.index} has other atoms than at the start of the run; "
                    "start a new run"
                )
            if state is not old:
                self.propagator.check(state)
                molecule.total = molecule.before = None
                molecule.warm = False
        self._states = new

    def advance(self) -> bool:
        """Do one step of all molecules.

        Returns
        -------
        bool
            False if the run has stopped; the states are then those before the step.

        Raises
        ------
        PredictionError
            If a jump failed and the guard says so. The states are those before the step.
        """
        if self.stopped is not None:
            return False
        if not self._compared or (self.step and self.step % COMPARE_EVERY == 0):
            self._compare_forces()
        try:
            states = self._thermostatted(self._states, self.stride_fs, self._mover.jump)
            if self.md_steps_per_jump:
                duration = self.md_steps_per_jump * self.md_timestep_fs
                states = self._thermostatted(states, duration, self._mover.force_steps)
        except Stopped as stop:
            self.stopped = str(stop)
            return False
        self._states = states
        self._log.step += 1
        return True

    def _thermostatted(
        self,
        states: list[State],
        duration: float,
        move: Callable[[list[State], float], list[State]],
    ) -> list[State]:
        """Thermostat for half the time, move, thermostat for half the time."""
        states = [self._heat(state, 0.5 * duration) for state in states]
        if self._setup.needs_energy:
            states = self._with_totals(states)
        moved = move(states, duration)
        for molecule, state in zip(self._molecules, moved, strict=True):
            for check in molecule.checks:
                check.accepted(state, duration)
        return [self._heat(state, 0.5 * duration) for state in moved]

    def _heat(self, state: State, duration: float) -> State:
        if self.thermostat is not None:
            state = self.thermostat.apply(state, duration, self.corrections, self.rng)
        return self.corrections.stop_centre(state)

    def _with_totals(self, states: list[State]) -> list[State]:
        """Evaluate energies, and note the totals that a jump should keep."""
        states = with_energies(states, self.forces)
        for molecule, state in zip(self._molecules, states, strict=True):
            # A thermostat changes what is to be conserved.
            if self.thermostat is not None or molecule.total is None:
                molecule.total = state.total_energy
        return states

    def energies(self) -> list[float]:
        """Potential energies in eV of the present states, evaluated where they are not known.

        Raises
        ------
        ConfigError
            If there is no force model, or it has no energy.
        """
        self._states = with_energies(self._states, self.forces)
        return [float(state.energy) for state in self._states if state.energy is not None]

    def settings(self) -> dict[str, Any]:
        """Return what a continued run must have in common with the run it continues."""
        return {
            "propagator": self.propagator.identity,
            "stride_fs": self._began_with[1],
            "thermostat": self._began_with[0],
            "other_forces": self.other_forces,
            "corrections": repr(self.corrections),
            "checks": [check.name for check in self._molecules[0].checks],
            "md_steps_per_jump": self.md_steps_per_jump,
            "md_timestep_fs": self.md_timestep_fs,
            "random numbers": type(self.rng.bit_generator).__name__,
            "atomic numbers": [state.numbers.tolist() for state in self._states],
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the run goes on, for :func:`write_restart`."""
        return {
            "settings": self.settings(),
            "step": self.step,
            "states": [_stored(state) for state in self._states],
            "totals": [molecule.total for molecule in self._molecules],
            "fallbacks": [molecule.fallbacks for molecule in self._molecules],
            "warm": [molecule.warm for molecule in self._molecules],
            "befores": [
                None if molecule.before is None else _stored(molecule.before)
                for molecule in self._molecules
            ],
            "present stride_fs": self.stride_fs,
            "present thermostat": asdict(self.thermostat) if _is_ours(self.thermostat) else None,
            "rng": self.rng.bit_generator.state,
            "generator": self.generator.get_state().numpy(),
            "checks": [
                [check.state_dict() for check in molecule.checks] for molecule in self._molecules
            ],
            "events": self.events.to_json(),
            "propagator": self.propagator.state_dict(),
            "forces": model_state(self.forces),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`, to the last bit.

        Raises
        ------
        ModelFileError
            If that run had other settings.
        """
        settings = self.settings()
        for name, stored in state["settings"].items():
            if stored != settings[name]:
                raise ModelFileError(
                    f"the restart was written with {name} = {stored}, but this run has "
                    f"{settings[name]}; set up the run as it was, or start a new one from its last "
                    "frame"
                )
        self._log.step = state["step"]
        self._log.events = EventLog.from_json(state["events"])
        self._states = [State(**stored) for stored in state["states"]]
        for molecule in self._molecules:
            i = molecule.index
            before = state["befores"][i]
            molecule.total = state["totals"][i]
            molecule.fallbacks = state["fallbacks"][i]
            molecule.warm = state["warm"][i]
            molecule.before = None if before is None else State(**before)
            for check, content in zip(molecule.checks, state["checks"][i], strict=True):
                check.load_state_dict(content)
        self._stride_fs = state["present stride_fs"]
        if _is_ours(self.thermostat):
            self._setup.thermostat = replace(self.thermostat, **state["present thermostat"])
        self.rng.bit_generator.state = state["rng"]
        self.generator.set_state(torch.from_numpy(np.array(state["generator"])))
        self.propagator.load_state_dict(state["propagator"])
        load_model_state(self.forces, state["forces"])
        self.stopped = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a restart file, replacing an older one in one go."""
        write_restart(path, self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a restart file.

        Raises
        ------
        ModelFileError
            If it is missing or damaged, or belongs to a run with other settings.
        """
        self.load_state_dict(read_restart(path))


def _is_ours(thermostat: Thermostat | None) -> TypeGuard[Langevin | Bussi]:
    """Whether it is a thermostat whose settings can be stored."""
    return isinstance(thermostat, Langevin | Bussi)


def _stored(state: State) -> dict[str, Any]:
    return {item.name: getattr(state, item.name) for item in fields(State)}


def _checked_rng(rng: Any) -> np.random.Generator:
    if rng is None:
        return np.random.default_rng()
    if not isinstance(rng, np.random.Generator):
        raise ConfigError(
            f"rng is {rng!r}, whose state cannot be saved; pass numpy.random.default_rng(seed)"
        )
    return rng


def _checked(states: Sequence[State]) -> list[State]:
    if len(states) == 0:
        raise InputError("there are no molecules; pass a list with at least one state")
    for i, state in enumerate(states):
        if not np.isfinite([state.positions, state.velocities]).all():
            raise InputError(
                f"molecule {i} has positions or velocities that are not finite; start from finite "
                "ones"
            )
    return list(states)
