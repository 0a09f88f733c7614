"""What can be said of a run in a few words, and when it is too short to say anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from mlmd_calc import units
from mlmd_calc.analysis.statistics import Drift
from mlmd_calc.analysis.trajectory import RunSummary, summarise
from mlmd_calc.md.record import RunRecord

_TELLING: Final = 0.1
"""Largest error of a mean temperature, relative to the thermostat's, that tells anything."""

_SLOW_HEATING: Final = 1.0
"""K/ps; a thermostat of 1/ps keeps the temperature to about this many K against such a drift."""

_SHORTEST_PS: Final = 0.5
"""In less time the slow vibrations of a molecule, to which the energy of velocity Verlet swings,
look like a drift."""

_SWING: Final = 1.0
"""K; more than this, as a change of temperature, the total energy does not swing about its drift
in a run whose forces are conservative and whose time step is short enough."""

_CHANCE: Final = 3.0
"""Multiple of an error, or of a fluctuation, that chance does not reach."""


@dataclass(frozen=True)
class Verdict:
    """What can be said of a run.

    Attributes
    ----------
    sound
        Whether the run does what its equations of motion demand; None if it is too short to tell.
    sentence
        The same in words, with the number it rests on.
    """

    sound: bool | None
    sentence: str


def judge(record: RunRecord) -> Verdict:
    """Judge a run by its bonds and by its mean temperature or, without thermostat, its energy.

    Parameters
    ----------
    record
        Recorded frames, at least one.
    """
    summary = summarise(record)
    if record.failed:
        return Verdict(False, f"failed after {summary.time_ps:.2f} ps")
    if summary.broken_at_ps is not None:
        return Verdict(
            False, f"bond {summary.bond} changed by {summary.bond_deviation:.2f} Å and more"
        )
    if record.description.settings.thermostatted:
        return _judge_temperature(summary, record.description.settings.temperature_K)
    if summary.energy is None:
        return Verdict(None, "no energy, or too few frames")
    return _judge_energy(summary.energy, summary.time_ps)


def _judge_temperature(summary: RunSummary, wanted: float) -> Verdict:
    """Compare the mean temperature with that of the thermostat."""
    if summary.temperature is None or summary.temperature_error is None:
        return Verdict(None, "too short to tell: too few frames")
    difference, error = summary.temperature.value - wanted, summary.temperature_error
    if abs(difference) > _CHANCE * error:
        way = "hot" if difference > 0.0 else "cold"
        return Verdict(False, f"{abs(difference):.0f} K too {way}, more than chance")
    if error > _TELLING * wanted:
        return Verdict(None, f"too short to tell: ±{error:.0f} K")
    return Verdict(True, f"agrees with {wanted:g} K")


def _judge_energy(energy: Drift, time_ps: float) -> Verdict:
    """Say how fast the energy drifts or how far it swings, as temperatures."""
    if time_ps < _SHORTEST_PS:
        return Verdict(None, f"too short to tell: less than {_SHORTEST_PS:g} ps")
    heating, hidden = as_temperature(energy.slope), as_temperature(energy.fluctuation / time_ps)
    if abs(heating) > max(_SLOW_HEATING, _CHANCE * hidden):
        way = "heats" if heating > 0.0 else "cools"
        return Verdict(False, f"{way} by {abs(heating):.0f} K per ps")
    swing = as_temperature(energy.fluctuation)
    if swing > _SWING:
        return Verdict(False, f"energy swings by ±{swing:.0f} K")
    most = abs(heating) + hidden
    if most > _SLOW_HEATING:
        return Verdict(None, f"too short to tell: ±{most:.0f} K per ps")
    # Rounded up, so that no more is promised than was seen.
    return Verdict(True, f"keeps its energy: < {math.ceil(10.0 * most) / 10.0:.1f} K per ps")


def as_temperature(energy: float) -> float:
    """Convert a change of the total energy in meV/atom to the change of temperature in K it makes.

    By equipartition in harmonic vibrations, which store 3 k T per atom.
    """
    return energy * units.MEV / (3.0 * units.KB)
