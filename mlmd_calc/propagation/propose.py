"""Ask a propagator, or forces, for jumps; answers are checked for being answers at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mlmd_calc.errors import PredictionError
from mlmd_calc.geometry.rotations import random_rotations
from mlmd_calc.propagation.corrections import centre_of_mass
from mlmd_calc.propagation.forces import ForceModel
from mlmd_calc.propagation.propagator import Propagator
from mlmd_calc.propagation.proposals import Finding, Proposal, Rejected, Times
from mlmd_calc.propagation.state import FloatArray, Frames, State
from mlmd_calc.propagation.verlet import VerletPropagator


class BrokenPropagatorError(Exception):
    """A propagator does not do what propagators have to do, so trying again is of no use.

    Parameters
    ----------
    molecule
        Index of the state it was given.
    reason
        What is wrong.
    positions
        Positions ``(m, 3)`` it has answered with, if any.
    """

    def __init__(self, molecule: int, reason: str, positions: FloatArray | None = None) -> None:
        super().__init__(reason)
        self.molecule = molecule
        self.positions = positions


def propose_jumps(
    propagator: Propagator,
    states: Sequence[State],
    times_fs: Times,
    generator: torch.Generator,
    *,
    rotate: bool,
) -> list[Proposal | Rejected]:
    """Ask a propagator for a jump of every molecule.

    Parameters
    ----------
    propagator
        Propagator.
    states
        Where to start from.
    times_fs
        Times of frames inside the jumps, and the length of the jumps.
    generator
        Source of random numbers of rotations and propagator.
    rotate
        Show it each molecule centred and in a random orientation.

    Raises
    ------
    BrokenPropagatorError
        If the propagator raises, or answers something else than it was asked.
    """
    if not states:
        return []
    if rotate:
        rotations = list(random_rotations(len(states), generator).numpy())
        shown = [
            _rotated(state, rotation) for state, rotation in zip(states, rotations, strict=True)
        ]
        answers = [
            answer
            if isinstance(answer, Rejected)
            else [_rotated_back(after, before, rotation) for after in answer]
            for answer, before, rotation in zip(
                _ask(propagator, shown, times_fs, generator), states, rotations, strict=True
            )
        ]
    else:
        answers = _ask(propagator, list(states), times_fs, generator)
    return [
        answer
        if isinstance(answer, Rejected)
        else Proposal(before, answer[-1], inner=tuple(answer[:-1]))
        for before, answer in zip(states, answers, strict=True)
    ]


def propose_force_steps(
    forces: ForceModel,
    states: Sequence[State],
    times_fs: Times,
    timestep_fs: float,
    generator: torch.Generator,
    *,
    shared: bool,
) -> list[Proposal | Rejected]:
    """Take velocity-Verlet steps instead of jumps; the memory stays that of the jumps.

    The time step is shortened where it does not divide the time to the next frame. If one molecule
    is rejected, the others may not have reached the end.

    Parameters
    ----------
    forces
        Force model.
    states
        Where to start from.
    times_fs
        Times of frames on the way, and of the end.
    timestep_fs
        Time step in fs.
    generator
        Source of random numbers.
    shared
        Whether the forces that states know, those of the propagator's potential, are these.

    Raises
    ------
    BrokenPropagatorError
        If the force model raises anything but a failed prediction.
    """
    reached = [
        replace(state, memory={}, forces=state.forces if shared else None) for state in states
    ]
    passed: list[list[State]] = [[] for _ in states]
    begin = 0.0
    for end in times_fs:
        # Less than rounding above a whole number of steps is that number.
        steps = max(1, int(np.ceil((end - begin) / timestep_fs - 1e-9)))
        verlet = VerletPropagator(forces, (end - begin) / steps)
        moved = propose_jumps(verlet, reached, (end - begin,), generator, rotate=False)
        reached = [move.after for move in moved if isinstance(move, Proposal)]
        if len(reached) < len(moved):
            return moved
        reached = [
            replace(after, time=state.time + end)
            for state, after in zip(states, reached, strict=True)
        ]
        for frames, after in zip(passed, reached, strict=True):
            frames.append(after)
        begin = end
    return [
        Proposal(
            state,
            replace(
                frames[-1],
                memory=state.memory,
                energy=verlet.known_energy(frames[-1]),
                forces=verlet.known_forces(frames[-1]) if shared else None,
            ),
            inner=tuple(replace(frame, memory={}) for frame in frames[:-1]),
        )
        for state, frames in zip(states, passed, strict=True)
    ]


def _rotated(state: State, rotation: FloatArray) -> State:
    """Centre a state and rotate it by a matrix ``(3, 3)``."""
    centre = centre_of_mass(state.positions, state.masses)
    rotated = state.moved_to(
        (state.positions - centre) @ rotation, velocities=state.velocities @ rotation
    )
    return replace(rotated, forces=None if state.forces is None else state.forces @ rotation)


def _rotated_back(after: State, before: State, rotation: FloatArray) -> State:
    """Undo :func:`_rotated`."""
    centre = centre_of_mass(before.positions, before.masses)
    return replace(
        after,
        positions=after.positions @ rotation.T + centre,
        velocities=after.velocities @ rotation.T,
    )


def _ask(
    propagator: Propagator,
    states: list[State],
    times_fs: Times,
    generator: torch.Generator,
    first: int = 0,
) -> list[list[State] | Rejected]:
    """Call a propagator for frames; where it gives up on a batch, one molecule at a time.

    The index of the first state is for error messages.
    """
    name = propagator.identity
    try:
        answers = propagator.propagate(states, list(times_fs), generator)
    except PredictionError as error:
        if len(states) == 1:
            return [Rejected(Finding("propagator", np.nan, 0.0, f"{name} gave up: {error}"))]
        single = [
            _ask(propagator, [state], times_fs, generator, first + k)
            for k, state in enumerate(states)
        ]
        return [answer for (answer,) in single]
    except Exception as error:
        reason = f"{name} raised {type(error).__name__}: {error}"
        raise BrokenPropagatorError(first, reason) from error
    if len(answers) != len(states):
        reason = f"{name} gave {len(answers)} answers for {len(states)} molecules"
        raise BrokenPropagatorError(first, reason)
    for k, (state, frames) in enumerate(zip(states, answers, strict=True)):
        problem = _problem(frames, state, times_fs, propagator.gives_velocities)
        if problem is not None:
            reason = f"{name} answered with {problem}"
            raise BrokenPropagatorError(first + k, reason, _shown_positions(frames))
    return [_states(frames, state, times_fs) for frames, state in zip(answers, states, strict=True)]


def _problem(frames: Any, state: State, times_fs: Times, gives_velocities: bool) -> str | None:
    """Say in what an answer is not what was asked for."""
    if not isinstance(frames, Frames):
        return f"a {type(frames).__name__} instead of Frames"
    times, wanted = np.asarray(frames.times), np.array(times_fs)
    if times.shape != wanted.shape or not (abs(times - wanted) <= 1e-6 * wanted).all():
        shown = ", ".join(f"{time:g}" for time in times_fs)
        return f"frames at {times.tolist()} fs instead of [{shown}] fs"
    expected = (len(times_fs), len(state), 3)
    names = ("positions", "velocities") if gives_velocities else ("positions",)
    for name in names:
        shape = np.asarray(getattr(frames, name)).shape
        if shape != expected:
            return f"{name} of shape {shape} instead of {expected}"
    return None


def _shown_positions(frames: Any) -> FloatArray | None:
    """Positions of the last frame of an answer, if it has something like that."""
    positions = np.asarray(getattr(frames, "positions", None))
    return positions[-1] if positions.ndim == 3 and positions.shape[2] == 3 else None


def _states(frames: Frames, state: State, times_fs: Times) -> list[State]:
    """States at the frames, with the old velocities if they have none."""
    last = len(times_fs) - 1
    return [
        state.moved_to(
            frames.positions[k],
            velocities=state.velocities if frames.velocities is None else frames.velocities[k],
            time=state.time + time,
            # That of the last frame, where the next call starts.
            memory=frames.memory if k == last else {},
        )
        for k, time in enumerate(times_fs)
    ]
