"""Checks that a jump has to pass, and what happens if it does not.

Whatever the guard, a frame that is not finite, or not what was asked for, is never continued from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from scipy.special import gammainccinv, gammaincinv

from mlmd_calc import units
from mlmd_calc.geometry.bonds import BOND_LIMIT, Bonds, find_bonds
from mlmd_calc.options import check_at_least, one_of
from mlmd_calc.propagation.corrections import rigid_basis, rigid_velocities, thermal_speed
from mlmd_calc.propagation.proposals import Action, Finding, Proposal
from mlmd_calc.propagation.state import FloatArray, State
from mlmd_calc.propagation.thermostats import Thermostat


class Check:
    """One question about a jump; every molecule of a run gets its own copy.

    Parameters
    ----------
    action
        What is done with a jump that fails: "accept" (record it only), "redraw" (another rotation
        and other noise, then shorter jumps, then as "fallback"), "fallback" (force-based steps; if
        there are no forces, what the guard says for hopeless cases), "raise" or "stop".

    Raises
    ------
    ConfigError
        If the action is none of these.
    """

    name: str = "check"
    needs_energy: bool = False

    def __init__(self, action: Action = "redraw") -> None:
        self.action = one_of("action", action, get_args(Action))

    def begin(self, state: State, thermostat: Thermostat | None) -> None:
        """Look at the start of a run, and again when the thermostat has been changed."""

    def judge(self, proposal: Proposal) -> Finding | None:
        """Say what is wrong with a jump; None if nothing is."""
        raise NotImplementedError

    def accepted(self, state: State, duration_fs: float) -> None:
        """Take note of a state that the run continues from."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return what `begin` and `accepted` have noted: numbers, texts, arrays, lists."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""

    def _finding(self, value: float, limit: float, reason: str) -> Finding:
        return Finding(self.name, float(value), float(limit), reason, self.action)


class Displacement(Check):
    """No atom moves further than ``factor`` times the expected root mean square displacement.

    That is the way that an atom flies with the thermal speed √(3 k T / m).

    Parameters
    ----------
    action
        See :class:`Check`.
    factor
        Multiple of the expected displacement.
    temperature_K
        Temperature of the thermal speed. None: that of the thermostat; without one the kinetic
        temperature at the start, but not below 300 K.
    """

    name = "displacement"

    def __init__(
        self,
        action: Action = "redraw",
        *,
        factor: float = 5.0,
        temperature_K: float | None = None,
    ) -> None:
        super().__init__(action)
        self.factor = factor
        self.temperature_K = temperature_K
        self._expected = temperature_K

    def begin(self, state: State, thermostat: Thermostat | None) -> None:
        """Note the temperature."""
        if self.temperature_K is not None:
            return
        if thermostat is None:
            self._expected = max(300.0, state.kinetic_temperature)
        else:
            self._expected = thermostat.temperature_K

    def judge(self, proposal: Proposal) -> Finding | None:
        """Compare the atom that moved furthest with its limit."""
        assert self._expected is not None
        before, time = proposal.before, proposal.stride
        scale = np.sqrt(3.0) * thermal_speed(before.masses, self._expected) * time
        moved = np.linalg.norm(proposal.after.positions - before.positions, axis=1)
        atom = int((moved / scale).argmax())
        limit = self.factor * scale[atom]
        if moved[atom] <= limit:
            return None
        return self._finding(
            moved[atom],
            limit,
            f"{_label(before, atom)} moved {moved[atom]:.3g} Å in {time:g} fs; "
            f"{limit:.3g} Å is allowed",
        )

    def state_dict(self) -> Mapping[str, Any]:
        """Temperature."""
        return {"expected": self._expected}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the temperature."""
        self._expected = state["expected"]


class Contact(Check):
    """No two atoms are nearer than ``factor`` times the sum of their covalent radii.

    Parameters
    ----------
    action
        See :class:`Check`.
    factor
        Part of the sum of the covalent radii.
    """

    name = "contact"

    def __init__(self, action: Action = "redraw", *, factor: float = 0.6) -> None:
        super().__init__(action)
        self.factor = factor

    def judge(self, proposal: Proposal) -> Finding | None:
        """Find the closest contact relative to the radii."""
        state = proposal.after
        first, second = np.triu_indices(len(state), 1)
        if len(first) == 0:
            return None
        apart = np.linalg.norm(state.positions[first] - state.positions[second], axis=1)
        radii = covalent_radii[state.numbers]
        limits = self.factor * (radii[first] + radii[second])
        pair = int((apart / limits).argmin())
        if apart[pair] >= limits[pair]:
            return None
        names = f"{_label(state, first[pair])} and {_label(state, second[pair])}"
        return self._finding(
            apart[pair],
            limits[pair],
            f"{names} are {apart[pair]:.3g} Å apart; {limits[pair]:.3g} Å is the least allowed",
        )


class Bonding(Check):
    """No bond deviates further than ``limit`` from its length at the start of the run.

    Parameters
    ----------
    action
        See :class:`Check`.
    limit
        Å.
    bonds
        Bonds with their reference lengths. None: those of the first state.
    """

    name = "bonding"

    def __init__(
        self, action: Action = "redraw", *, limit: float = BOND_LIMIT, bonds: Bonds | None = None
    ) -> None:
        super().__init__(action)
        self.limit = limit
        self.bonds = bonds

    def begin(self, state: State, thermostat: Thermostat | None) -> None:
        """Find the bonds."""
        if self.bonds is None:
            self.bonds = find_bonds(state.to_atoms())

    def judge(self, proposal: Proposal) -> Finding | None:
        """Find the bond that deviates most."""
        assert self.bonds is not None
        if len(self.bonds) == 0:
            return None
        deviations = self.bonds.deviations(proposal.after.positions)
        worst = int(np.abs(deviations).argmax())
        if abs(deviations[worst]) <= self.limit:
            return None
        length = self.bonds.lengths[worst]
        return self._finding(
            abs(deviations[worst]),
            self.limit,
            f"bond {self.bonds.label(worst, proposal.after.numbers)} is "
            f"{length + deviations[worst]:.2f} Å long instead of {length:.2f} Å",
        )

    def state_dict(self) -> Mapping[str, Any]:
        """Bonds."""
        assert self.bonds is not None
        return {"pairs": self.bonds.pairs, "lengths": self.bonds.lengths}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the bonds."""
        self.bonds = Bonds(pairs=state["pairs"], lengths=state["lengths"])


class Temperature(Check):
    """Kinetic temperature of the molecule and of each of its elements, averaged over a window.

    Only internal motion counts, without translation and rotation. The limits are those that a chi
    squared distribution exceeds with the probability ``false_alarm``, so they are wide where few
    atoms are averaged over a short time. Without a window each frame is compared with the upper
    limit alone, because a molecule may start cold.

    Parameters
    ----------
    action
        See :class:`Check`.
    temperature_K
        Expected temperature. None: that of the thermostat; without one the means of the first
        window, so that drifts are found.
    window_fs
        Time constant of the running mean; 0 for none. None: ten relaxation times of the thermostat,
        or 10 ps.
    false_alarm
        Probability of a false alarm at each jump.
    """

    _STORED = ("elapsed", "window", "degrees", "reference", "mean", "highest", "lowest")

    def __init__(
        self,
        action: Action = "raise",
        *,
        temperature_K: float | None = None,
        window_fs: float | None = None,
        false_alarm: float = 1e-9,
    ) -> None:
        super().__init__(action)
        self.temperature_K = temperature_K
        self.window_fs = window_fs
        self.false_alarm = false_alarm
        self.name = "temperature" if window_fs == 0.0 else "mean temperature"
        self._elapsed = 0.0

    def begin(self, state: State, thermostat: Thermostat | None) -> None:
        """Count the degrees of freedom of each element and set the limits."""
        relaxation = 1000.0 if thermostat is None else thermostat.relaxation_fs
        expected = self.temperature_K
        if expected is None and thermostat is not None:
            expected = thermostat.temperature_K
        self._elapsed = 0.0
        window = 10.0 * relaxation if self.window_fs is None else self.window_fs
        lost = (rigid_basis(state) ** 2).sum(axis=1).reshape(-1, 3).sum(axis=1)
        elements = np.unique(state.numbers)
        # Which atoms belong to the molecule and to each element, (groups, n).
        members = np.array([np.ones(len(state)), *(state.numbers == z for z in elements)])
        self._members = members
        self._window = window
        self._degrees = members @ (3.0 - lost)
        known = expected is not None
        self._reference = np.full(len(members), np.nan if expected is None else expected)
        self._mean = self._reference if known else np.zeros(len(members))
        # The mean of the first window has an error of its own.
        samples = (1.0 + window / relaxation) / (1.0 if known else 2.0)
        # A single atom has no internal motion; any positive number will do for it.
        degrees = np.maximum(samples * self._degrees, 1e-3)
        # Quantiles of χ²; to import scipy.stats for them takes half a second.
        self._highest = 2.0 * gammainccinv(0.5 * degrees, self.false_alarm) / degrees
        self._lowest = 2.0 * gammaincinv(0.5 * degrees, self.false_alarm) / degrees

    def _mean_with(self, state: State, duration_fs: float) -> FloatArray:
        """Return the running means ``(groups,)`` in K with a state added."""
        internal = state.velocities - rigid_velocities(state, rigid_basis(state))
        twice = self._members @ (state.masses * ((internal / units.FS) ** 2).sum(axis=1))
        now = twice / (units.KB * np.maximum(self._degrees, 1e-3))
        if np.isnan(self._reference).any():
            weight = duration_fs / (self._elapsed + duration_fs)
        else:
            weight = 1.0 if self._window == 0.0 else -np.expm1(-duration_fs / self._window)
        mean: FloatArray = self._mean + weight * (now - self._mean)
        return mean

    def judge(self, proposal: Proposal) -> Finding | None:
        """Compare each group with its limits."""
        if self._elapsed < self._window or np.isnan(self._reference).any():
            return None
        state = proposal.after
        mean = self._mean_with(state, proposal.stride)
        ratio = mean / np.maximum(self._reference, 1e-3)
        excess = ratio / self._highest
        if self._window > 0.0:
            excess = np.maximum(excess, self._lowest / np.maximum(ratio, 1e-12))
        excess[self._degrees < 0.5] = 0.0
        group = int(excess.argmax())
        if excess[group] <= 1.0:
            return None
        names = ["all atoms", *(chemical_symbols[z] for z in np.unique(state.numbers))]
        allowed = self._highest if ratio[group] > 1.0 else self._lowest
        limit = allowed[group] * self._reference[group]
        over = f" averaged over {self._window:g} fs" if self._window > 0.0 else ""
        return self._finding(
            mean[group],
            limit,
            f"the kinetic temperature of {names[group]}{over} is {mean[group]:.0f} K instead of "
            f"{self._reference[group]:.0f} K; the limit is {limit:.0f} K",
        )

    def accepted(self, state: State, duration_fs: float) -> None:
        """Add a state to the means."""
        if self._window == 0.0:
            return
        self._mean = self._mean_with(state, duration_fs)
        self._elapsed += duration_fs
        if np.isnan(self._reference).any() and self._elapsed >= self._window:
            self._reference = self._mean

    def state_dict(self) -> Mapping[str, Any]:
        """Means, limits and how long they have been taken."""
        return {name: getattr(self, f"_{name}") for name in self._STORED}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the means and limits."""
        for name in self._STORED:
            setattr(self, f"_{name}", state[name])


class EnergyWindow(Check):
    """The total energy is within ``limit`` of what it should be, before it is rescaled.

    It should be that at the start of the run, or with a thermostat or with energy rescaling that
    before the jump. Costs an energy per jump.

    Parameters
    ----------
    action
        See :class:`Check`.
    limit
        In eV per atom.
    """

    name = "energy"
    needs_energy = True

    def __init__(self, action: Action = "redraw", *, limit: float = 0.02) -> None:
        super().__init__(action)
        self.limit = limit

    def judge(self, proposal: Proposal) -> Finding | None:
        """Compare the energy error with the limit."""
        assert proposal.energy_error is not None
        error = proposal.energy_error / len(proposal.after)
        if abs(error) <= self.limit:
            return None
        return self._finding(
            error,
            self.limit,
            f"the total energy is off by {error:.3g} eV per atom; {self.limit:g} is allowed",
        )


def default_checks(*, energies: bool) -> tuple[Check, ...]:
    """Make the usual checks, with that of the energy only where energies are evaluated."""
    checks: tuple[Check, ...] = (
        Displacement(),
        Contact(),
        Bonding(),
        Temperature("redraw", window_fs=0.0),
        Temperature(),
    )
    return (*checks, EnergyWindow()) if energies else checks


@dataclass(frozen=True)
class Guard:
    """Checks of a run and what happens with a jump that fails.

    Attributes
    ----------
    checks
        Checks in the order in which they are made; None for the usual ones, ``()`` for none.
    failure
        What is done if the propagator gives up or answers with numbers that are not finite; as the
        action of a :class:`Check`, but not "accept".
    redraws
        How often a jump is drawn again.
    halvings
        How often the time is halved when no draw is accepted, if the propagator can do such jumps.
    last
        "raise" or "stop": what is done in hopeless cases. A run that stops keeps the last good
        state and says why.
    max_fallbacks
        Jumps in a row that may be replaced by force-based steps; more is a hopeless case.
    frames_file
        Every rejected frame is appended to this file (extxyz).

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    checks: tuple[Check, ...] | None = None
    failure: Action = "redraw"
    redraws: int = 2
    halvings: int = 1
    last: Literal["raise", "stop"] = "raise"
    max_fallbacks: int = 50
    frames_file: str | os.PathLike[str] = "offending_frames.extxyz"

    def __post_init__(self) -> None:
        # To accept a broken frame would be to continue from it.
        one_of("failure", self.failure, [a for a in get_args(Action) if a != "accept"])
        one_of("last", self.last, ("raise", "stop"))
        check_at_least(self, 0, "redraws", "halvings", "max_fallbacks")

    @classmethod
    def off(cls) -> Guard:
        """No checks; a frame that is not finite raises."""
        return cls(checks=(), failure="raise")


def _label(state: State, atom: int) -> str:
    return f"{chemical_symbols[state.numbers[atom]]}{atom}"
