"""What is done with jumps that fail: drawn again, halved, replaced by forces, or the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from mlmd_calc.errors import ConfigError, InputError, PredictionError
from mlmd_calc.propagation.bookkeeping import Logbook, Molecule
from mlmd_calc.propagation.constraints import constraints_of, with_constrained_velocities
from mlmd_calc.propagation.judging import Judge
from mlmd_calc.propagation.other_forces import kicked
from mlmd_calc.propagation.proposals import Action, Finding, Proposal, Rejected, Times, halved
from mlmd_calc.propagation.propose import (
    BrokenPropagatorError,
    propose_force_steps,
    propose_jumps,
)
from mlmd_calc.propagation.relaxation import ROUNDS
from mlmd_calc.propagation.setup import Setup
from mlmd_calc.propagation.state import State
from mlmd_calc.propagation.thermostats import draw_velocities


class Stopped(Exception):  # noqa: N818
    """Ends a run cleanly."""


class Mover:
    """Moves molecules by jumps that are accepted, or by forces where none is."""

    def __init__(self, setup: Setup, molecules: list[Molecule], log: Logbook) -> None:
        self._setup = setup
        self._molecules = molecules
        self._log = log
        self._judge = Judge(setup, log)

    def jump(self, states: list[State], times: Times) -> list[Proposal]:
        """Jump with all molecules, in two halves where other forces kick them.

        Parameters
        ----------
        states
            Where to start from.
        times
            Times of frames inside the jumps, and the length of the jumps.

        Returns
        -------
        list of Proposal
            What was accepted, or done in the place of a jump.

        Raises
        ------
        Stopped, PredictionError
            If a jump fails for good, as the guard wants it.
        """
        if self._setup.other_forces != "kick":
            return self._jump_once(states, times)
        first, second = halved(times)
        begun = self._jump_once(self._judge.with_other_forces(states), first)
        middle = self._judge.with_other_forces([jump.after for jump in begun])
        ended = self._jump_once(middle, second)
        return [a.then(b, times) for a, b in zip(begun, ended, strict=True)]

    def force_steps(
        self, states: list[State], times: Times, molecules: list[Molecule] | None = None
    ) -> list[Proposal]:
        """Move by force-based steps; results and errors as of :meth:`jump`.

        Parameters
        ----------
        states, times
            As of :meth:`jump`.
        molecules
            Which molecules these are; None: all.
        """
        forces = self._setup.forces
        assert forces is not None
        molecules = self._molecules if molecules is None else molecules
        with self._ending(molecules, states):
            proposals = propose_force_steps(
                forces,
                states,
                times,
                self._setup.md_timestep_fs,
                self._setup.generator,
                shared=self._setup.shares_forces,
            )
        moved = []
        results = self._judge.judge(molecules, proposals)
        for molecule, state, result in zip(molecules, states, results, strict=True):
            if isinstance(result, Rejected):
                raise self._end(molecule, state, result)
            moved.append(result)
        return moved

    # ---- from a jump to its rescue -----------------------------------------------------------

    def _jump_once(self, states: list[State], times: Times) -> list[Proposal]:
        """Jump with all molecules; those that fail are rescued one by one."""
        pairs = list(zip(self._molecules, states, strict=True))
        ready = [(molecule, state) for molecule, state in pairs if self._is_warm(molecule, state)]
        reached = self._reach(
            [molecule for molecule, _ in ready],
            [state for _, state in ready],
            times,
            self._setup.guard.halvings,
        )
        results = {
            molecule.index: result for (molecule, _), result in zip(ready, reached, strict=True)
        }
        moved = []
        for molecule, state in pairs:
            result = results.get(molecule.index)
            if isinstance(result, Proposal):
                molecule.fallbacks = 0
                # Energies tell at once whether the end of a jump is sound.
                confirmed = self._setup.needs_energy or self._setup.window is not None
                molecule.before = None if confirmed else state
                moved.append(result)
            elif result is None:
                moved.append(self._warm_up(molecule, state, times))
            else:
                moved.append(self._rescue(molecule, state, times, result))
        return moved

    def _reach(
        self, molecules: list[Molecule], states: list[State], times: Times, halvings: int
    ) -> list[Proposal | Rejected]:
        """Draw jumps until each is accepted or nothing is left to try but forces."""
        propagator, guard = self._setup.propagator, self._setup.guard
        results = self._draw(molecules, states, times)
        varies = propagator.stochastic or self._setup.random_rotation
        for _ in range(guard.redraws if varies else 0):
            again = self._put_back(molecules, states, results, "redraw")
            tries = self._draw([molecules[k] for k in again], [states[k] for k in again], times)
            for k, result in zip(again, tries, strict=True):
                results[k] = result
        halves = halved(times)
        if halvings and all(time in propagator.strides for half in halves for time in half):
            for k in self._put_back(molecules, states, results, "shorter"):
                results[k] = self._in_halves(molecules[k], states[k], times, halvings)
        return results

    def _put_back(
        self,
        molecules: list[Molecule],
        states: list[State],
        results: list[Proposal | Rejected],
        action: str,
    ) -> list[int]:
        """Record the jumps that are to be drawn again; return which they are."""
        again = []
        for k, result in enumerate(results):
            if isinstance(result, Rejected) and self._action(result) == "redraw":
                self._log.record(molecules[k].index, states[k], result, action)
                again.append(k)
        return again

    def _in_halves(
        self, molecule: Molecule, state: State, times: Times, halvings: int
    ) -> Proposal | Rejected:
        first_times, second_times = halved(times)
        first = self._reach([molecule], [state], first_times, halvings - 1)[0]
        if isinstance(first, Rejected):
            return first
        second = self._reach([molecule], [first.after], second_times, halvings - 1)[0]
        return second if isinstance(second, Rejected) else first.then(second, times)

    def _rescue(
        self, molecule: Molecule, state: State, times: Times, rejected: Rejected
    ) -> Proposal:
        """Take force-based steps instead of a jump, or end the run."""
        guard = self._setup.guard
        hopeless = self._setup.forces is None or molecule.fallbacks >= guard.max_fallbacks
        if self._action(rejected) in ("raise", "stop") or hopeless:
            raise self._end(molecule, state, rejected)
        self._log.record(molecule.index, state, rejected, "fallback")
        molecule.fallbacks += 1
        before, molecule.before = molecule.before, None
        if before is not None:
            # The state, the end of a jump that nothing was found wrong with, may be to blame.
            times = tuple(time + state.time - before.time for time in times)
            state = before
        return self.force_steps([state], times, [molecule])[0]

    def _action(self, rejected: Rejected) -> Action:
        return rejected.finding.action or self._setup.guard.failure

    def _end(self, molecule: Molecule, before: State, rejected: Rejected) -> Exception:
        """Record the end of the run and return what to raise."""
        action = self._action(rejected)
        if action not in ("raise", "stop"):
            action = self._setup.guard.last
        self._log.record(molecule.index, before, rejected, action)
        which = f" of molecule {molecule.index}" if len(self._molecules) > 1 else ""
        reason = (
            f"step {self._log.step}{which} at {before.time:g} fs failed: "
            f"{rejected.finding.reason} (the rejected frame is the last in "
            f"{os.fspath(self._log.frames_file)})"
        )
        return Stopped(reason) if action == "stop" else PredictionError(reason)

    # ---- molecules that are too cold ---------------------------------------------------------

    def _is_warm(self, molecule: Molecule, state: State) -> bool:
        molecule.warm |= state.kinetic_temperature >= self._coldest_K(state)
        return molecule.warm

    def _coldest_K(self, state: State) -> float:  # noqa: N802
        warming = self._setup.thermostat is not None and self._setup.forces is not None
        return self._setup.propagator.conditions.coldest_K(len(state), warming=warming)

    def _warm_up(self, molecule: Molecule, state: State, times: Times) -> Proposal:
        """Take force-based steps instead of a jump from a state that is too cold for one."""
        coldest = self._coldest_K(state)
        reason = (
            f"molecule {molecule.index} has {state.kinetic_temperature:.3g} K, and the propagator "
            f"knows none below {coldest:.3g} K"
        )
        if self._setup.thermostat is None or self._setup.forces is None:
            missing = "a thermostat" if self._setup.thermostat is None else "forces"
            raise InputError(
                f"{reason}; without {missing} it cannot be warmed up. Give it velocities, for "
                "instance with mlmd_calc.md.draw_momenta or context.setVelocitiesToTemperature"
            )
        finding = Finding("cold", state.kinetic_temperature, coldest, reason)
        self._log.note(molecule.index, state, finding, "fallback")
        return self.force_steps([state], times, [molecule])[0]

    # ---- one draw ----------------------------------------------------------------------------

    def _draw(
        self, molecules: list[Molecule], states: list[State], times: Times
    ) -> list[Proposal | Rejected]:
        """Ask the propagator once, and judge its answers."""
        setup = self._setup
        kicking = setup.other_forces == "kick"
        starts = [kicked(state, 0.5 * times[-1]) for state in states] if kicking else states
        with self._ending(molecules, states):
            proposals = propose_jumps(
                setup.propagator,
                starts,
                times,
                setup.generator,
                rotate=setup.random_rotation,
            )
        if setup.forces is setup.propagator.potential:
            proposals = [self._with_known_energy(proposal) for proposal in proposals]
        proposals = [self._relaxed(proposal) for proposal in proposals]
        if not setup.propagator.gives_velocities:
            proposals = [self._with_velocities(proposal) for proposal in proposals]
        return self._judge.judge(molecules, proposals, kick=kicking)

    def _with_known_energy(self, proposal: Proposal | Rejected) -> Proposal | Rejected:
        if isinstance(proposal, Rejected):
            return proposal
        energy = self._setup.propagator.known_energy(proposal.after)
        return replace(proposal, after=replace(proposal.after, energy=energy))

    def _relaxed(self, proposal: Proposal | Rejected) -> Proposal | Rejected:
        if isinstance(proposal, Rejected):
            return proposal
        try:
            return self._relaxed_into_window(proposal)
        except (InputError, PredictionError) as error:
            reason = f"the proposed structure cannot be relaxed: {error}"
            finding = Finding("relaxation", np.nan, 0.0, reason)
            return Rejected(finding, proposal.after.positions)

    def _relaxed_into_window(self, proposal: Proposal) -> Proposal | Rejected:
        """Relax, and again as long as the energy is higher than those of dynamics."""
        setup, after = self._setup, proposal.after
        constraints = constraints_of(setup.forces)
        if constraints is not None:
            after = after.moved_to(constraints.positions(after.positions))
        finding = None
        for _ in range(ROUNDS):
            after = setup.propagator.relax(after, setup.forces, setup.thermostat, setup.rng)
            if setup.window is None:
                break
            (after,) = setup.with_energies([after])
            assert after.energy is not None
            finding = setup.window.judge(after.energy)
            if finding is None:
                break
        if finding is None:
            return replace(proposal, after=after)
        reason = f"relaxed {ROUNDS} times, {finding.reason}"
        return Rejected(replace(finding, reason=reason), after.positions)

    def _with_velocities(self, proposal: Proposal | Rejected) -> Proposal | Rejected:
        if isinstance(proposal, Rejected):
            return proposal
        thermostat = self._setup.thermostat
        assert thermostat is not None
        velocities = draw_velocities(proposal.after, thermostat.temperature_K, self._setup.rng)
        after = replace(proposal.after, velocities=velocities)
        return replace(proposal, after=with_constrained_velocities(after, self._setup.forces))

    @contextmanager
    def _ending(self, molecules: list[Molecule], states: list[State]) -> Iterator[None]:
        """End the run if a propagator is broken."""
        try:
            yield
        except BrokenPropagatorError as error:
            k = error.molecule
            finding = Finding("propagator", np.nan, 0.0, str(error), "raise")
            end = self._end(molecules[k], states[k], Rejected(finding, error.positions))
            cause = error.__cause__
            raise (cause if isinstance(cause, (ConfigError, InputError)) else end) from cause
