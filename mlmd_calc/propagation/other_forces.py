"""Forces of the engine that a propagator does not know: biases, fields, another force field.

A jump moves the molecule in the potential that its propagator was trained on. Whatever else the
engine puts on the atoms does not act on jumps, unless it is added to them by kicks,

    v ← v + (Δt/2) F/m,    jump over Δt,    v ← v + (Δt/2) F/m,

where F is the force of the engine without that of the propagator's potential. The scheme is
symmetric and right to second order in Δt, like velocity Verlet with the jump in the place of free
flight. Δt is half the stride: the answer of a stiff bond to a constant force is (θ/tan θ) times the
right one with θ = ω Δt/2, which is a fifth too small for C–O at 8 fs and a twentieth at 4 fs. F
should change slowly: a spring with a period below three strides is too stiff.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal, TypeAlias

import numpy as np
from ase.data import chemical_symbols

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, InputError, PredictionError
from mlmd_calc.potential import Structure
from mlmd_calc.propagation.corrections import centre_of_mass
from mlmd_calc.propagation.forces import ForceModel
from mlmd_calc.propagation.state import FloatArray, State

OtherForces: TypeAlias = Literal["refuse", "kick", "ignore"]
"""What is done with forces of the engine that the propagator does not know."""

LIMIT: Final = 0.01
"""Difference in eV/Å on an atom up to which two force models are taken for the same."""

COMPARE_EVERY: Final = 100
"""Steps after which they are compared again: a bias may grow from nothing, as in metadynamics."""

_DRAWS: Final = 3
"""Further evaluations that show noise, where forces seem to differ."""

_STRETCH: Final = 1.05
_SHAKE: Final = 0.05
"""Å. A restraint may be at its minimum at the start, but not in a stretched, shaken structure."""


def evaluated_forces(forces: ForceModel, structures: Sequence[Structure]) -> list[FloatArray]:
    """Evaluate the forces ``(n, 3)`` eV/Å of each structure.

    Raises
    ------
    ConfigError
        If the force model gives none.
    """
    results = [result.forces for result in forces.evaluate(structures, ("forces",))]
    found = [result for result in results if result is not None]
    if len(found) != len(structures):
        raise ConfigError(
            f"{type(forces).__qualname__} gave forces for {len(found)} of {len(structures)} "
            "molecules; this run needs a model with forces"
        )
    return found


def with_other_forces(
    states: Sequence[State], engine: ForceModel, potential: ForceModel
) -> list[State]:
    """Evaluate what the engine adds to the forces of the potential, where it is not known."""
    unknown = [state.structure for state in states if state.other_forces is None]
    if not unknown:
        return list(states)
    added = iter(
        all_forces - own
        for all_forces, own in zip(
            evaluated_forces(engine, unknown), evaluated_forces(potential, unknown), strict=True
        )
    )
    return [
        state.changed(other_forces=next(added)) if state.other_forces is None else state
        for state in states
    ]


def kicked(state: State, time_fs: float) -> State:
    """Let the other forces act on the velocities for a time; they must be known."""
    assert state.other_forces is not None
    kick = time_fs * units.FS**2 * state.other_forces / state.masses[:, None]
    return state.changed(velocities=state.velocities + kick)


def compare(engine: ForceModel, potential: ForceModel, state: State) -> None:
    """Refuse an engine whose forces are not those of the propagator's potential.

    They are compared at the positions of the state and in a stretched, shaken copy of it, unless
    both are the same network. What differs from one evaluation to the next, as with random
    orientations, is noise; that of the potential counts as well, because an engine may repeat its
    forces while atoms stay in place.

    Raises
    ------
    ConfigError
        With the largest difference and the remedies.
    """
    network = _network(engine)
    if engine is potential or (network and network == _network(potential)):
        return
    start = state.structure
    for structure in (start, _strained(state)):
        try:
            theirs, own = (evaluated_forces(f, [structure])[0] for f in (engine, potential))
            if _longest(theirs - own)[0] <= LIMIT:
                continue
            repeated = [
                [first, *(evaluated_forces(f, [structure])[0] for _ in range(_DRAWS))]
                for f, first in ((engine, theirs), (potential, own))
            ]
        except (InputError, PredictionError):
            if structure is start:
                raise
            return
        noise = max(
            _longest(a - b)[0] for draws in repeated for a, b in itertools.combinations(draws, 2)
        )
        difference, atom = _longest(np.mean(repeated[0], axis=0) - np.mean(repeated[1], axis=0))
        limit = LIMIT + 2.0 * noise
        if difference > limit:
            raise ConfigError(
                f"the forces of the engine differ from those of the propagator's potential by "
                f"{difference:.3g} eV/Å on atom {atom}, {chemical_symbols[state.numbers[atom]]} "
                f"({limit:.2g} is allowed): a bias, a field, another force field or another charge "
                "would not act on jumps. With other_forces='kick' the difference acts before and "
                "after each jump; with 'ignore' it acts in force-based steps alone "
                "(md_steps_per_jump, fallbacks). Else give the engine the forces of the "
                "propagator's potential"
            )


def _network(forces: ForceModel) -> str | None:
    """Find the checksum of the network behind a force model, whatever its other options."""
    checksum: str | None = getattr(getattr(forces, "model", None), "sha256", None)
    return checksum


def _longest(vectors: FloatArray) -> tuple[float, int]:
    lengths = np.linalg.norm(vectors, axis=1)
    atom = int(lengths.argmax())
    return float(lengths[atom]), atom


def _strained(state: State) -> Structure:
    """Stretch and shake a structure, always in the same way."""
    centre = centre_of_mass(state.positions, state.masses)
    shake = _SHAKE * np.random.default_rng(0).standard_normal((len(state), 3))
    return replace(
        state.structure, positions=centre + _STRETCH * (state.positions - centre) + shake
    )
