"""Elements that keep their share of the kinetic energy, although jumps pass it among them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.propagation.state import FloatArray, State
from mlmd_calc.propagation.thermostats import Thermostat


@dataclass
class Balance:
    """Frictions of the elements of a molecule, which adapt until each has its share.

    The adaptive Langevin equations (Jones and Leimkuhler, J. Chem. Phys. 135, 084125 (2011)), with
    a friction ξ for each element in place of one for all: dv/dt = −ξ v beside what the thermostat
    does, and dξ/dt = γ² (K / ⟨K⟩ − 1), with the kinetic energy K of the element, its canonical mean
    ⟨K⟩ and the friction γ of the thermostat. So deviations decay with γ and hardly swing, and ξ
    fluctuates by γ/√degrees, less than γ. Motion that is right stays canonical, with ξ about zero.
    Where jumps take energy from an element and give it to another, ξ becomes what makes up for it.

    Attributes
    ----------
    numbers
        Atomic numbers of the elements, ``(e,)``.
    members
        ``(e, n)``, 1 where an atom is of that element, else 0.
    degrees
        Degrees of freedom of the elements, ``(e,)``.
    frictions
        The present ξ in 1/fs, ``(e,)``.
    """

    numbers: NDArray[np.int64]
    members: FloatArray
    degrees: FloatArray
    frictions: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        self.frictions = np.zeros(len(self.numbers))

    @classmethod
    def of(cls, state: State, *, fix_centre: bool) -> Balance:
        """Count the degrees of freedom of each element; fewer if the centre of mass is at rest."""
        numbers = np.unique(state.numbers)
        members = (state.numbers == numbers[:, None]).astype(np.float64)
        free = np.full(len(state), 3.0)
        if fix_centre:
            free -= 3.0 * state.masses / state.masses.sum()
        return cls(numbers, members, members @ free)

    @property
    def frictions_per_ps(self) -> dict[str, float]:
        """The present frictions in 1/ps by symbol of the element."""
        rates = (units.FS_PER_PS * self.frictions).tolist()
        return {chemical_symbols[z]: xi for z, xi in zip(self.numbers, rates, strict=True)}

    def apply(self, state: State, thermostat: Thermostat, time_fs: float) -> State:
        """Act on a state for a time, and adapt."""
        speed = state.velocities / units.FS
        twice = self.members @ (state.masses * (speed * speed).sum(axis=1))
        expected = units.KB * thermostat.temperature_K * self.degrees
        rate = 0.5 * time_fs / thermostat.relaxation_fs**2
        self._adapt(twice, expected, rate)
        factor = np.exp(-self.frictions * time_fs)
        self._adapt(factor * factor * twice, expected, rate)
        return state.changed(velocities=(factor @ self.members)[:, None] * state.velocities)

    def _adapt(self, twice: FloatArray, expected: FloatArray, rate: float) -> None:
        """Let the frictions follow twice the kinetic energies."""
        # An atom alone that is held in place has neither.
        excess = twice / np.maximum(expected, np.finfo(float).tiny) - (expected > 0.0)
        self.frictions = self.frictions + rate * excess
