"""`mlmd evaluate forces`: errors of force fields on labelled structures."""

from __future__ import annotations

import json
from typing import Final, TypeAlias

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mlmd_calc import units
from mlmd_calc.analysis.accuracy import (
    MoleculeErrors,
    molecule_errors,
    orientation_errors,
    structures_of,
    summarise_errors,
)
from mlmd_calc.cli.tables import print_table
from mlmd_calc.data import MoleculeFrames
from mlmd_calc.potential import Potential

_ALL: Final = "all"
_EQUIVARIANCE_FRAMES: Final = 3

Row: TypeAlias = dict[str, float | int | None]


def evaluate_forces(
    potential: Potential, molecules: list[MoleculeFrames], frames: int, *, seed: int, as_json: bool
) -> None:
    """Measure a force field; print a table or JSON.

    Parameters
    ----------
    potential
        What to measure.
    molecules
        Labelled structures.
    frames
        At most this many structures per molecule.
    seed
        Seed of the potential, to print.
    as_json
        Print JSON.
    """
    rows = _measure(potential, molecules, frames)
    settings = {
        "model": potential.model.card.name,
        "forces": potential.forces,
        "rotation": potential.rotation,
        "n_rotations": potential.n_rotations,
        "dtype": potential.dtype,
        "seed": seed,
    }
    if as_json:
        typer.echo(json.dumps({"settings": settings, "errors": rows}, indent=2))
        return
    columns = list(rows[_ALL])
    table = Table("molecule", *columns, caption=" ".join(f"{k}={v}" for k, v in settings.items()))
    for name, row in rows.items():
        table.add_row(name, *(_cell(row[column]) for column in columns))
    print_table(table)


def _measure(potential: Potential, molecules: list[MoleculeFrames], frames: int) -> dict[str, Row]:
    """Errors by name of the molecule, and of all molecules together."""
    errors: dict[str, list[MoleculeErrors]] = {}
    lengths: dict[str, list[NDArray[np.float64]]] = {}
    console = Console(stderr=True)
    for molecule in track(molecules, "measuring", console=console, transient=True):
        found = molecule_errors(potential, molecule, frames)
        turned = [
            orientation_errors(potential, structure).ravel()
            for structure in structures_of(molecule, _EQUIVARIANCE_FRAMES)
        ]
        # Several files may hold frames of one molecule.
        for name in (molecule.name, _ALL):
            errors.setdefault(name, []).append(found)
            lengths.setdefault(name, []).extend(turned)
    rows = {name: _row(errors[name], np.concatenate(lengths[name])) for name in errors}
    return rows | {_ALL: rows.pop(_ALL)}


def _row(errors: list[MoleculeErrors], lengths: NDArray[np.float64]) -> Row:
    accuracy = summarise_errors(errors)
    return {
        "structures": accuracy.structures,
        "force MAE, meV/Å": accuracy.forces_mae,
        "force RMSE, meV/Å": accuracy.forces_rmse,
        "energy MAE, meV/atom": accuracy.energy_mae,
        "relative energy MAE, meV/atom": accuracy.energy_mae_relative,
        "equivariance error, meV/Å": float(lengths.mean()) / units.MEV,
    }


def _cell(value: float | int | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.1f}"
