"""The numbers that tell whether a run can be trusted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.analysis.statistics import FEWEST_BLOCKS, Drift, Mean, block_average, fit_drift
from mlmd_calc.md.record import RunRecord
from mlmd_calc.md.settings import MDSettings

EQUILIBRATION: Final = 0.2
"""Fraction of a thermostatted run that averages leave out, while the molecule warms up."""


_TEMPERATURE_TOLERANCE: Final = 0.1
"""Relative deviation from the thermostat that no run is blamed for."""


@dataclass(frozen=True)
class RunSummary:
    """Summary of a run.

    Attributes
    ----------
    time_ps
        Simulated time in ps.
    temperature
        Mean kinetic temperature in K, of a thermostatted run without its first fifth; None if there
        are too few frames.
    temperature_error
        Standard error in K of the mean temperature of a thermostatted run, see
        :func:`temperature_error`; None without one, or without a thermostat.
    temperature_off
        Whether the temperature is further from that of the thermostat than chance explains; see
        :func:`misses_thermostat`.
    energy
        Drift of the total energy in meV/atom/ps and its fluctuation about the drift in meV/atom, of
        the whole run; None if the model has no energy, there are too few frames, or a thermostat
        changes the energy.
    bond_deviation
        Largest deviation of any bond from its reference length at any step, in Å; None without
        bonds.
    bond
        The bond that deviates most in the recorded frames, e.g. ``"C0-H3"``.
    broken_at_ps
        Time in ps of the first frame by which a bond deviated more than the run's limit; None if
        none did.
    """

    time_ps: float
    temperature: Mean | None
    temperature_error: float | None
    temperature_off: bool
    energy: Drift | None
    bond_deviation: float | None
    bond: str | None
    broken_at_ps: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON-able values, with units in the names."""
        return {
            "time_ps": self.time_ps,
            "temperature_K": None if self.temperature is None else asdict(self.temperature),
            "temperature_off": self.temperature_off,
            "energy_drift_meV_per_atom_per_ps": None if self.energy is None else self.energy.slope,
            "energy_fluctuation_meV_per_atom": None
            if self.energy is None
            else self.energy.fluctuation,
            "largest_bond_deviation_A": self.bond_deviation,
            "bond": self.bond,
            "broken_at_ps": self.broken_at_ps,
        }


def summarise(record: RunRecord) -> RunSummary:
    """Summarise a run.

    Parameters
    ----------
    record
        Recorded frames, at least one.
    """
    record = record.at_steps
    description = record.description
    skip = int(EQUILIBRATION * len(record)) if description.settings.thermostatted else 0
    deviation, bond = largest_bond_deviation(record)
    beyond = np.flatnonzero(record.frames["bond_deviation"] > description.settings.bond_limit)
    broken = float(record.times_ps[beyond[0]]) if bond is not None and len(beyond) else None
    temperature = _mean(record.temperatures[skip:])
    span_ps = float(record.times_ps[-1] - record.times_ps[min(skip, len(record) - 1)])
    of_run = description.settings, description.degrees_of_freedom, span_ps
    return RunSummary(
        time_ps=float(record.times_ps[-1]),
        temperature=temperature,
        temperature_error=None
        if temperature is None or not description.settings.thermostatted
        else temperature_error(temperature, *of_run),
        temperature_off=temperature is not None and misses_thermostat(temperature, *of_run),
        energy=_energy(record),
        bond_deviation=deviation,
        bond=bond,
        broken_at_ps=broken,
    )


def largest_bond_deviation(record: RunRecord) -> tuple[float | None, str | None]:
    """Return the largest change of any bond at any step in Å, and which bond it was in the frames.

    Returns
    -------
    deviation, bond
        None without bonds.
    """
    bonds, frames = record.description.bonds, record.frames
    if not len(bonds):
        return None, None
    recorded = np.abs(bonds.deviations(frames["positions"])).max(axis=0)
    bond = bonds.label(int(recorded.argmax()), record.description.numbers)
    return float(frames["bond_deviation"].max()), bond


def misses_thermostat(
    temperature: Mean, settings: MDSettings, degrees_of_freedom: int, span_ps: float
) -> bool:
    """Tell whether a mean temperature is further from the thermostat's than chance explains.

    It is if it differs by more than a tenth and by more than three times its
    :func:`temperature_error`. Below the thermostat's, what a start at rest in a minimum lacks is
    allowed too: its energy rises as 1 - exp(-γ t) with the rate γ of the thermostat. Always false
    without a thermostat.

    Parameters
    ----------
    temperature
        Mean temperature in K.
    settings
        Settings of the run.
    degrees_of_freedom
        Number of degrees of freedom that share the kinetic energy, of all replicas.
    span_ps
        Time in ps that the mean is over, which the first :data:`EQUILIBRATION` of the run precedes.
    """
    if not settings.thermostatted:
        return False
    wanted = settings.temperature_K
    error = temperature_error(temperature, settings, degrees_of_freedom, span_ps)
    allowed = max(_TEMPERATURE_TOLERANCE * wanted, 3.0 * error)
    return not -allowed - _warming_up(settings, span_ps) <= temperature.value - wanted <= allowed


def _warming_up(settings: MDSettings, span_ps: float) -> float:
    """Return by how much in K a mean over the span lies below the thermostat after a cold start."""
    end = settings.rate_per_ps * span_ps / (1.0 - EQUILIBRATION)
    begin = EQUILIBRATION * end
    lacking = (np.exp(-begin) - np.exp(-end)) / (end - begin) if end > begin else 1.0
    return settings.temperature_K * float(lacking)


def temperature_error(
    temperature: Mean, settings: MDSettings, degrees_of_freedom: int, span_ps: float
) -> float:
    """Return the standard error in K of a mean temperature under a thermostat.

    It is that of the series, but at least that of a canonical ensemble whose kinetic energy is
    correlated over the relaxation time τ of the thermostat, which a short series knows nothing of:
    T √(2 / f) √(2 τ / t) with f degrees of freedom and the time t of the average.

    Parameters
    ----------
    temperature, settings, degrees_of_freedom, span_ps
        As of :func:`misses_thermostat`.
    """
    independent = max(1.0, span_ps * settings.rate_per_ps / 2.0)
    canonical = settings.temperature_K * float(np.sqrt(2.0 / degrees_of_freedom / independent))
    return max(canonical, temperature.standard_error)


def _mean(series: NDArray[np.float64]) -> Mean | None:
    return block_average(series) if len(series) >= FEWEST_BLOCKS else None


def _energy(record: RunRecord) -> Drift | None:
    energies = record.total_energies
    if record.description.settings.thermostatted or len(energies) < 2:
        return None
    if not np.isfinite(energies).all():
        return None
    return fit_drift(record.times_ps, energies / (len(record.description.numbers) * units.MEV))
