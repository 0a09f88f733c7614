"""Thermostats: each acts for half a step before the jump and for half a step after it.

Both are exact for any length of step, so that the stride does not shift the temperature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from mlmd_calc import units
from mlmd_calc.errors import ConfigError
from mlmd_calc.options import positive_number
from mlmd_calc.propagation.corrections import Corrections, rigid_velocities, thermal_speed
from mlmd_calc.propagation.state import FloatArray, State


class Thermostat(Protocol):
    """Changes velocities such that the kinetic energy has the canonical distribution."""

    @property
    def temperature_K(self) -> float:  # noqa: N802
        """Temperature in K."""

    @property
    def relaxation_fs(self) -> float:
        """Time in fs in which a deviation of the temperature decays."""

    def apply(
        self, state: State, time_fs: float, corrections: Corrections, rng: np.random.Generator
    ) -> State:
        """Act on a state for a time."""


def draw_velocities(state: State, temperature_K: float, rng: np.random.Generator) -> FloatArray:
    """Draw velocities ``(n, 3)`` Å/fs from the Maxwell-Boltzmann distribution."""
    width = thermal_speed(state.masses, temperature_K)[:, None]
    velocities: FloatArray = width * rng.standard_normal((len(state), 3))
    return velocities


@dataclass(frozen=True)
class Langevin:
    """Ornstein-Uhlenbeck process: v ← c v + √(1 − c²) √(k T / m) ξ with c = exp(−γ t).

    All 3 n degrees of freedom are thermalised, translation and rotation included.

    Attributes
    ----------
    temperature_K
        Temperature in K.
    friction_per_fs
        Friction γ in 1/fs.

    Raises
    ------
    ConfigError
        If temperature or friction is not positive.
    """

    temperature_K: float  # noqa: N815
    friction_per_fs: float

    def __post_init__(self) -> None:
        _check_settings(self)

    @property
    def relaxation_fs(self) -> float:
        """Inverse friction."""
        return 1.0 / self.friction_per_fs

    def apply(
        self, state: State, time_fs: float, corrections: Corrections, rng: np.random.Generator
    ) -> State:
        """Act on a state for a time."""
        damping = math.exp(-self.friction_per_fs * time_fs)
        noise = draw_velocities(state, self.temperature_K, rng)
        kick = math.sqrt(1.0 - damping * damping) * noise
        return state.changed(velocities=damping * state.velocities + kick)


@dataclass(frozen=True)
class Bussi:
    """Stochastic velocity rescaling (Bussi, Donadio, Parrinello, J. Chem. Phys. 126, 014101, 2007).

    Motion that the jump conserves (see :class:`Corrections`) is neither scaled nor counted among
    the degrees of freedom.

    Attributes
    ----------
    temperature_K
        Temperature in K.
    relaxation_fs
        Relaxation time in fs.

    Raises
    ------
    ConfigError
        If temperature or relaxation time is not positive.
    """

    temperature_K: float  # noqa: N815
    relaxation_fs: float

    def __post_init__(self) -> None:
        _check_settings(self)

    def apply(
        self, state: State, time_fs: float, corrections: Corrections, rng: np.random.Generator
    ) -> State:
        """Act on a state for a time; equation A7 of the paper.

        Raises
        ------
        ConfigError
            If there is no motion that could be scaled.
        """
        basis = corrections.conserved_basis(state)
        degrees = 3 * len(state) - basis.shape[1]
        rigid = rigid_velocities(state, basis)
        kinetic = state.changed(velocities=state.velocities - rigid).kinetic_energy
        if degrees < 1 or not kinetic > 0.0:
            raise ConfigError(
                f"thermostat 'bussi' scales velocities, but {degrees} degrees of freedom hold "
                f"{kinetic:g} eV of kinetic energy; set velocities first or use 'langevin'"
            )
        kept = math.exp(-time_fs / self.relaxation_fs)
        new = (1.0 - kept) * 0.5 * units.KB * self.temperature_K / kinetic
        normal = rng.standard_normal()
        others = 2.0 * rng.standard_gamma(0.5 * (degrees - 1)) if degrees > 1 else 0.0
        square = kept + new * (normal**2 + others) + 2.0 * normal * math.sqrt(kept * new)
        # Rounding may leave a tiny negative number where the square is zero.
        factor = math.sqrt(max(square, 0.0))
        return state.changed(velocities=rigid + factor * (state.velocities - rigid))


def make_thermostat(name: str, temperature_K: float, friction_per_fs: float) -> Thermostat:
    """Make a thermostat from what engines call it.

    Parameters
    ----------
    name
        "langevin" or "bussi".
    temperature_K
        Temperature in K.
    friction_per_fs
        Friction of "langevin" in 1/fs, inverse relaxation time of "bussi".

    Raises
    ------
    ConfigError
        If there is no such thermostat, or temperature or friction are not positive.
    """
    langevin = Langevin(temperature_K, friction_per_fs)
    if name == "langevin":
        return langevin
    if name == "bussi":
        return Bussi(temperature_K, langevin.relaxation_fs)
    raise ConfigError(f"thermostat={name!r}; choose 'langevin' or 'bussi'")


def _check_settings(thermostat: Langevin | Bussi) -> None:
    """Refuse what is not a positive number, and make all of them floats.

    A restart compares the settings with those it was written with, and 300 is no other than 300.0.
    """
    for field in fields(thermostat):
        given = getattr(thermostat, field.name)
        object.__setattr__(thermostat, field.name, positive_number(field.name, given))
