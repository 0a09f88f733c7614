"""Pictures of runs, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.analysis.statistics import fit_drift
from mlmd_calc.md.record import RunRecord

if TYPE_CHECKING:
    from mlmd_calc.analysis.spectra import Spectrum

COLOURS: Final = ("#0b559f", "#d95f02", "#1b9e77", "#7570b3", "#666666")
_GUIDE: Final = {"color": "0.3", "linestyle": "--", "linewidth": 1.0}
_ROWS: Final = ("energy since start\n(meV/atom)", "kinetic temperature (K)", "bond deviation (Å)")
_WINDOWS: Final = 50
"""Running means are taken over the run's length divided by this."""


def plot_run(record: RunRecord, path: Path, title: str) -> None:
    """Draw energies, temperature and bonds of one run against time, or against steps without time.

    Parameters
    ----------
    record
        Recorded frames.
    path
        PNG file to write.
    title
        Heading of the picture.
    """
    figure, axes = _figure(columns=1, title=title)
    energy, temperature, bonds = axes[:, 0]
    _draw_energies(energy, record)
    temperature.plot(
        record.progress[0],
        record.temperatures,
        color=COLOURS[0],
        alpha=0.3,
        linewidth=0.7,
        label="every frame",
    )
    _draw_running_mean(temperature, record, COLOURS[0], label="running mean")
    _draw_bonds(bonds, record, COLOURS[0], label="largest of all bonds")
    bonds.set_xlabel(record.progress[1])
    _finish(axes[:, 0], record)
    figure.savefig(path)


def plot_comparison(columns: Mapping[str, Mapping[str, RunRecord]], path: Path, title: str) -> None:
    """Draw the total energy, temperature and bonds of several runs on top of each other.

    A cross marks the end of a run that failed.

    Parameters
    ----------
    columns
        Heading of each column of panels, to the runs it shows by name; a name has the same colour
        in all columns.
    path
        PNG file to write.
    title
        Heading of the picture.
    """
    figure, axes = _figure(columns=len(columns), title=title)
    names = list(dict.fromkeys(name for runs in columns.values() for name in runs))
    for column, (heading, runs) in zip(axes.T, columns.items(), strict=True):
        energy, temperature, bonds = column
        energy.set_title(heading, pad=30)
        for name, record in runs.items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            total = _per_atom(record, record.total_energies)
            energy.plot(record.progress[0], total, color=colour, linewidth=1.1, label=name)
            _draw_running_mean(temperature, record, colour)
            _draw_bonds(bonds, record, colour)
        _finish(column, next(iter(runs.values())))
        for name, record in runs.items():
            if record.failed:
                _draw_crosses(column, record, COLOURS[names.index(name) % len(COLOURS)])
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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.0), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    axis = figure.subplots()
    for wavenumber in () if harmonic is None else harmonic:
        axis.axvline(wavenumber, color="0.6", linestyle="--", linewidth=0.8)
    axis.plot(spectrum.wavenumbers, spectrum.density, color=COLOURS[0])
    axis.set_xlim(0.0, min(4200.0, float(spectrum.wavenumbers[-1])))
    axis.set_xlabel("wavenumber (1/cm)")
    axis.set_ylabel("power (cm)")
    figure.savefig(path)


def _figure(columns: int, title: str) -> tuple[Any, Any]:
    """Figure with three rows of panels that share their time axes."""
    # The object-oriented interface leaves matplotlib's global state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.0 + 6.0 * columns, 8.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    axes = figure.subplots(3, columns, sharex="col", squeeze=False)
    for label, row in zip(_ROWS, axes, strict=True):
        row[0].set_ylabel(label)
    for axis in axes[-1]:
        axis.set_xlabel("time (ps)")
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.margins(x=0.01)
    return figure, axes


def _finish(column: Any, record: RunRecord) -> None:
    """Lines of thermostat and bond limit, ranges that keep them in sight, and legends."""
    _, temperature, bonds = column
    settings = record.description.settings
    if settings.thermostatted:
        kelvin = settings.temperature_K
        temperature.axhline(kelvin, **_GUIDE, label=f"thermostat, {kelvin:g} K")
    temperature.set_ylim(bottom=0.0)
    limit = settings.bond_limit
    bonds.axhline(limit, **_GUIDE, label=f"limit, {limit:g} Å")
    bonds.set_ylim(0.0, max(1.15 * limit, min(bonds.get_ylim()[1], settings.bond_stop)))
    for axis in column:
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


def _draw_running_mean(axis: Any, record: RunRecord, colour: str, label: str | None = None) -> None:
    window = max(1, len(record) // _WINDOWS)
    weights = np.full(window, 1.0 / window)
    times = np.convolve(record.progress[0], weights, mode="valid")
    smooth = np.convolve(record.temperatures, weights, mode="valid")
    axis.plot(times, smooth, color=colour, linewidth=1.4, label=label)


def _draw_bonds(axis: Any, record: RunRecord, colour: str, label: str | None = None) -> None:
    deviations = record.frames["bond_deviation"]
    axis.plot(record.progress[0], deviations, color=colour, linewidth=0.9, label=label)


def _draw_crosses(column: Any, record: RunRecord, colour: str) -> None:
    """Mark where a run ended, at the rim of panels that its last value lies outside of."""
    for axis, series in zip(
        column,
        (
            _per_atom(record, record.total_energies),
            record.temperatures,
            record.frames["bond_deviation"],
        ),
        strict=True,
    ):
        axis.plot(
            record.progress[0][-1:],
            np.clip(series[-1:], *axis.get_ylim()),
            color=colour,
            marker="x",
            markersize=9,
            markeredgewidth=2.5,
            clip_on=False,
        )
