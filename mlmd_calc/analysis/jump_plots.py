"""Pictures of how well propagators predict, and of what runs with them sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mlmd_calc.analysis.jumps import JumpErrors
from mlmd_calc.analysis.statistics import Mean
from mlmd_calc.io.figures import new_figure

_MARKERS: Final = "os^Dvx*"


def plot_jump_errors(errors: Mapping[str, JumpErrors], path: Path, title: str) -> None:
    """Draw position and velocity errors, relative to the true change, against time.

    Parameters
    ----------
    errors
        Name of a propagator to its errors.
    path
        PNG file to write.
    title
        Heading of the picture.
    """
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    # Ten to some power is not how anyone says 8 fs or 20 %.
    plain = StrMethodFormatter("{x:g}")
    times = sorted({float(time) for found in errors.values() for time in found.times})
    figure = new_figure(9.0, 4.0, title=title, dpi=150)
    for axis, quantity in zip(figure.subplots(1, 2), ("position", "velocity"), strict=True):
        for (name, found), marker in zip(errors.items(), _MARKERS, strict=False):
            relative = 100.0 * found.relative(quantity)
            axis.loglog(found.times, relative, marker=marker, markersize=4, label=name)
        axis.axhline(100.0, color="0.3", linestyle="--", linewidth=1.0)
        axis.xaxis.set_major_locator(FixedLocator(times))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(plain)
        axis.yaxis.set_major_formatter(plain)
        axis.set(xlabel="time (fs)", ylabel=f"{quantity} error (% of RMS change)")
        axis.grid(alpha=0.25, which="both")
    figure.axes[0].legend(frameon=False, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def plot_mean_temperatures(
    runs: Mapping[str, Mapping[str, Mean]], path: Path, title: str, *, temperature_K: float
) -> None:
    """Draw mean kinetic temperatures of runs, of all atoms and of each element.

    Parameters
    ----------
    runs
        Name of a run to its temperatures in K by name of the atoms; empty of a run that failed.
    path
        PNG file to write.
    title
        Heading of the picture.
    temperature_K
        Temperature of the thermostat.
    """
    figure = new_figure(8.0, 4.0, title=title)
    axis = figure.subplots()
    kinds = list(dict.fromkeys(kind for run in runs.values() for kind in run))
    for index, (kind, marker) in enumerate(zip(kinds, _MARKERS, strict=False)):
        own = [(place, run[kind]) for place, run in enumerate(runs.values()) if kind in run]
        axis.errorbar(
            [place + 0.1 * index for place, _ in own],
            [mean.value for _, mean in own],
            [mean.standard_error for _, mean in own],
            fmt=marker,
            capsize=2,
            label=kind,
        )
    axis.axhline(temperature_K, color="0.3", linestyle="--", linewidth=1.0)
    axis.set_xticks(range(len(runs)), list(runs))
    axis.set(xlabel="friction (1/ps)", ylabel="kinetic temperature (K)")
    axis.grid(alpha=0.25, axis="y")
    if kinds:
        axis.legend(frameon=False, fontsize="small")
    figure.savefig(path)
