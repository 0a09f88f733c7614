"""Langevin dynamics in long steps that is exact: every step is accepted or rejected.

Generalised Hamiltonian Monte Carlo (A. M. Horowitz, Phys. Lett. B 268, 247 (1991)) with one step of
multiple time stepping as proposal; a step Δt is

1. p ← c p + √((1 − c²) m k T) ξ with c = exp(−γ Δt / 2) and the friction γ;
2. (x', p') ← the step of :mod:`mlmd_calc.md.mts` without a thermostat;
3. ΔH = U(x') + K(p') − U(x) − K(p) with the accurate energy U; with the probability
   min(1, exp(−ΔH / k T)) go to (x', p'), else to (x, −p);
4. as 1.

Kicks change momenta by functions of the positions and drifts change positions by functions of the
momenta, in an order that reads the same from behind. So step 2 is reversible and keeps the volume
of phase space whatever the cheap forces are, and the canonical ensemble is exact. The worse the
cheap forces, the more steps are rejected. Without rejections this is Langevin dynamics; each one
turns the momenta round, and the molecule goes back the way it came until the thermostat has made it
forget, so that many of them slow motion down.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, Final

from mlmd_calc.errors import ConfigError, InputError, PredictionError
from mlmd_calc.md.canonical import acceptance_probability
from mlmd_calc.md.force_source import ForceSource
from mlmd_calc.md.mts import ThermostattedMTS

_ENOUGH: Final = 100
"""Steps after which a run in which none was accepted is not what anybody wants."""


class ExactMTS(ThermostattedMTS):
    """Langevin dynamics in long steps of cheap forces, exact by a Metropolis test of each.

    Takes the place of :class:`ase.md.langevin.Langevin`. All 3 n degrees of freedom are
    thermalised. The accurate energy and forces, those of ``atoms.calc``, are evaluated once per
    step.

    Parameters
    ----------
    atoms, timestep, fast, inner_steps
        See :class:`MTSVelocityVerlet`. The accurate forces should be the gradient of the energy
        of ``atoms.calc``, which decides.
    temperature_K
        Temperature in K.
    friction
        In inverse ASE time units, for instance ``0.001 / ase.units.fs``.
    rng
        Source of randomness; None draws a seed from the system.
    **options
        See :class:`MTSVelocityVerlet`.

    Attributes
    ----------
    trials
        Steps that were tried, here and before a restart.
    accepted
        Those that were accepted.

    Raises
    ------
    ConfigError, InputError
        As :class:`MTSVelocityVerlet`; also if ``atoms.calc`` knows no energy, or one of the two
        gives equal positions different forces.

    Examples
    --------
    >>> from ase import units
    >>> from ase.build import molecule
    >>> from mlmd_calc import MDETCalculator
    >>> from mlmd_calc.bonded import BondedForceField
    >>> from mlmd_calc.md import ExactMTS
    >>> atoms = molecule("CH3OH")
    >>> atoms.calc = MDETCalculator()
    >>> cheap = BondedForceField.fit(atoms, frames=40, seed=1)
    >>> options = {"temperature_K": 300, "friction": 0.001 / units.fs}
    >>> dyn = ExactMTS(atoms, 4.0 * units.fs, cheap, inner_steps=8, **options)
    >>> dyn.run(10)
    True
    >>> dyn.trials
    10
    """

    trials: int = 0
    accepted: int = 0

    def _check_forces(self, accurate: ForceSource, fast: ForceSource) -> None:
        if not accurate.has_energy:
            raise ConfigError(
                f"{accurate.name} knows no energy, which decides here; use MTSLangevin"
            )
        if fast.random or accurate.random:
            raise ConfigError(
                "forces with rotation='random' differ at equal positions, so that steps cannot be "
                "reversed; use rotation='none' or 'average'"
            )

    @property
    def acceptance(self) -> float:
        """Fraction of steps accepted; NaN before the first."""
        return self.accepted / self.trials if self.trials else math.nan

    def step(self) -> None:
        """Do one step, and take it back if it is rejected."""
        self._refresh()
        atoms = self.atoms
        positions, momenta = atoms.get_positions(), atoms.get_momenta()
        # Where the step begins both must answer; only what fails on its way is a rejection.
        self._fast_forces(positions)
        before, memory = self._total_energy(), (self._accurate.state_dict(), self._known)
        try:
            super().step()
            change = self._total_energy() - before
        except (InputError, PredictionError):
            # The same step fails on its way back: rejecting it keeps the balance.
            change = math.inf
        if not math.isfinite(change):
            change = math.inf
        self.trials += 1
        if self._rng.random() < acceptance_probability(change, self.temperature_K):
            self.accepted += 1
        else:
            atoms.set_positions(positions)
            atoms.set_momenta(-momenta)
            # The remembered answers spare another evaluation.
            accurate, self._known = memory
            self._accurate.load_state_dict(accurate)
        self._refresh()
        if self.trials == _ENOUGH and not self.accepted:
            warnings.warn(
                f"none of the first {_ENOUGH} steps was accepted, so that nothing has moved; take "
                "shorter steps, or cheap forces that are of this molecule with its atoms in this "
                "order",
                stacklevel=2,
            )

    def _refresh(self) -> None:
        """Let the thermostat act for half a step."""
        self.atoms.set_momenta(self._refreshed(self.atoms.get_momenta(), 0.5 * self.dt))

    def _total_energy(self) -> float:
        return float(self.atoms.get_potential_energy() + self.atoms.get_kinetic_energy())

    def fast_state(self) -> dict[str, Any]:
        """State of the cheap forces, and how many steps they were good enough for."""
        return {**super().fast_state(), "trials": self.trials, "accepted": self.accepted}

    def load_fast_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`fast_state`."""
        super().load_fast_state(state)
        self.trials, self.accepted = state["trials"], state["accepted"]
