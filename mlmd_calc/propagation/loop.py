"""The loop behind every engine: draw a jump, judge it, correct it, thermostat it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeGuard

import ase.io
import numpy as np
import torch

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, InputError, ModelFileError, PredictionError
from mlmd_calc.propagation.corrections import Corrections
from mlmd_calc.propagation.events import Event, EventLog
from mlmd_calc.propagation.forces import ForceModel, load_model_state, model_state
from mlmd_calc.propagation.guards import Guard, Temperature, default_checks
from mlmd_calc.propagation.other_forces import (
    COMPARE_EVERY,
    OtherForces,
    checked_choice,
    compare,
    kicked,
    with_other_forces,
)
from mlmd_calc.propagation.propagator import Propagator
from mlmd_calc.propagation.proposals import (
    Action,
    BrokenPropagatorError,
    Finding,
    Proposal,
    Rejected,
    propose_force_steps,
    propose_jumps,
)
from mlmd_calc.propagation.restart import read_restart, write_restart
from mlmd_calc.propagation.state import State
from mlmd_calc.propagation.thermostats import Bussi, Langevin, Thermostat, draw_velocities


class _Stopped(Exception):  # noqa: N818
    """Ends a run cleanly."""


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
        self.propagator = propagator
        self._stride_fs = stride_fs
        self._thermostat = thermostat
        self._began_with = repr(thermostat), stride_fs
        self.corrections = Corrections() if corrections is None else corrections
        if not propagator.gives_velocities:
            # Velocities that are drawn anew have no momentum to keep, nor tell where it leads.
            self.corrections = replace(
                self.corrections, centre_of_mass=False, momentum=False, angular_momentum=False
            )
        self.guard = Guard() if guard is None else guard
        self.other_forces = checked_choice(other_forces)
        self._forces = propagator.potential if forces is None else forces
        self.md_steps_per_jump = md_steps_per_jump
        self.md_timestep_fs = md_timestep_fs
        self.rng = _checked_rng(rng)
        self.generator = torch.Generator()
        self.generator.manual_seed(int(self.rng.integers(2**62)))
        self.step = 0
        self.events = EventLog()
        self.stopped: str | None = None
        checks = self.guard.checks
        if checks is None:
            usual = default_checks(energies=self._has_usable_energy)
            if not propagator.gives_velocities:
                # What is drawn has the temperature of the thermostat, but no memory to average.
                usual = tuple(check for check in usual if not isinstance(check, Temperature))
            checks = (*usual, *propagator.checks())
        self._needs_twin = any(check.needs_twin for check in checks)
        self._needs_energy = self.corrections.rescale_energy or any(
            check.needs_energy for check in checks
        )
        self._check_options()
        self._states = _checked(states)
        for state in self._states:
            propagator.check(state)
        self._compared = False
        if self._forces is not None:
            self._compare_forces()
        self._checks = [deepcopy(checks) for _ in self._states]
        self._begin_checks()
        self._totals: list[float | None] = [None] * len(self._states)
        self._fallbacks = [0] * len(self._states)
        self._warm = [False] * len(self._states)
        self._befores: list[State | None] = [None] * len(self._states)

    @property
    def _has_usable_energy(self) -> bool:
        """Whether energies can tell good jumps from bad ones."""
        if self.corrections.rescale_energy:
            return True
        known = bool(getattr(self._forces, "has_energy", False))
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
        if self.forces is None and (self._needs_energy or self.md_steps_per_jump):
            raise ConfigError(
                "energy rescaling, the energy check and force-based steps need forces; attach a "
                "calculator or pass a force model"
            )
        if self.other_forces == "kick" and (
            self._forces is None
            or self.propagator.potential is None
            or not self.propagator.gives_velocities
        ):
            raise ConfigError(
                f"other_forces='kick' needs forces of the engine and a propagator that tells its "
                f"potential and predicts velocities, which {self.propagator.identity} may not; "
                "attach a calculator or pass a force model, or leave other_forces out"
            )
        if self._needs_twin and (
            self.propagator.stochastic or not self.corrections.random_rotation
        ):
            raise ConfigError(
                "the rotation defect can be measured only with random_rotation=True and a "
                "propagator that is not stochastic; leave out the check RotationDefect"
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
        return self._thermostat

    @thermostat.setter
    def thermostat(self, thermostat: Thermostat) -> None:
        if self._thermostat is None:
            raise ConfigError("a run at constant energy has no thermostat to change; start another")
        self._thermostat = thermostat
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
        return self._forces

    @forces.setter
    def forces(self, forces: ForceModel | None) -> None:
        self._forces = self.propagator.potential if forces is None else forces
        self._states = [state.moved_to(state.positions) for state in self._states]
        self._totals = [None] * len(self._states)
        self._compared = False
        self._check_options()

    def _compare_forces(self) -> None:
        """Refuse an engine with forces that jumps do not know, unless they were asked for."""
        self._compared = True
        potential = self.propagator.potential
        if self.other_forces == "refuse" and self._forces is not None and potential is not None:
            compare(self._forces, potential, self._states[0])

    def _begin_checks(self) -> None:
        for state, own in zip(self._states, self._checks, strict=True):
            for check in own:
                check.begin(state, self.propagator, self.thermostat)

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
        for i, (old, state) in enumerate(zip(self._states, new, strict=True)):
            if not np.array_equal(old.numbers, state.numbers):
                raise InputError(
                    f"molecule {i} has other atoms than at the start of the run; start a new run"
                )
            if state is not old:
                self.propagator.check(state)
                self._totals[i] = self._befores[i] = None
                self._warm[i] = False
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
            states = self._thermostatted(self._states, self.stride_fs, self._jump)
            if self.md_steps_per_jump:
                duration = self.md_steps_per_jump * self.md_timestep_fs
                states = self._thermostatted(states, duration, self._force_steps)
        except _Stopped as stop:
            self.stopped = str(stop)
            return False
        self._states = states
        self.step += 1
        return True

    def _thermostatted(
        self,
        states: list[State],
        duration: float,
        move: Callable[[list[State], float], list[State]],
    ) -> list[State]:
        states = [self._heat(state, 0.5 * duration) for state in states]
        if self._needs_energy:
            states = self._with_energies(states)
            # A thermostat changes what is to be conserved.
            known = self._totals if self.thermostat is None else [None] * len(states)
            self._totals = [
                _total_energy(state) if total is None else total
                for state, total in zip(states, known, strict=True)
            ]
        moved = move(states, duration)
        for state, checks in zip(moved, self._checks, strict=True):
            for check in checks:
                check.accepted(state, duration)
        return [self._heat(state, 0.5 * duration) for state in moved]

    def _heat(self, state: State, duration: float) -> State:
        if self.thermostat is not None:
            state = self.thermostat.apply(state, duration, self.corrections, self.rng)
        return self.corrections.stop_centre(state)

    def _with_energies(self, states: list[State]) -> list[State]:
        """Evaluate the energies that are not known."""
        unknown = [state.structure for state in states if state.energy is None]
        if not unknown:
            return states
        assert self._forces is not None
        energies = iter([result.energy for result in self._forces.evaluate(unknown, ("energy",))])
        states = [
            replace(state, energy=next(energies)) if state.energy is None else state
            for state in states
        ]
        if any(state.energy is None for state in states):
            raise ConfigError(
                f"{type(self._forces).__qualname__} has no energy; leave out energy rescaling and "
                "the energy check, or use a model with an energy"
            )
        return states

    def energies(self) -> list[float]:
        """Potential energies in eV of the present states, evaluated where they are not known.

        Raises
        ------
        ConfigError
            If there is no force model, or it has no energy.
        """
        if self._forces is None:
            raise ConfigError("there is no force model that knows energies; pass one to the loop")
        self._states = self._with_energies(self._states)
        return [float(state.energy) for state in self._states if state.energy is not None]

    def _jump(self, states: list[State], stride: float) -> list[State]:
        """Jump with all molecules, in two halves where other forces kick them."""
        if self.other_forces != "kick":
            return self._jump_once(states, stride)
        for _ in range(2):
            states = self._jump_once(self._with_other_forces(states), 0.5 * stride)
        return states

    def _jump_once(self, states: list[State], stride: float) -> list[State]:
        """Jump with all molecules; those that fail are rescued one by one."""
        ready = [i for i, state in enumerate(states) if self._is_warm(i, state)]
        reached = self._reach(ready, [states[i] for i in ready], stride, self.guard.halvings)
        results = dict(zip(ready, reached, strict=True))
        moved = []
        for molecule, state in enumerate(states):
            result = results.get(molecule)
            if isinstance(result, State):
                self._fallbacks[molecule] = 0
                # Energies tell at once whether the end of a jump is sound.
                self._befores[molecule] = None if self._needs_energy else state
                moved.append(result)
            elif result is None:
                moved.append(self._warm_up(molecule, state, stride))
            else:
                moved.append(self._rescue(molecule, state, stride, result))
        return moved

    def _is_warm(self, molecule: int, state: State) -> bool:
        """Whether a molecule has been as warm as those of the training, at least once."""
        self._warm[molecule] |= state.kinetic_temperature >= self._coldest_K(state)
        return self._warm[molecule]

    def _coldest_K(self, state: State) -> float:  # noqa: N802
        warming = self.thermostat is not None and self._forces is not None
        return self.propagator.conditions.coldest_K(len(state), warming=warming)

    def _warm_up(self, molecule: int, state: State, stride: float) -> State:
        """Take force-based steps instead of a jump from a state that is too cold for one."""
        coldest = self._coldest_K(state)
        reason = (
            f"molecule {molecule} has {state.kinetic_temperature:.3g} K, and the propagator knows "
            f"none below {coldest:.3g} K"
        )
        if self.thermostat is None or self._forces is None:
            missing = "a thermostat" if self.thermostat is None else "forces"
            raise InputError(
                f"{reason}; without {missing} it cannot be warmed up. Give it velocities, for "
                "instance with mlmd_calc.md.draw_momenta or context.setVelocitiesToTemperature"
            )
        finding = Finding("cold", state.kinetic_temperature, coldest, reason)
        self._note(molecule, state, finding, "fallback")
        return self._force_steps([state], stride, [molecule])[0]

    def _with_other_forces(self, states: list[State]) -> list[State]:
        """Evaluate what acts besides the propagator's potential."""
        assert self._forces is not None
        assert self.propagator.potential is not None
        return with_other_forces(states, self._forces, self.propagator.potential)

    def _reach(
        self, molecules: list[int], states: list[State], stride: float, halvings: int
    ) -> list[State | Rejected]:
        """Draw jumps until each is accepted or nothing is left to try but forces."""
        results = self._draw_jumps(molecules, states, stride)
        varies = self.propagator.stochastic or self.corrections.random_rotation
        for _ in range(self.guard.redraws if varies else 0):
            again = self._put_back(molecules, states, results, "redraw")
            tries = self._draw_jumps(
                [molecules[k] for k in again], [states[k] for k in again], stride
            )
            for k, result in zip(again, tries, strict=True):
                results[k] = result
        if halvings and 0.5 * stride in self.propagator.strides:
            for k in self._put_back(molecules, states, results, "shorter"):
                results[k] = self._in_halves(molecules[k], states[k], stride, halvings)
        return results

    def _put_back(
        self,
        molecules: list[int],
        states: list[State],
        results: list[State | Rejected],
        action: str,
    ) -> list[int]:
        """Record the jumps that are to be drawn again; return which they are."""
        again = []
        for k, result in enumerate(results):
            if isinstance(result, Rejected) and self._action(result) == "redraw":
                self._record(molecules[k], states[k], result, action)
                again.append(k)
        return again

    def _in_halves(
        self, molecule: int, state: State, stride: float, halvings: int
    ) -> State | Rejected:
        for _ in range(2):
            result = self._reach([molecule], [state], 0.5 * stride, halvings - 1)[0]
            if isinstance(result, Rejected):
                return result
            state = result
        return state

    def _rescue(self, molecule: int, state: State, stride: float, rejected: Rejected) -> State:
        """Take force-based steps instead of a jump, or end the run."""
        hopeless = self.forces is None or self._fallbacks[molecule] >= self.guard.max_fallbacks
        if self._action(rejected) in ("raise", "stop") or hopeless:
            raise self._end(molecule, state, rejected)
        self._record(molecule, state, rejected, "fallback")
        self._fallbacks[molecule] += 1
        before = self._befores[molecule]
        self._befores[molecule] = None
        if before is not None:
            # The state, the end of a jump that nothing was found wrong with, may be to blame.
            state, stride = before, stride + state.time - before.time
        return self._force_steps([state], stride, [molecule])[0]

    def _force_steps(
        self, states: list[State], duration: float, molecules: list[int] | None = None
    ) -> list[State]:
        """Move by force-based steps; end the run if they fail."""
        assert self.forces is not None
        molecules = list(range(len(states))) if molecules is None else molecules
        with self._ending(molecules, states):
            proposals = propose_force_steps(
                self.forces, states, duration, self.md_timestep_fs, self.generator
            )
        moved = []
        results = self._judge(molecules, proposals)
        for molecule, state, result in zip(molecules, states, results, strict=True):
            if isinstance(result, Rejected):
                raise self._end(molecule, state, result)
            moved.append(result)
        return moved

    def _draw_jumps(
        self, molecules: list[int], states: list[State], stride: float
    ) -> list[State | Rejected]:
        kicking = self.other_forces == "kick"
        starts = [kicked(state, 0.5 * stride) for state in states] if kicking else states
        with self._ending(molecules, states):
            proposals = propose_jumps(
                self.propagator,
                starts,
                stride,
                self.generator,
                rotate=self.corrections.random_rotation,
                twins=self._needs_twin,
            )
        proposals = [self._relaxed(proposal) for proposal in proposals]
        if not self.propagator.gives_velocities:
            proposals = [self._with_velocities(proposal) for proposal in proposals]
        return self._judge(molecules, proposals, kick=kicking)

    def _relaxed(self, proposal: Proposal | Rejected) -> Proposal | Rejected:
        if isinstance(proposal, Rejected):
            return proposal
        try:
            after = self.propagator.relax(proposal.after, self.forces, self.thermostat, self.rng)
        except (InputError, PredictionError) as error:
            reason = f"the proposed structure cannot be relaxed: {error}"
            finding = Finding("relaxation", np.nan, 0.0, reason)
            return Rejected(finding, proposal.after.positions)
        return replace(proposal, after=after)

    @contextmanager
    def _ending(self, molecules: list[int], states: list[State]) -> Iterator[None]:
        """End the run if a propagator is broken."""
        try:
            yield
        except BrokenPropagatorError as error:
            # With twins the molecules are counted twice.
            k = error.molecule % len(states)
            finding = Finding("propagator", np.nan, 0.0, str(error), "raise")
            end = self._end(molecules[k], states[k], Rejected(finding, error.positions))
            cause = error.__cause__
            raise (cause if isinstance(cause, (ConfigError, InputError)) else end) from cause

    def _with_velocities(self, proposal: Proposal | Rejected) -> Proposal | Rejected:
        if isinstance(proposal, Rejected):
            return proposal
        assert self.thermostat is not None
        velocities = draw_velocities(proposal.after, self.thermostat.temperature_K, self.rng)
        return replace(proposal, after=replace(proposal.after, velocities=velocities))

    def _judge(
        self, molecules: list[int], proposals: list[Proposal | Rejected], *, kick: bool = False
    ) -> list[State | Rejected]:
        """Judge and correct jumps, and give them the kick after them."""
        results = [
            self._judge_motion(molecule, proposal) if isinstance(proposal, Proposal) else proposal
            for molecule, proposal in zip(molecules, proposals, strict=True)
        ]
        if kick:
            results = self._completed(molecules, results, self._kicked_after)
        if self._needs_energy:
            results = self._completed(molecules, results, self._judged_by_energy)
        return [result.after if isinstance(result, Proposal) else result for result in results]

    def _judge_motion(self, molecule: int, proposal: Proposal) -> Proposal | Rejected:
        after = proposal.after
        wrong = int(np.count_nonzero(~np.isfinite([after.positions, after.velocities])))
        if wrong:
            reason = f"{wrong} coordinates and velocities are not finite"
            return Rejected(Finding("finite", wrong, 0.0, reason), after.positions)
        rejected = self._run_checks(molecule, proposal, with_energy=False)
        if rejected is not None:
            return rejected
        return replace(proposal, after=self.corrections.apply(proposal.before, after))

    def _run_checks(
        self, molecule: int, proposal: Proposal, *, with_energy: bool
    ) -> Rejected | None:
        for check in self._checks[molecule]:
            finding = check.judge(proposal) if check.needs_energy == with_energy else None
            if finding is None:
                continue
            rejected = Rejected(finding, proposal.after.positions)
            if finding.action != "accept":
                return rejected
            self._record(molecule, proposal.before, rejected, "accept")
        return None

    def _completed(
        self,
        molecules: list[int],
        results: list[Proposal | Rejected],
        complete: Callable[[list[int], list[Proposal]], list[Proposal | Rejected]],
    ) -> list[Proposal | Rejected]:
        """Do something that needs forces to the jumps that have passed so far."""
        passed = [
            (molecule, result)
            for molecule, result in zip(molecules, results, strict=True)
            if isinstance(result, Proposal)
        ]
        if not passed:
            return results
        try:
            jumps = [jump for _, jump in passed]
            done = iter(complete([molecule for molecule, _ in passed], jumps))
        except ConfigError:
            raise
        except Exception as error:
            if len(results) > 1:
                # One of them is to blame.
                return [
                    self._completed([molecule], [result], complete)[0]
                    for molecule, result in zip(molecules, results, strict=True)
                ]
            molecule, jump = passed[0]
            reason = f"energy or forces cannot be evaluated: {error}"
            rejected = Rejected(Finding("energy", np.nan, np.nan, reason), jump.after.positions)
            if isinstance(error, (InputError, PredictionError)):
                return [rejected]
            self._record(molecule, jump.before, rejected, "raise")
            raise
        return [next(done) if isinstance(result, Proposal) else result for result in results]

    def _kicked_after(
        self, molecules: list[int], jumps: list[Proposal]
    ) -> list[Proposal | Rejected]:
        """Let what the propagator does not know act after the jumps, as it did before them."""
        afters = self._with_other_forces([jump.after for jump in jumps])
        return [
            replace(jump, after=kicked(after, 0.5 * jump.stride))
            for jump, after in zip(jumps, afters, strict=True)
        ]

    def _judged_by_energy(
        self, molecules: list[int], jumps: list[Proposal]
    ) -> list[Proposal | Rejected]:
        """Evaluate, judge and correct the energies of jumps."""
        afters = self._with_energies([jump.after for jump in jumps])
        return [
            self._judge_energy(molecule, replace(jump, after=after))
            for molecule, jump, after in zip(molecules, jumps, afters, strict=True)
        ]

    def _judge_energy(self, molecule: int, proposal: Proposal) -> Proposal | Rejected:
        after, total = proposal.after, self._totals[molecule]
        assert total is not None
        proposal = replace(proposal, energy_error=_total_energy(after) - total)
        rejected = self._run_checks(molecule, proposal, with_energy=True)
        if rejected is not None or not self.corrections.rescale_energy:
            return rejected or proposal
        scaled = self.corrections.rescale(after, total)
        if scaled is None:
            potential = float(after.energy or 0.0)
            reason = (
                f"the potential energy {potential:.6g} eV leaves no kinetic energy to internal "
                f"motion at a total energy of {total:.6g} eV"
            )
            return Rejected(Finding("energy", potential, total, reason), after.positions)
        return replace(proposal, after=scaled)

    def _action(self, rejected: Rejected) -> Action:
        return rejected.finding.action or self.guard.failure

    def _record(self, molecule: int, before: State, rejected: Rejected, action: str) -> None:
        """Note an intervention, and write the frame that caused it."""
        event = self._note(molecule, before, rejected.finding, action)
        frame = before.positions if rejected.positions is None else rejected.positions
        # What has another number of atoms is written with unknown elements.
        numbers = before.numbers if len(frame) == len(before) else np.zeros(len(frame), dtype=int)
        atoms = ase.Atoms(numbers, frame, info=asdict(event))
        ase.io.write(Path(self.guard.frames_file), atoms, format="extxyz", append=True)

    def _note(self, molecule: int, before: State, finding: Finding, action: str) -> Event:
        event = Event(
            step=self.step,
            time_fs=before.time,
            molecule=molecule,
            check=finding.check,
            value=finding.value,
            limit=finding.limit,
            reason=finding.reason,
            action=action,
        )
        self.events.append(event)
        return event

    def _end(self, molecule: int, before: State, rejected: Rejected) -> Exception:
        """Record the end of the run and return what to raise."""
        action = self._action(rejected)
        if action not in ("raise", "stop"):
            action = self.guard.last
        self._record(molecule, before, rejected, action)
        which = f" of molecule {molecule}" if len(self._states) > 1 else ""
        reason = (
            f"step {self.step}{which} at {before.time:g} fs failed: {rejected.finding.reason} (the "
            f"rejected frame is the last in {os.fspath(self.guard.frames_file)})"
        )
        return _Stopped(reason) if action == "stop" else PredictionError(reason)

    def settings(self) -> dict[str, Any]:
        """Return what a continued run must have in common with the run it continues."""
        return {
            "propagator": self.propagator.identity,
            "stride_fs": self._began_with[1],
            "thermostat": self._began_with[0],
            "other_forces": self.other_forces,
            "corrections": repr(self.corrections),
            "checks": [check.name for check in self._checks[0]],
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
            "totals": self._totals,
            "fallbacks": self._fallbacks,
            "warm": self._warm,
            "befores": [None if state is None else _stored(state) for state in self._befores],
            "present stride_fs": self.stride_fs,
            "present thermostat": asdict(self.thermostat) if _is_ours(self.thermostat) else None,
            "rng": self.rng.bit_generator.state,
            "generator": self.generator.get_state().numpy(),
            "checks": [[check.state_dict() for check in own] for own in self._checks],
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
        self.step = state["step"]
        self._states = [State(**stored) for stored in state["states"]]
        self._totals = list(state["totals"])
        self._fallbacks = list(state["fallbacks"])
        self._warm = list(state["warm"])
        self._befores = [None if old is None else State(**old) for old in state["befores"]]
        self._stride_fs = state["present stride_fs"]
        if _is_ours(self._thermostat):
            self._thermostat = replace(self._thermostat, **state["present thermostat"])
        self.rng.bit_generator.state = state["rng"]
        self.generator.set_state(torch.from_numpy(np.array(state["generator"])))
        for own, stored in zip(self._checks, state["checks"], strict=True):
            for check, content in zip(own, stored, strict=True):
                check.load_state_dict(content)
        self.events = EventLog.from_json(state["events"])
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


def _total_energy(state: State) -> float:
    assert state.energy is not None
    return state.energy + state.kinetic_energy
