"""Pictures of runs, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.analysis.statistics import fit_drift
from mlmd_calc.io.figures import new_figure
from mlmd_calc.md.record import RunRecord

if TYPE_CHECKING:
    from mlmd_calc.analysis.spectra import Spectrum
    from mlmd_calc.analysis.spread import SpreadCalibration

COLOURS: Final = ("#0b559f", "#d95f02", "#1b9e77", "#7570b3", "#666666")
GUIDE: Final[dict[str, Any]] = {"color": "0.3", "linestyle": "--", "linewidth": 1.0}
_ROWS: Final = ("energy since start\n(meV/atom)", "kinetic temperature (K)", "bond deviation (Å)")
_BINS: Final = 60
_WINDOWS: Final = 50
"""Running means are taken over the run's length divided by this."""


def plot_run(record: RunRecord, path: Path, title: str) -> None:
    """Draw energies, temperature and bonds of one run against time, or steps where it has none."""
    record = record.at_steps
    figure, axes = _figure(title)
    energy, temperature, bonds = axes
    _draw_energies(energy, record)
    temperature.plot(
        record.progress[0],
        record.temperatures,
        color=COLOURS[0],
        alpha=0.3,
        linewidth=0.7,
        label="every frame",
    )
    _draw_running_mean(temperature, record)
    _draw_bonds(bonds, record)
    bonds.set_xlabel(record.progress[1])
    _finish(axes, record)
    figure.savefig(path)


def plot_spectrum(
    spectrum: Spectrum, path: Path, title: str, harmonic: NDArray[np.float64] | None
) -> None:
    """Draw a power spectrum, with the frequencies of a Hessian as lines.

    Parameters
    ----------
    spectrum
        Of a trajectory.
    path
        PNG file to write.
    title
        Heading of the picture.
    harmonic
        1/cm; None for no lines.
    """
    figure = new_figure(9.0, 4.0, title=title)
    axis = figure.subplots()
    for wavenumber in () if harmonic is None else harmonic:
        axis.axvline(wavenumber, color="0.6", linestyle="--", linewidth=0.8)
    axis.plot(spectrum.wavenumbers, spectrum.density, color=COLOURS[0])
    axis.set_xlim(0.0, min(4200.0, float(spectrum.wavenumbers[-1])))
    axis.set_xlabel("wavenumber (1/cm)")
    axis.set_ylabel("power (cm)")
    figure.savefig(path)


def plot_calibration(found: SpreadCalibration, path: Path) -> None:
    """Draw the error of the forces over their spread, with the limit that was chosen."""
    figure = new_figure(5.6, 4.0)
    axis = figure.subplots()
    spreads = [one.spread for one in found.bins]
    axis.fill_between(
        spreads, [one.low for one in found.bins], [one.high for one in found.bins], alpha=0.2
    )
    axis.plot(spreads, [one.error for one in found.bins], "o-", color=COLOURS[0])
    axis.plot(spreads, spreads, label="error = spread", **GUIDE)
    axis.axvline(found.max_spread / units.MEV, color=COLOURS[1], label="max_spread")
    axis.set_xlabel("spread (meV/Å)")
    axis.set_ylabel("RMS error of forces (meV/Å)")
    axis.set_xlim(left=0.0)
    axis.set_ylim(bottom=0.0)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    figure.savefig(path)


def plot_force_errors(errors: Mapping[str, NDArray[np.float64]], path: Path) -> None:
    """Draw how often errors of force components of each size are, by element.

    Parameters
    ----------
    errors
        Symbol of an element to errors of any shape in eV/Å.
    path
        PNG file to write.
    """
    from matplotlib.ticker import StrMethodFormatter

    figure = new_figure(7.0, 4.0)
    axis = figure.subplots()
    sizes = {symbol: np.abs(own).ravel() / units.MEV for symbol, own in errors.items()}
    largest = max(float(own.max()) for own in sizes.values())
    bins = np.linspace(0.0, max(largest, 1e-6), _BINS).tolist()
    for symbol, own in sizes.items():
        weights = np.full(len(own), 100.0 / len(own))
        axis.hist(own, bins=bins, weights=weights, histtype="step", label=symbol)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_xlabel("error of a force component (meV/Å)")
    axis.set_ylabel("components (%)")
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    figure.savefig(path)


def _figure(title: str) -> tuple[Any, Any]:
    """Figure with three panels below each other that share their time axis."""
    figure = new_figure(7.0, 8.5, title=title)
    axes = figure.subplots(3, sharex="col")
    for label, axis in zip(_ROWS, axes, strict=True):
        axis.set_ylabel(label)
        axis.grid(alpha=0.25)
        axis.margins(x=0.01)
    return figure, axes


def _finish(axes: Any, record: RunRecord) -> None:
    """Lines of thermostat and bond limit, ranges that keep them in sight, and legends."""
    _, temperature, bonds = axes
    settings = record.description.settings
    if settings.thermostatted:
        kelvin = settings.temperature_K
        temperature.axhline(kelvin, **GUIDE, label=f"thermostat, {kelvin:g} K")
    temperature.set_ylim(bottom=0.0)
    limit = settings.bond_limit
    bonds.axhline(limit, **GUIDE, label=f"limit, {limit:g} Å")
    bonds.set_ylim(0.0, max(1.15 * limit, min(bonds.get_ylim()[1], settings.bond_stop)))
    for axis in axes:
        if axis.get_legend_handles_labels()[0]:
            # Above the panel, where it covers no data.
            axis.legend(
                loc="lower left",
                bbox_to_anchor=(0.0, 1.0),
                ncols=4,
                frameon=False,
                fontsize="small",
                borderaxespad=0.2,
            )


def _per_atom(record: RunRecord, energies: NDArray[np.float64]) -> NDArray[np.float64]:
    """Energies relative to the first one in meV/atom."""
    scale = len(record.description.numbers) * units.MEV
    return np.asarray((energies - energies[0]) / scale)


def _draw_energies(axis: Any, record: RunRecord) -> None:
    times, total = record.progress[0], _per_atom(record, record.total_energies)
    if not np.isfinite(total).all():
        axis.text(0.5, 0.5, "the model gives no energy", transform=axis.transAxes, ha="center")
        return
    if record.description.settings.thermostatted:
        potential = _per_atom(record, record.frames["potential"])
        axis.plot(times, potential, color=COLOURS[2], linewidth=0.7, alpha=0.6, label="potential")
        axis.plot(times, total, color=COLOURS[0], linewidth=1.1, label="total")
        return
    axis.plot(times, total, color=COLOURS[0], linewidth=0.8, alpha=0.6, label="total")
    if len(times) > 1:
        drift = fit_drift(times, total)
        line = total.mean() + drift.slope * (times - times.mean())
        label = f"drift {drift.slope:+.3g} meV/atom/ps"
        axis.plot(times, line, color="black", linewidth=1.4, label=label)


def _draw_running_mean(axis: Any, record: RunRecord) -> None:
    window = max(1, len(record) // _WINDOWS)
    weights = np.full(window, 1.0 / window)
    times = np.convolve(record.progress[0], weights, mode="valid")
    smooth = np.convolve(record.temperatures, weights, mode="valid")
    axis.plot(times, smooth, color=COLOURS[0], linewidth=1.4, label="running mean")


def _draw_bonds(axis: Any, record: RunRecord) -> None:
    axis.plot(
        record.progress[0],
        record.frames["bond_deviation"],
        color=COLOURS[0],
        linewidth=0.9,
        label="largest of all bonds",
    )
