"""Audit of a propagator: everything that is measured of it, with limits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import ase
import numpy as np
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.analysis.audit import chain, jump, motion
from mlmd_calc.analysis.audit.forces import temperature_measurements
from mlmd_calc.analysis.audit.measurement import Estimate, Measurement
from mlmd_calc.analysis.audit.settings import (
    FEWEST_REPLICAS,
    AuditSettings,
    Parts,
    measured,
)
from mlmd_calc.analysis.jump_ensemble import Sample
from mlmd_calc.analysis.jump_fidelity import FidelitySettings, JumpRun, run_jumps
from mlmd_calc.analysis.jump_map import JumpMap
from mlmd_calc.errors import ConfigError, PredictionError
from mlmd_calc.geometry.bonds import bond_lengths, find_bonds
from mlmd_calc.potential import Structure
from mlmd_calc.propagation import ForceModel, Propagator, State
from mlmd_calc.wording import counted

ROTATION_LIMIT: Final = 1.0
REVERSIBILITY_LIMIT: Final = 0.1
"""Percent of the way of a jump."""
DETERMINANT_LIMIT: Final = 0.01
FLIGHT_LIMIT: Final = 1.0
RESPONSE_LIMIT: Final = 30.0
"""Percent; jumps are no force-based steps, but must follow the momenta they are given."""
HEATING_LIMIT: Final = 20.0
"""Percent of k T per ps, which makes a run with a friction of 10/ps 2 % too hot."""
REJECTION_LIMIT: Final = 20.0
CORRELATION_LIMIT: Final = 0.15
ENERGY_CORRELATION_LIMIT: Final = 0.4
ASYMMETRY_LIMIT: Final = 0.1

_DERIVED: Final = 3
"""States at which the determinant is taken."""
_TURNED: Final = 3
_RESPONSES: Final = 12
_WAITING: Final = (6.0, 10.0)
"""Relaxation times between which correlations should have decayed: e⁻³ is left of a vibration."""
_LENGTH: Final = 20.0
"""Relaxation times of a run that tells these correlations."""
_LAGS: Final = (1, 2, 3)
"""Frames over which time may show an arrow; bonds vibrate with periods of 9 to 40 fs."""
_FRICTION_PER_PS: Final = 10.0
"""Where a propagator recommends none."""


@dataclass(frozen=True)
class JumpConditions:
    """How a propagator is used.

    Attributes
    ----------
    stride_fs
        Length of a jump in fs.
    friction_per_ps
        Of the Langevin thermostat in 1/ps.
    """

    stride_fs: float
    friction_per_ps: float

    @classmethod
    def usual(
        cls, propagator: Propagator, stride_fs: float | None, friction_per_ps: float | None
    ) -> JumpConditions:
        """Fill in what the propagator recommends.

        Raises
        ------
        ConfigError
            If there is no stride.
        """
        friction = friction_per_ps or propagator.conditions.friction_per_ps or _FRICTION_PER_PS
        return cls(stride_fs or propagator.usual_stride_fs(), friction)


class PropagatorAudit:
    """Audit of one propagator for one molecule; measured is what is asked for.

    Parameters
    ----------
    propagator
        What is audited.
    forces
        Force model of the potential in which it moves molecules.
    minimum
        The molecule at a minimum of that potential.
    settings
        How much is done.
    conditions
        Stride and friction.

    Raises
    ------
    ConfigError
        If the propagator predicts no velocities, or cannot make such jumps.
    """

    def __init__(
        self,
        propagator: Propagator,
        forces: ForceModel,
        minimum: Structure,
        settings: AuditSettings,
        conditions: JumpConditions,
    ) -> None:
        self.propagator = propagator
        self.forces = forces
        self.minimum = minimum
        self.settings = settings
        self.conditions = conditions
        self.jump = JumpMap(propagator, conditions.stride_fs, settings.seed)

    def parts(self) -> Parts:
        """Parts of the audit by name, in their order."""
        return {
            "single jumps": self._maps,
            "energies": self._energies,
            "new momenta": self._momenta,
            "run of jumps": self._chain,
        }

    # ---- evidence ----------------------------------------------------------------------------

    @cached_property
    def states(self) -> list[State]:
        """States of a force-based run, from which jumps are made."""
        settings = self.settings
        run = motion.thermal_run(
            self.forces,
            self.minimum,
            temperature_K=settings.temperature_K,
            replicas=settings.jump_replicas,
            duration_fs=10.0 * max(1, round(settings.states / settings.jump_replicas)),
            rng=np.random.default_rng([settings.seed, 0]),
        )
        return run.states(settings.states)

    @cached_property
    def energies(self) -> jump.EnergyChanges:
        """Changes of the total energy by single jumps."""
        return jump.jump_energies(self.jump, self.forces, self.states, self.settings.temperature_K)

    @cached_property
    def run(self) -> JumpRun:
        """Run of jumps under a thermostat; guard and corrections would hide what is to be seen."""
        settings, friction = self.settings, self.conditions.friction_per_ps
        duration = _LENGTH / friction if settings.jumps_ps is None else settings.jumps_ps
        return run_jumps(
            self.propagator,
            self.forces,
            self.states[: settings.jump_replicas],
            FidelitySettings(
                stride_fs=self.conditions.stride_fs,
                temperature_K=settings.temperature_K,
                duration_ps=duration,
                replicas=settings.jump_replicas,
                seed=settings.seed,
            ),
            friction,
            bare=True,
        )

    @cached_property
    def sample(self) -> Sample:
        """Frames of the run of jumps.

        Raises
        ------
        PredictionError
            If fewer than three replicas came through.
        """
        alive = self.run.replicas - self.run.died
        if alive < FEWEST_REPLICAS or not self.run.frames:
            raise PredictionError(
                f"{alive} of {counted(self.run.replicas, 'replica')} came through"
            )
        return Sample.from_states(self.run.frames)

    @cached_property
    def correlations(self) -> NDArray[np.float64]:
        """Velocity autocorrelation of each replica."""
        return chain.autocorrelations(self.sample, self._lags().stop)

    def _lags(self) -> slice:
        """Frames between which correlations should have decayed."""
        first, last = (
            round(
                times
                * units.FS_PER_PS
                / self.conditions.friction_per_ps
                / self.conditions.stride_fs
            )
            for times in _WAITING
        )
        return slice(first, max(last, first + 1))

    # ---- numbers -----------------------------------------------------------------------------

    def _maps(self) -> Iterator[Measurement]:
        # Without states there is nothing to measure.
        states, stride = self.states, self.conditions.stride_fs
        yield measured(
            "flight of the centre of mass",
            FLIGHT_LIMIT,
            "%",
            lambda: jump.flight_percent(self.jump, states),
        )
        yield measured(
            "rotation of jumps",
            ROTATION_LIMIT,
            "%",
            lambda: jump.rotation_percent(self.propagator, self.forces, states[:_TURNED], stride),
        )
        for name, limit, unit, estimator in (
            ("way back after a jump and its reverse", REVERSIBILITY_LIMIT, "%", self._back),
            ("log |det J|", DETERMINANT_LIMIT, "", self._determinant),
        ):
            yield measured(name, limit, unit, estimator)

    def _back(self) -> Estimate:
        self._need_map()
        return jump.reversibility_percent(self.jump, self.states)

    def _determinant(self) -> Estimate:
        self._need_map()
        return jump.log_determinant(self.jump, self.states[:_DERIVED])

    def _need_map(self) -> None:
        if self.propagator.stochastic:
            raise ConfigError("jumps with random numbers are no map that could be reversed")

    def _energies(self) -> Iterator[Measurement]:
        yield measured(
            "heating by jumps",
            HEATING_LIMIT,
            "% of kT/ps",
            lambda: self.energies.heating_percent_per_ps,
        )
        yield measured(
            "jumps that a Metropolis test rejects",
            REJECTION_LIMIT,
            "%",
            lambda: self.energies.rejected_percent,
        )

    def _momenta(self) -> Iterator[Measurement]:
        settings = self.settings
        yield measured(
            "response to new momenta",
            RESPONSE_LIMIT,
            "%",
            lambda: jump.momentum_response_percent(
                self.propagator,
                self.forces,
                self.states[:_RESPONSES],
                self.conditions.stride_fs,
                settings.temperature_K,
                np.random.default_rng([settings.seed, 1]),
            ),
        )

    def _chain(self) -> Iterator[Measurement]:
        lost = measured("replicas lost in jumps", 0.0, "%", self._lost)
        yield lost
        if math.isnan(lost.value):
            return
        yield measured(
            "velocity correlation that is left",
            CORRELATION_LIMIT,
            "",
            lambda: chain.remaining_correlation(self.correlations, self._lags()),
        )
        yield measured(
            "energy correlation that is left",
            ENERGY_CORRELATION_LIMIT,
            "",
            lambda: chain.remaining_energy_correlation(self._total_energies(), self._lags()),
        )
        yield measured("arrow of time in bonds", ASYMMETRY_LIMIT, "", self._asymmetry)
        if lost.value < 100.0:
            yield from temperature_measurements(self.run.sample(), self.settings.temperature_K)

    def _lost(self) -> Estimate:
        return Estimate(100.0 * self.run.died / self.run.replicas, 0.0)

    def _total_energies(self) -> NDArray[np.float64]:
        """Total energies ``(f, r)`` eV of the run of jumps."""
        if not self.run.frames:
            raise PredictionError("no replica came through")
        return np.array([[state.total_energy for state in frame] for frame in self.run.frames])

    def _asymmetry(self) -> Estimate:
        bonds = find_bonds(ase.Atoms(self.minimum.numbers, self.minimum.positions)).pairs
        return chain.time_asymmetry(bond_lengths(self.sample.positions, bonds), _LAGS)
