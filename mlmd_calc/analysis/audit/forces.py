"""Audit of a force field: everything that is measured of it, with limits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial
from typing import Final

import numpy as np

from mlmd_calc.analysis.audit import field, motion
from mlmd_calc.analysis.audit.measurement import Estimate, Measurement
from mlmd_calc.analysis.audit.settings import AuditSettings, Parts, measured
from mlmd_calc.analysis.jump_ensemble import ALL_ATOMS, Sample, mean_temperatures
from mlmd_calc.errors import ConfigError, PredictionError
from mlmd_calc.potential import Structure
from mlmd_calc.propagation import ForceModel
from mlmd_calc.propagation.forces import has_energy

SHARE_LIMIT: Final = 0.1
"""Percent of the forces that may be wrong in kind: no slope of the energy, or not symmetric."""

ANTISYMMETRY_LIMIT: Final = 1e-3
ROUGHNESS_LIMIT: Final = 1.0
"""meV/Å."""
ENERGY_SPREAD_LIMIT: Final = 1.0
"""meV, a twenty-fifth of k T at room temperature."""
DRIFT_LIMIT: Final = 0.1
"""meV/atom/ps, by which a picosecond changes the temperature by half a kelvin."""
TEMPERATURE_LIMIT: Final = 10.0
"""Percent, of all atoms; twice as much for the few of one element."""

_DERIVED: Final = 2
"""Structures at which forces are differentiated."""
_TURNED: Final = 3
"""Structures that are turned."""


class ForceAudit:
    """Audit of one force field for one molecule.

    Nothing is measured before it is asked for; all that several numbers or pictures need is
    measured once.

    Parameters
    ----------
    forces
        Force model.
    minimum
        The molecule at a minimum of its energy.
    settings
        How much is done.
    """

    def __init__(self, forces: ForceModel, minimum: Structure, settings: AuditSettings) -> None:
        self.forces = forces
        self.minimum = minimum
        self.settings = settings
        self._has_energy = has_energy(forces)

    def parts(self) -> Parts:
        """Parts of the audit by name, in their order."""
        return {
            "bond stretches": self._smoothness,
            "run under a thermostat": self._temperatures,
            "energies against forces": self._conservation,
            "symmetries": self._symmetries,
            "runs at constant energy": self._drift,
        }

    # ---- evidence ----------------------------------------------------------------------------

    @cached_property
    def stretches(self) -> list[field.Stretch]:
        """Force along bonds."""
        found = field.stretches(self.forces, self.minimum)
        if not found:
            raise ConfigError("the molecule has no bond to stretch")
        return found

    @cached_property
    def thermal(self) -> motion.ThermalRun | str:
        """Run under a thermostat, or why no replica came through."""
        try:
            return motion.thermal_run(
                self.forces,
                self.minimum,
                temperature_K=self.settings.temperature_K,
                replicas=self.settings.replicas,
                duration_fs=self.settings.thermal_fs,
                rng=self._rng(0),
            )
        except PredictionError as error:
            return str(error)

    @cached_property
    def structures(self) -> list[Structure]:
        """Structures as a run meets them; if there is none, the minimum with shaken atoms."""
        count = self.settings.structures
        if not isinstance(self.thermal, str):
            return self.thermal.structures(count)
        return field.displaced(self.minimum, count, self._rng(1))

    @cached_property
    def balance(self) -> field.EnergyBalance:
        """Energies against work."""
        self._need_energy()
        return field.energy_balance(self.forces, self.structures, self._rng(2))

    @cached_property
    def turned(self) -> field.Turned:
        """Forces in 60 orientations."""
        return field.turned(self.forces, self.structures[:_TURNED], energies=self._has_energy)

    @cached_property
    def drift(self) -> motion.Drift:
        """Runs at constant energy."""
        self._need_energy()
        settings = self.settings
        return motion.energy_drift(
            self.forces,
            self._settled(),
            replicas=settings.drift_replicas,
            duration_fs=settings.drift_fs,
            timesteps_fs=settings.timesteps_fs,
        )

    @property
    def sample(self) -> Sample:
        """Frames of the run under a thermostat."""
        return self._settled().sample

    def _settled(self) -> motion.ThermalRun:
        if isinstance(self.thermal, str):
            raise PredictionError(self.thermal)
        return self.thermal

    def _need_energy(self) -> None:
        if not self._has_energy:
            raise ConfigError(f"{type(self.forces).__name__} knows no energies")

    def _rng(self, stream: int) -> np.random.Generator:
        """Return a stream of random numbers that does not depend on what was measured before."""
        return np.random.default_rng([self.settings.seed, stream])

    # ---- numbers -----------------------------------------------------------------------------

    def _smoothness(self) -> Iterator[Measurement]:
        yield measured(
            "roughness of the force along bonds",
            ROUGHNESS_LIMIT,
            "meV/Å",
            lambda: Estimate(max(one.roughness_meV_per_A for one in self.stretches), 0.0),
        )
        yield measured(
            "extra minima along bonds",
            0.0,
            "",
            lambda: Estimate(float(sum(one.extra_minima for one in self.stretches)), 0.0),
        )

    def _temperatures(self) -> Iterator[Measurement]:
        lost = 100.0 if isinstance(self.thermal, str) else self.thermal.died_percent
        note = self.thermal if isinstance(self.thermal, str) else ""
        yield Measurement("replicas lost under a thermostat", lost, 0.0, 0.0, "%", note)
        if not isinstance(self.thermal, str):
            yield from temperature_measurements(self.sample, self.settings.temperature_K)

    def _conservation(self) -> Iterator[Measurement]:
        yield measured(
            "energy against work", SHARE_LIMIT, "%", lambda: self.balance.discrepancy_percent
        )
        yield measured(
            "work around closed loops",
            SHARE_LIMIT,
            "%",
            lambda: field.loop_work(self.forces, self.structures, self._rng(3)).share_percent,
        )
        yield measured(
            "antisymmetry λ of the force derivatives",
            ANTISYMMETRY_LIMIT,
            "",
            lambda: field.antisymmetry(self.forces, self.structures[:_DERIVED]),
        )

    def _symmetries(self) -> Iterator[Measurement]:
        for name, estimator in (
            ("net force", field.net_force),
            ("net torque", field.net_torque),
            ("forces far from the origin", field.translation_defect),
        ):
            estimate = partial(estimator, self.forces, self.structures)
            yield measured(name, SHARE_LIMIT, "%", estimate)
        yield measured("rotation of forces", SHARE_LIMIT, "%", lambda: self.turned.force_percent)
        yield measured(
            "rotation of the energy", ENERGY_SPREAD_LIMIT, "meV", self._energy_over_rotations
        )

    def _energy_over_rotations(self) -> Estimate:
        self._need_energy()
        return self.turned.energy_meV

    def _drift(self) -> Iterator[Measurement]:
        yield measured(
            "energy drift at Δt → 0",
            DRIFT_LIMIT,
            "meV/atom/ps",
            lambda: self.drift.extrapolated,
        )


def temperature_measurements(sample: Sample, temperature_K: float) -> Iterator[Measurement]:
    """Deviation of kinetic temperatures from the thermostat, of all atoms and of each element.

    Parameters
    ----------
    sample
        Frames of a run that has settled.
    temperature_K
        Of the thermostat.
    """
    for name, mean in mean_temperatures(sample).items():
        yield Measurement(
            f"temperature of {name}",
            100.0 * (mean.value / temperature_K - 1.0),
            100.0 * mean.standard_error / temperature_K,
            TEMPERATURE_LIMIT if name == ALL_ATOMS else 2.0 * TEMPERATURE_LIMIT,
            "%",
            f"{mean.value:.0f} K",
        )
