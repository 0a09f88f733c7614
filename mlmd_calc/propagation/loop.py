"""The loop behind every engine: thermostat, jump, thermostat.

How a jump is proposed is in :mod:`.propose`, how it is judged and corrected in :mod:`.judging`, and
what is done with one that fails in :mod:`.acceptance`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.io.restart import read_restart, write_restart
from mlmd_calc.options import refuse_keywords
from mlmd_calc.propagation.acceptance import Mover, Stopped
from mlmd_calc.propagation.balance import Balance
from mlmd_calc.propagation.bookkeeping import Logbook, Molecule
from mlmd_calc.propagation.constraints import with_constrained_velocities
from mlmd_calc.propagation.continuation import (
    check_settings,
    restore_molecules,
    restore_setup,
    stored_molecules,
    stored_setup,
)
from mlmd_calc.propagation.corrections import Corrections
from mlmd_calc.propagation.events import EventLog
from mlmd_calc.propagation.forces import ForceModel
from mlmd_calc.propagation.guards import Guard
from mlmd_calc.propagation.loop_options import LoopOptions
from mlmd_calc.propagation.other_forces import COMPARE_EVERY
from mlmd_calc.propagation.propagator import Propagator
from mlmd_calc.propagation.proposals import Proposal, Times
from mlmd_calc.propagation.setup import Setup
from mlmd_calc.propagation.state import FloatArray, State
from mlmd_calc.propagation.thermostats import Thermostat

if TYPE_CHECKING:
    from typing_extensions import Unpack

_Move: TypeAlias = tuple[Times, Callable[[list[State], Times], list[Proposal]]]
"""Times of the frames of a part of a step, and what moves the molecules."""


class JumpLoop:
    """Dynamics of one or more molecules made of long jumps.

    A step is a jump of every molecule, then a number of force-based steps if these are wanted. The
    thermostat acts for half the time before and for half the time after each of the two.

    Parameters
    ----------
    states
        Molecules to move, of any sizes, equal or different; one call of the propagator moves all.
    propagator
        Makes the jumps.
    stride_fs
        Length of a jump in fs.
    thermostat
        None for constant energy.
    forces
        Force model for energies, fallbacks and force-based steps; None: the propagator's potential,
        if it tells it.
    md_timestep_fs
        Time step of force-based steps and fallbacks; shortened if it does not divide the stride.
    **options
        See :class:`~.loop_options.LoopOptions`.

    Attributes
    ----------
    setup
        How jumps are made.
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
        forces: ForceModel | None = None,
        md_timestep_fs: float = 0.5,
        **options: Unpack[LoopOptions],
    ) -> None:
        refuse_keywords(options, LoopOptions.__annotations__, type(self).__name__)
        self.setup = Setup(
            propagator=propagator,
            stride_fs=stride_fs,
            thermostat=thermostat,
            corrections=options.get("corrections") or Corrections(),
            guard=options.get("guard") or Guard(),
            forces=propagator.potential if forces is None else forces,
            other_forces=options.get("other_forces", "refuse"),
            md_steps_per_jump=options.get("md_steps_per_jump", 0),
            md_timestep_fs=md_timestep_fs,
            frames_per_jump=options.get("frames_per_jump", 1),
            rng=_checked_rng(options.get("rng")),
        )
        self.stopped: str | None = None
        self._states = _checked(states)
        self._frames: list[list[State]] = [[] for _ in self._states]
        for state in self._states:
            propagator.check(state)
        self._compared = False
        if self.setup.forces is not None:
            self._compare_forces()
        self._molecules = [
            Molecule(i, deepcopy(self.setup.checks), balance=self._balance_of(state))
            for i, state in enumerate(self._states)
        ]
        self._log = Logbook(self.setup.guard.frames_file)
        self._mover = Mover(self.setup, self._molecules, self._log)
        self._begin_checks()

    @property
    def propagator(self) -> Propagator:
        """What makes the jumps."""
        return self.setup.propagator

    @property
    def step(self) -> int:
        """Steps done."""
        return self._log.step

    @property
    def events(self) -> EventLog:
        """What the guard found and did."""
        return self._log.events

    @property
    def thermostat(self) -> Thermostat | None:
        """The thermostat; None at constant energy. Another one may be set at any time."""
        return self.setup.thermostat

    @thermostat.setter
    def thermostat(self, thermostat: Thermostat) -> None:
        if self.setup.thermostat is None:
            raise ConfigError("a run at constant energy has no thermostat to change; start another")
        self.setup.check_thermostat(thermostat)
        self.setup.thermostat = thermostat
        self.setup.window = None
        self._begin_checks()

    @property
    def stride_fs(self) -> float:
        """Length of a jump in fs. Another one may be set at any time."""
        return self.setup.stride_fs

    @stride_fs.setter
    def stride_fs(self, stride_fs: float) -> None:
        self.setup.change_stride(stride_fs)

    @property
    def forces(self) -> ForceModel | None:
        """Force model of the engine. Setting it tells the loop that the engine's forces changed."""
        return self.setup.forces

    @forces.setter
    def forces(self, forces: ForceModel | None) -> None:
        used = self.propagator.potential if forces is None else forces
        self.setup.check_forces(used)
        self.setup.forces = used
        self._states = [state.moved_to(state.positions) for state in self._states]
        for molecule in self._molecules:
            molecule.total = None
        self.setup.window = None
        self._compared = False

    def compare_again(self) -> None:
        """Compare the engine's forces with the propagator's before the next step, once."""
        self._compared = False

    def _compare_forces(self) -> None:
        self.setup.compare_forces(self._states[0])
        self._compared = True

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

    def drift_removed(self, velocities: Sequence[FloatArray]) -> None:
        """Take over velocities less the motion of the centre of mass; molecules stay warm."""
        pairs = zip(self._states, velocities, strict=True)
        self._states = [replace(state, velocities=array) for state, array in pairs]
        for molecule in self._molecules:
            molecule.total = None

    @property
    def inner_frames(self) -> tuple[tuple[State, ...], ...]:
        """Frames inside the last step that this loop has done, of each molecule."""
        last = -1 if self.setup.frames_per_jump > 1 else 0
        return tuple(tuple(frames[:last]) for frames in self._frames)

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
        self.setup.measure_window(self._states[0])
        moves: list[_Move] = [(self.setup.jump_times_fs, self._mover.jump)]
        if self.setup.md_steps_per_jump:
            moves.append((self.setup.md_times_fs, self._mover.force_steps))
        states = self._states
        frames: list[list[State]] = [[] for _ in states]
        try:
            for times, move in moves:
                states = self._thermostatted(states, times, move, frames)
        except Stopped as stop:
            self.stopped = str(stop)
            return False
        self._states, self._frames = states, frames
        self._log.step += 1
        return True

    def _thermostatted(
        self,
        states: list[State],
        times: Times,
        move: Callable[[list[State], Times], list[Proposal]],
        frames: list[list[State]],
    ) -> list[State]:
        """Thermostat for half the time, move, thermostat for half the time; append the frames."""
        duration = times[-1]
        states = [
            self._heat(self._balanced(molecule, state, 0.5 * duration), 0.5 * duration)
            for molecule, state in zip(self._molecules, states, strict=True)
        ]
        if self.setup.needs_energy:
            states = self._with_totals(states)
        moved = move(states, times)
        for molecule, jump in zip(self._molecules, moved, strict=True):
            for check in molecule.checks:
                check.accepted(jump.after, duration)
        states = [
            self._balanced(molecule, self._heat(jump.after, 0.5 * duration), 0.5 * duration)
            for molecule, jump in zip(self._molecules, moved, strict=True)
        ]
        for passed, jump, state in zip(frames, moved, states, strict=True):
            passed += [*jump.inner, state]
        return states

    def _heat(self, state: State, duration: float) -> State:
        if self.thermostat is not None:
            state = self.thermostat.apply(state, duration, self.setup.corrections, self.setup.rng)
            state = with_constrained_velocities(state, self.forces)
        return self.setup.corrections.stop_centre(state)

    def _balance_of(self, state: State) -> Balance | None:
        corrections = self.setup.corrections
        if not corrections.balance_elements:
            return None
        return Balance.of(state, fix_centre=corrections.fix_centre)

    def _balanced(self, molecule: Molecule, state: State, duration: float) -> State:
        """Give elements their share of the kinetic energy."""
        if molecule.balance is None or self.thermostat is None:
            return state
        state = molecule.balance.apply(state, self.thermostat, duration)
        return self.setup.corrections.stop_centre(state)

    def _with_totals(self, states: list[State]) -> list[State]:
        """Evaluate energies, and note the totals that a jump should keep."""
        states = self.setup.with_energies(states)
        for molecule, state in zip(self._molecules, states, strict=True):
            # A thermostat changes what is to be conserved.
            if self.thermostat is not None or molecule.total is None:
                molecule.total = state.total_energy
        return states

    @property
    def element_frictions(self) -> tuple[dict[str, float], ...]:
        """Friction in 1/ps by which each element is kept at its share, of each molecule.

        Empty if nothing keeps it, see :class:`Corrections`.
        """
        return tuple(
            {} if molecule.balance is None else molecule.balance.frictions_per_ps
            for molecule in self._molecules
        )

    def energies(self) -> list[float]:
        """Potential energies in eV of the present states, evaluated where they are not known.

        Raises
        ------
        ConfigError
            If no force model tells them.
        """
        self._states = self.setup.with_energies(self._states)
        return [float(state.energy) for state in self._states if state.energy is not None]

    def settings(self) -> dict[str, Any]:
        """Return what a continued run must have in common with the run it continues."""
        numbers = [state.numbers.tolist() for state in self._states]
        return {**self.setup.settings(), "atomic numbers": numbers}

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the run goes on, for :func:`write_restart`."""
        return {
            "settings": self.settings(),
            "step": self.step,
            "events": self.events.to_json(),
            **stored_molecules(self._molecules, self._states),
            **stored_setup(self.setup),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`, to the last bit.

        Raises
        ------
        ModelFileError
            If that run had other settings.
        """
        check_settings(state["settings"], self.settings())
        self._log.step = state["step"]
        self._log.events = EventLog.from_json(state["events"])
        self._states = restore_molecules(self._molecules, state)
        self._frames = [[] for _ in self._states]
        restore_setup(self.setup, state)
        self.stopped = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a restart file, replacing an older one in one go."""
        write_restart(path, self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a restart file; errors as `read_restart` and `load_state_dict`."""
        self.load_state_dict(read_restart(path))


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
