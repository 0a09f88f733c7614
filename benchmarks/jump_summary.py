"""Numbers and pictures of the runs of ``bench_jump.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.analysis.jump_ensemble import (
    Divergences,
    InternalCoordinates,
    Sample,
    divergences,
    mean_temperatures,
)
from mlmd_calc.analysis.trajectory import EQUILIBRATION
from mlmd_calc.errors import InputError
from mlmd_calc.io.figures import new_figure

_BINS: Final = 60


def divergence_floor(coordinates: InternalCoordinates, reference: Sample) -> Divergences:
    """Divergences of the halves of a run: what its length and chance account for.

    An upper limit of that, because each half is as short as half the run.
    """
    middle = len(reference) // 2
    if middle == 0:
        raise InputError("a single frame has no halves to compare; run longer")
    halves = reference.part(slice(middle)), reference.part(slice(middle, None))
    return divergences(coordinates, *halves, binned=reference)


def summarise_ensemble(
    coordinates: InternalCoordinates, sample: Sample, reference: Sample, *, bond_limit: float
) -> dict[str, Any]:
    """Summarise a run, as JSON-able values with units in the names.

    Parameters
    ----------
    coordinates
        Bonds and torsions of the molecule.
    sample
        The run from its start. Temperatures and distributions leave out its first part, bond
        changes do not.
    reference
        Equilibrated frames of the run to compare it with.
    bond_limit
        Å; a molecule with a bond that deviates by more is broken.
    """
    changes = np.abs(coordinates.bonds.deviations(sample.positions))
    largest, bond = None, None
    if changes.size:
        worst = int(changes.max(axis=(0, 1)).argmax())
        largest = float(changes[..., worst].max())
        bond = coordinates.bonds.label(worst, coordinates.numbers)
    settled = sample.without_first(EQUILIBRATION)
    return {
        "temperature_K": {
            name: {
                "value": mean.value,
                # JSON knows no numbers that are not finite.
                "standard_error": None if np.isnan(mean.standard_error) else mean.standard_error,
                "resolved": mean.resolved,
            }
            for name, mean in mean_temperatures(settled).items()
        },
        "largest_bond_change_A": largest,
        "bond": bond,
        "broken_molecules": int((changes > bond_limit).any(axis=(0, 2)).sum()),
        "divergence_bits": asdict(divergences(coordinates, reference, settled)),
    }


def plot_distributions(
    runs: Mapping[str, Mapping[str, NDArray[np.float64]]],
    path: Path,
    title: str,
    *,
    unit: str,
    limits: tuple[float, float] | None = None,
) -> None:
    """Draw the distributions of some coordinates, those of all runs on top of each other.

    Parameters
    ----------
    runs
        Name of a run, to its values of each coordinate by name. All have the coordinates of the
        first run, which is filled in grey.
    path
        PNG file to write.
    title
        Heading of the picture.
    unit
        Unit of the values.
    limits
        Range that is shown. None: that of the first run, and half as much on both sides.
    """
    first = next(iter(runs.values()))
    columns = min(3, len(first))
    rows = -(-len(first) // columns)
    figure = new_figure(1.0 + 3.2 * columns, 1.0 + 2.4 * rows, title=title, dpi=150)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (coordinate, values) in zip(axes, first.items(), strict=False):
        edges = np.linspace(*(limits or _range(values)), _BINS + 1)
        for name, found in runs.items():
            filled = found is first
            _draw_histogram(axis, found[coordinate], edges, filled=filled, label=name)
        axis.set_title(coordinate, fontsize="medium")
        axis.set_xlabel(unit)
        axis.set_yticks([])
    for axis in axes[len(first) :]:
        axis.set_axis_off()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = max(0.5 * (high - low), 1e-3)
    return low - margin, high + margin


def _draw_histogram(
    axis: Any, values: NDArray[np.float64], edges: NDArray[np.float64], *, filled: bool, label: str
) -> None:
    """Draw a density; what lies outside counts in its scale but is not shown."""
    counts = np.histogram(values, edges)[0] / (len(values) * np.diff(edges))
    style = {"color": "0.8", "fill": True} if filled else {"linewidth": 1.2}
    axis.stairs(counts, edges, label=label, **style)


def plot_temperatures(
    runs: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    path: Path,
    title: str,
    *,
    temperature_K: float,
) -> None:
    """Draw kinetic temperatures against time.

    Parameters
    ----------
    runs
        Name of a run to its times in ps and temperatures in K.
    path
        PNG file to write.
    title
        Heading of the picture.
    temperature_K
        Temperature of the thermostat; what is more than three times as hot is not shown.
    """
    figure = new_figure(8.0, 4.0, title=title, dpi=150)
    axis = figure.subplots()
    for name, (times, temperatures) in runs.items():
        axis.plot(times, temperatures, linewidth=1.0, alpha=0.8, label=name)
    axis.axhline(temperature_K, color="0.3", linestyle="--", linewidth=1.0)
    hottest = max(float(temperatures.max()) for _, temperatures in runs.values())
    axis.set_ylim(0.0, min(3.0 * temperature_K, 1.05 * hottest))
    axis.set_xlabel("time (ps)")
    axis.set_ylabel("kinetic temperature (K)")
    axis.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
