"""Pictures of what an audit has measured, as PNG."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any

import numpy as np

from mlmd_calc import units
from mlmd_calc.analysis.audit.forces import ForceAudit
from mlmd_calc.analysis.audit.propagators import PropagatorAudit
from mlmd_calc.analysis.jump_ensemble import Sample, mean_temperatures
from mlmd_calc.analysis.plots import COLOURS
from mlmd_calc.errors import MLMDError
from mlmd_calc.io.figures import new_figure

_SIZE = (5.6, 3.6)


def pictures(audit: ForceAudit | PropagatorAudit) -> dict[str, bytes]:
    """Draw all pictures of an audit whose numbers could be measured, by their titles."""
    drawn: dict[str, bytes] = {}
    for title, draw in _drawings(audit).items():
        figure, axis = _figure(title)
        try:
            draw(axis)
        except MLMDError:
            continue
        buffer = BytesIO()
        figure.savefig(buffer, format="png")
        drawn[title] = buffer.getvalue()
    return drawn


def _drawings(audit: ForceAudit | PropagatorAudit) -> dict[str, Callable[[Any], None]]:
    if isinstance(audit, ForceAudit):
        return {
            "Force along bonds": lambda axis: _draw_stretches(axis, audit),
            "Energy against work of the forces": lambda axis: _draw_balance(axis, audit),
            "Forces in 60 orientations": lambda axis: _draw_turned(axis, audit),
            "Energy drift against time step": lambda axis: _draw_drift(axis, audit),
            "Temperature under a thermostat": lambda axis: _draw_temperatures(
                axis, audit.sample, audit.settings.temperature_K
            ),
        }
    return {
        "Energy changes by single jumps": lambda axis: _draw_changes(axis, audit),
        "Velocity autocorrelation in jumps": lambda axis: _draw_correlations(axis, audit),
        "Temperature in jumps": lambda axis: _draw_temperatures(
            axis, audit.sample, audit.settings.temperature_K
        ),
    }


def _figure(title: str) -> tuple[Any, Any]:
    figure = new_figure(*_SIZE, dpi=110)
    axis = figure.subplots()
    axis.set_title(title)
    axis.grid(alpha=0.25)
    return figure, axis


def _draw_stretches(axis: Any, audit: ForceAudit) -> None:
    for colour, one in zip(_cycle(audit.stretches), audit.stretches, strict=True):
        axis.plot(one.lengths, one.pulls, color=colour, label=one.name)
    axis.axhline(0.0, color="0.3", linewidth=0.8)
    axis.set(xlabel="bond length (Å)", ylabel="force along the bond (eV/Å)")
    axis.legend(frameon=False)


def _draw_balance(axis: Any, audit: ForceAudit) -> None:
    balance = audit.balance
    axis.plot(balance.works, balance.changes, "o", color=COLOURS[0])
    ends = np.array([balance.changes.min(), balance.changes.max()])
    axis.plot(ends, ends, color="0.3", linewidth=0.8)
    axis.set(xlabel="minus work of the forces (eV)", ylabel="change of the energy (eV)")


def _draw_turned(axis: Any, audit: ForceAudit) -> None:
    lengths = np.linalg.norm(audit.turned.deviations, axis=-1).ravel() / units.MEV
    # Rounding spans many orders of magnitude, and may be exactly nothing.
    axis.hist(np.log10(np.maximum(lengths, 1e-15)), bins=40, color=COLOURS[0])
    axis.locator_params(axis="x", nbins=6)
    axis.set(xlabel="log₁₀ of the deviation from the mean (meV/Å)", ylabel="atoms × orientations")


def _draw_drift(axis: Any, audit: ForceAudit) -> None:
    drift = audit.drift
    powers = drift.timesteps_fs**4
    for colour, drifts, limit in zip(
        _cycle(drift.limits), drift.drifts.T, drift.limits, strict=True
    ):
        axis.plot(powers, drifts, "o-", color=colour)
        axis.plot([0.0, powers[0]], [limit, drifts[0]], "--", color=colour)
    axis.axhline(0.0, color="0.3", linewidth=0.8)
    axis.set(xlabel="Δt⁴ (fs⁴)", ylabel="drift of each replica (meV/atom/ps)")


def _draw_temperatures(axis: Any, sample: Sample, temperature_K: float) -> None:
    means = mean_temperatures(sample)
    places = np.arange(len(means))
    axis.bar(
        places,
        [mean.value for mean in means.values()],
        yerr=[mean.standard_error for mean in means.values()],
        color=COLOURS[0],
        capsize=4,
    )
    axis.axhline(temperature_K, color="0.3", linestyle="--", label="thermostat")
    axis.set_xticks(places, list(means))
    axis.set_ylabel("kinetic temperature (K)")
    # Room for the legend above the bars.
    axis.set_ylim(top=1.15 * axis.get_ylim()[1])
    axis.legend(frameon=False, loc="upper left")


def _draw_changes(axis: Any, audit: PropagatorAudit) -> None:
    changes = audit.energies.changes / units.MEV
    axis.hist(changes, bins=30, color=COLOURS[0])
    axis.axvline(0.0, color="0.3", linewidth=0.8)
    axis.axvline(changes.mean(), color=COLOURS[1], linestyle="--", label="mean")
    axis.set(xlabel="change of the total energy (meV)", ylabel="jumps")
    axis.legend(frameon=False)


def _draw_correlations(axis: Any, audit: PropagatorAudit) -> None:
    mean = audit.correlations.mean(axis=0)
    times = audit.conditions.stride_fs / units.FS_PER_PS * np.arange(len(mean))
    axis.plot(times, mean, color=COLOURS[0], label="jumps")
    envelope = np.exp(-0.5 * audit.conditions.friction_per_ps * times)
    for sign, label in ((1.0, "envelope of a vibration"), (-1.0, None)):
        axis.plot(times, sign * envelope, color="0.3", linestyle="--", label=label)
    axis.set(xlabel="time (ps)", ylabel="velocity autocorrelation")
    axis.legend(frameon=False)


def _cycle(items: Iterable[Any]) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i, _ in enumerate(items)]
