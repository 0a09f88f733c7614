"""`mlmd evaluate jumps`: errors of ATOM propagators beside baselines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from ase.data import chemical_symbols
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mlmd_calc.analysis.accuracy import spread_index
from mlmd_calc.analysis.jump_baselines import ALL, MODEL, compare_with_baselines
from mlmd_calc.analysis.jump_plots import plot_jump_errors
from mlmd_calc.analysis.jumps import (
    JumpErrors,
    energy_errors,
    jumps_of,
    measure_jumps,
    rotation_defect,
)
from mlmd_calc.cli.report import Report
from mlmd_calc.data import MoleculeFrames
from mlmd_calc.errors import ConfigError
from mlmd_calc.potential import Potential
from mlmd_calc.propagation import ForceModel, Propagator, VerletPropagator

TIMES_FS: Final = (2.0, 4.0, 8.0, 16.0, 32.0)
_MOLECULES: Final = 10
_JUMPS: Final = 4


def evaluate_jumps(
    propagator: Propagator,
    molecules: list[MoleculeFrames],
    report: Report,
    *,
    potential: str | None,
    times_fs: list[float] | None,
    frames: int,
    verlet_fs: float | None,
    plots: Path | None,
    draw: bool,
    seed: int,
) -> dict[str, Any]:
    """Measure a propagator beside its baselines.

    Parameters
    ----------
    propagator
        What to measure.
    molecules
        Trajectories.
    report
        Gets tables and pictures.
    potential
        Force field of the energies and of velocity Verlet; None for that of the propagator.
    times_fs
        Times to predict; None for those of `TIMES_FS` that the propagator can jump over.
    frames
        At most this many jumps per molecule.
    verlet_fs
        Time step of velocity Verlet, as one more baseline; None to leave it out.
    plots
        Folder for pictures, or None.
    draw
        Draw them for the report, too.
    seed
        Seed of random orientations.

    Returns
    -------
    dict
        The numbers, JSON-able.
    """
    times = sorted(times_fs or [time for time in TIMES_FS if time in propagator.strides])
    judge = propagator.potential
    if judge is None and potential is not None:
        judge = Potential(potential)
    if verlet_fs is not None and judge is None:
        raise ConfigError("velocity Verlet needs a force field; name one with --potential")
    verlet = None if verlet_fs is None or judge is None else VerletPropagator(judge, verlet_fs)
    shown = track(molecules, "measuring", console=Console(stderr=True), transient=True)
    errors = compare_with_baselines(propagator, shown, times, most=frames, verlet=verlet, seed=seed)
    extra = _more(propagator, judge, molecules, times, seed)
    _tell(report, errors[ALL], extra)
    if plots is not None or draw:
        with report.drawing(plots) as folder:
            plot_jump_errors(errors[ALL], folder / "errors.png", "errors of all molecules")
    molecules_json = {
        name: {key: summary(found) for key, found in row.items()} for name, row in errors.items()
    }
    return {"times_fs": times, "errors": molecules_json, **extra}


def _more(
    propagator: Propagator,
    judge: ForceModel | None,
    molecules: list[MoleculeFrames],
    times: list[float],
    seed: int,
) -> dict[str, list[float]]:
    """Numbers at each time that need several predictions per jump, from a few molecules."""
    few = [molecules[i] for i in spread_index(len(molecules), _MOLECULES)]
    jumps = [jump for molecule in few for jump in jumps_of(molecule, times, _JUMPS)]
    together, single = (
        measure_jumps(propagator, jumps, times, times_per_call=count, seed=seed).position_errors
        for count in (None, 1)
    )
    found = {
        "error if asked for one by one, ratio": np.sqrt(single.sum(axis=0) / together.sum(axis=0)),
        "rotation defect, % of RMS change": 100.0
        * rotation_defect(propagator, jumps[::_JUMPS], times, seed=seed),
    }
    if judge is not None:
        found["energy change, meV/atom"] = energy_errors(propagator, judge, jumps, times, seed=seed)
    return {name: [float(value) for value in values] for name, values in found.items()}


def summary(errors: JumpErrors) -> dict[str, Any]:
    """Errors as JSON-able values: percent of the root mean square change at each time, and Å²."""

    def percent(quantity: str, element: int | None = None) -> list[float]:
        return [100.0 * float(value) for value in errors.relative(quantity, element)]

    return {
        "position error, %": percent("position"),
        "velocity error, %": percent("velocity"),
        "S2S, Å²": errors.s2s,
        "S2T, Å²": errors.s2t,
        "elements": {
            chemical_symbols[z]: {
                "position error, %": percent("position", z),
                "velocity error, %": percent("velocity", z),
            }
            for z in errors.elements
        },
    }


def _tell(
    report: Report, errors: Mapping[str, JumpErrors], extra: Mapping[str, list[float]]
) -> None:
    times = [f"{time:g} fs" for time in errors[MODEL].times]
    for quantity in ("position", "velocity"):
        table = Table("", *times, title=f"{quantity} error, % of RMS change")
        for name, found in errors.items():
            table.add_row(name, *_cells(100.0 * found.relative(quantity)))
        table.add_section()
        for z in errors[MODEL].elements:
            values = 100.0 * errors[MODEL].relative(quantity, z)
            table.add_row(f"{MODEL}, {chemical_symbols[z]}", *_cells(values))
        report.table(table)
    table = Table("", "S2S, Å²", "S2T, Å²", title="mean square position error per coordinate")
    for name, found in errors.items():
        table.add_row(name, f"{found.s2s:.3g}", f"{found.s2t:.3g}")
    report.table(table)
    table = Table("", *times, title=MODEL)
    for name, numbers in extra.items():
        table.add_row(name, *_cells(numbers))
    report.table(table)


def _cells(values: Any) -> list[str]:
    return [f"{value:.3g}" for value in values]
