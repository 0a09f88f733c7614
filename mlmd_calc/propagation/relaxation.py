"""Minimisation and a little dynamics, and whether the energy is then that of dynamics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, PredictionError
from mlmd_calc.propagation.constraints import constraints_of, drifted
from mlmd_calc.propagation.forces import ForceModel
from mlmd_calc.propagation.proposals import Finding
from mlmd_calc.propagation.state import FloatArray, State
from mlmd_calc.propagation.thermostats import draw_velocities

_RELAXED: Final = 0.5
"""eV/Å; a structure whose forces are all smaller is fit to start dynamics from."""

TIMESTEP_FS: Final = 0.5
_FRICTION_PER_FS: Final = 0.005
"""Of the Langevin dynamics that relaxes a structure."""

_SAMPLE_EVERY: Final = 20
"""Steps of the reference run between energies."""

ROUNDS: Final = 4
"""Times that a structure is relaxed before its energy is given up."""

DEVIATIONS: Final = 2.0
"""Standard deviations of dynamics by which an energy may be higher than its mean."""


@dataclass(frozen=True)
class PotentialWindow:
    """Potential energies that dynamics of a molecule visits.

    Attributes
    ----------
    mean, deviation
        Mean and standard deviation in eV of a reference run.
    atoms
        Number of atoms.
    limit
        eV per atom above the mean that are allowed.
    """

    mean: float
    deviation: float
    atoms: int
    limit: float

    def deviations(self, energy: float) -> float:
        """Distance of an energy in eV from the mean, in standard deviations."""
        return (energy - self.mean) / self.deviation

    def judge(self, energy: float) -> Finding | None:
        """Say what is wrong with an energy in eV; None if nothing is."""
        above = (energy - self.mean) / self.atoms
        if above <= self.limit:
            return None
        excess = (energy - self.mean) / units.KJ_PER_MOL
        return Finding(
            "energy",
            above,
            self.limit,
            f"the potential energy is {above:.3g} eV per atom ({excess:.0f} kJ/mol in all, "
            f"{self.deviations(energy):.1f} standard deviations) above the mean of dynamics; "
            f"{self.limit:.3g} eV per atom is allowed",
        )


def reference_window(
    forces: ForceModel,
    state: State,
    temperature_K: float,
    rng: np.random.Generator,
    *,
    steps: int,
    minimise_steps: int,
    limit: float | None = None,
) -> PotentialWindow:
    """Measure the energies of dynamics from a structure.

    Minimisation, then Langevin dynamics, of which the first third is left out. The standard
    deviation is not taken to be less than that of as many harmonic vibrations, because a short run
    sees too little of it.

    Parameters
    ----------
    forces, state, temperature_K, rng
        As of :func:`equilibrated`.
    steps
        Of dynamics.
    minimise_steps
        At most this many of minimisation.
    limit
        See :class:`PotentialWindow`; None for two standard deviations.

    Raises
    ------
    ConfigError
        If the force model knows no energies.
    PredictionError
        If forces or energies are not finite.
    """
    state = minimised(forces, [state], minimise_steps)[0]
    energies = []
    done, left_out = 0, steps // 3
    while done < steps:
        count = min(_SAMPLE_EVERY, steps - done)
        state = equilibrated(forces, [state], count, temperature_K, [rng], warm=done > 0)[0]
        done += count
        if done > left_out:
            energies.append(energies_of(forces, [state])[0])
    constraints = constraints_of(forces)
    vibrations = 3 * len(state) - 6 - (0 if constraints is None else constraints.count)
    harmonic = np.sqrt(0.5 * max(vibrations, 1)) * units.KB * temperature_K
    deviation = max(float(np.std(energies)), float(harmonic))
    usual = DEVIATIONS * deviation / len(state)
    return PotentialWindow(
        float(np.mean(energies)), deviation, len(state), usual if limit is None else limit
    )


def energies_of(forces: ForceModel, states: Sequence[State]) -> list[float]:
    """Potential energies in eV.

    Raises
    ------
    ConfigError
        If the force model knows none.
    PredictionError
        If one is not finite.
    """
    found = forces.evaluate([state.structure for state in states], ("energy",))
    energies = [result.energy for result in found]
    if any(energy is None for energy in energies):
        raise ConfigError(
            f"{type(forces).__qualname__} knows no energies, which relaxed structures are judged "
            "by; use a force model that does"
        )
    known = [float(energy) for energy in energies if energy is not None]
    if not np.isfinite(known).all():
        raise PredictionError("the energy of a structure is not finite")
    return known


def minimised(forces: ForceModel, states: Sequence[State], steps: int) -> list[State]:
    """Go downhill until all forces are below 0.5 eV/Å, or for a number of steps.

    FIRE (Bitzek et al., Phys. Rev. Lett. 97, 170201, 2006) with its usual constants; it needs no
    energies, so that forces which are not the slope of one will do.

    Parameters
    ----------
    forces
        Force model.
    states
        Where to start, molecules of any sizes; each goes its own way.
    steps
        At most this many.

    Raises
    ------
    PredictionError
        If forces are not finite.
    """
    descents = [_Descent(np.array(state.positions)) for state in states]
    constraints = constraints_of(forces)
    left = list(range(len(states)))
    for _ in range(steps):
        found = _forces(forces, [states[k] for k in left], [descents[k].x for k in left])
        pairs = [
            (k, f)
            for k, f in zip(left, found, strict=True)
            if np.linalg.norm(f, axis=1).max() >= _RELAXED
        ]
        left = [k for k, _ in pairs]
        if not left:
            break
        for k, f in pairs:
            descents[k].step(f)
            if constraints is not None:
                descents[k].x = constraints.positions(descents[k].x)
    return [state.moved_to(own.x) for state, own in zip(states, descents, strict=True)]


class _Descent:
    """The way of one molecule downhill."""

    def __init__(self, x: FloatArray) -> None:
        self.x = x
        self._v = np.zeros_like(x)
        self._dt, self._mixing, self._downhill = 0.1, 0.1, 0

    def step(self, f: FloatArray) -> None:
        """Take a step under forces."""
        v = self._v
        if np.vdot(f, v) > 0.0:
            v = (1.0 - self._mixing) * v + self._mixing * f * (
                np.linalg.norm(v) / np.linalg.norm(f)
            )
            self._downhill += 1
            if self._downhill > 5:
                self._dt, self._mixing = min(1.1 * self._dt, 1.0), 0.99 * self._mixing
        else:
            v = np.zeros_like(v)
            self._dt, self._mixing, self._downhill = 0.5 * self._dt, 0.1, 0
        self._v = v = v + self._dt * f
        way = self._dt * v
        # No atom moves further than 0.2 Å at once.
        self.x = self.x + way * min(1.0, 0.2 / np.linalg.norm(way, axis=1).max())


def equilibrated(
    forces: ForceModel,
    states: Sequence[State],
    steps: int,
    temperature_K: float,
    rngs: Sequence[np.random.Generator],
    *,
    warm: bool = False,
) -> list[State]:
    """Give structures the vibrations of a temperature, and velocities.

    Langevin dynamics in steps of 0.5 fs with a friction of 5/ps (BAOAB: Leimkuhler and Matthews,
    Appl. Math. Res. Express 2013, 34). The time of the states stays.

    Parameters
    ----------
    forces
        Force model.
    states
        Where to start, molecules of any sizes.
    steps
        How many.
    temperature_K
        Temperature in K.
    rngs
        Source of random numbers of each state.
    warm
        Go on from the velocities of the states. If not, they are drawn from the Maxwell-Boltzmann
        distribution.

    Raises
    ------
    PredictionError
        If forces are not finite.
    """
    own = list(zip(states, rngs, strict=True))
    kept = np.exp(-_FRICTION_PER_FS * TIMESTEP_FS)
    half = [0.5 * TIMESTEP_FS * units.FS**2 / state.masses[:, None] for state in states]
    constraints = constraints_of(forces)
    x = [np.array(state.positions) for state in states]
    v = [
        np.array(state.velocities) if warm else draw_velocities(state, temperature_K, rng)
        for state, rng in own
    ]
    f = _forces(forces, states, x)
    for _ in range(steps):
        for k, (state, rng) in enumerate(own):
            v[k] = v[k] + half[k] * f[k]
            x[k], v[k] = drifted(x[k], v[k], 0.5 * TIMESTEP_FS, constraints)
            noise = draw_velocities(state, temperature_K, rng)
            v[k] = kept * v[k] + np.sqrt(1.0 - kept**2) * noise
            x[k], v[k] = drifted(x[k], v[k], 0.5 * TIMESTEP_FS, constraints)
        f = _forces(forces, states, x)
        for k in range(len(own)):
            v[k] = v[k] + half[k] * f[k]
    if constraints is not None:
        v = [constraints.velocities(*pair) for pair in zip(x, v, strict=True)]
    return [state.moved_to(x[k], velocities=v[k]) for k, state in enumerate(states)]


def _forces(
    forces: ForceModel, states: Sequence[State], positions: Sequence[FloatArray]
) -> list[FloatArray]:
    structures = [
        replace(state.structure, positions=x) for state, x in zip(states, positions, strict=True)
    ]
    found = [result.forces for result in forces.evaluate(structures, ("forces",))]
    known = [f for f in found if f is not None and np.isfinite(f).all()]
    if len(known) < len(states):
        raise PredictionError("the forces on the proposed structure are not finite")
    return known
