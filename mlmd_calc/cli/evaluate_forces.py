"""`mlmd evaluate forces`: errors of force fields on labelled structures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from mlmd_calc import units
from mlmd_calc.analysis.accuracy import (
    MoleculeErrors,
    molecule_errors,
    orientation_errors,
    structures_of,
    summarise_errors,
)
from mlmd_calc.analysis.force_report import (
    ConformationalErrors,
    ForceErrors,
    TorsionProfile,
    components_by_element,
    conformational_errors,
    errors_by_class,
    errors_by_element,
    torsion_profile,
)
from mlmd_calc.analysis.plots import plot_force_errors
from mlmd_calc.cli.report import Report
from mlmd_calc.data import MoleculeFrames
from mlmd_calc.potential import Potential

_ALL: Final = "all"
_EQUIVARIANCE_FRAMES: Final = 3
_MOST_ROWS: Final = 20
"""Molecules that are listed in full."""

_WORST: Final = 10
_FORCE_MAE: Final = "force MAE, meV/Å"

_HEADINGS: Final = {
    "structures": "frames",
    _FORCE_MAE: "MAE, meV/Å",
    "force RMSE, meV/Å": "RMSE",
    "energy MAE, meV/atom": "E, meV/atom",
    "relative energy MAE, meV/atom": "less mean",
    "conformational energy MAE, meV": "conf., meV",
    "equivariance error, meV/Å": "turned, meV/Å",
}
"""What the columns are called in tables: forces, energies, what depends on orientation."""

_CAPTION: Final = (
    "MAE, RMSE: of force components, both in meV/Å. E: mean absolute error of the energy, which "
    "holds the distance between the zeros of two methods as well; less mean: after the mean error "
    "of each molecule is taken off, also in meV/atom; conf.: of differences between conformers. "
    "turned: part of the forces that depends on orientation."
)

Row: TypeAlias = dict[str, float | int | None]


@dataclass
class _Errors:
    """Everything that is measured.

    Attributes
    ----------
    errors
        Rows by name of the molecule, and of all molecules together.
    elements, classes
        Errors of forces.
    components
        Errors of all force components by element, eV/Å.
    torsions
        Profiles of the molecules whose data name a torsion.
    """

    errors: dict[str, Row]
    elements: dict[str, ForceErrors]
    classes: dict[str, ForceErrors]
    components: dict[str, NDArray[np.float64]]
    torsions: list[TorsionProfile]

    @property
    def worst(self) -> list[str]:
        """Names of the molecules with the largest errors, the worst first."""
        names = [name for name in self.errors if name != _ALL]
        return sorted(names, key=lambda name: -(self.errors[name][_FORCE_MAE] or 0.0))[:_WORST]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return {
            "errors": self.errors,
            "elements": {name: asdict(one) for name, one in self.elements.items()},
            "classes": {name: asdict(one) for name, one in self.classes.items()},
            "worst": self.worst,
            "torsions": [
                asdict(one)
                | {"mae": one.mae, "barrier": one.barrier, "barrier_error": one.barrier_error}
                for one in self.torsions
            ],
        }


def evaluate_forces(
    potential: Potential,
    molecules: list[MoleculeFrames],
    frames: int,
    *,
    seed: int,
    as_json: bool,
    html: Path | None,
) -> None:
    """Measure a force field; print tables or JSON, and write a page.

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
    html
        File of the page, or None.
    """
    measured = _measure(potential, molecules, frames)
    settings = {
        "model": potential.model.card.name,
        "forces": potential.forces,
        "rotation": potential.rotation,
        "n_rotations": potential.n_rotations,
        "dtype": potential.dtype,
        "seed": seed,
    }
    report = Report(f"Forces of {settings['model']}")
    _tell(report, measured, " ".join(f"{k}={v}" for k, v in settings.items()))
    if html is not None:
        with report.drawing(None) as folder:
            plot_force_errors(measured.components, folder / "errors of forces.png")
    report.card(potential.model.card)
    numbers = {"settings": settings, **measured.to_dict()}
    report.deliver(numbers, as_json, html)


def _measure(potential: Potential, molecules: list[MoleculeFrames], frames: int) -> _Errors:
    """Errors by name of the molecule, of all molecules together, and of parts of them."""
    errors: dict[str, list[MoleculeErrors]] = {}
    lengths: dict[str, list[NDArray[np.float64]]] = {}
    conformers: dict[str, list[ConformationalErrors]] = {}
    measured, torsions = [], []
    console = Console(stderr=True)
    for molecule in track(molecules, "measuring", console=console, transient=True):
        found = molecule_errors(potential, molecule, frames)
        turned = orientation_errors(potential, structures_of(molecule, _EQUIVARIANCE_FRAMES))
        relative = conformational_errors(molecule, found, frames)
        profile = torsion_profile(molecule, found, frames)
        # Several files may hold frames of one molecule.
        for name in (molecule.name, _ALL):
            errors.setdefault(name, []).append(found)
            lengths.setdefault(name, []).append(turned)
            conformers.setdefault(name, []).extend([relative] if relative else [])
        measured.append((molecule, found))
        torsions += [profile] if profile else []
    rows = {
        name: _row(errors[name], np.concatenate(lengths[name]), conformers[name]) for name in errors
    }
    return _Errors(
        errors=rows | {_ALL: rows.pop(_ALL)},
        elements=errors_by_element(measured),
        classes=errors_by_class(measured),
        components=components_by_element(measured),
        torsions=torsions,
    )


def _row(
    errors: list[MoleculeErrors],
    lengths: NDArray[np.float64],
    conformers: list[ConformationalErrors],
) -> Row:
    accuracy = summarise_errors(errors)
    relative = float(np.mean([one.mae for one in conformers])) if conformers else None
    return {
        "structures": accuracy.structures,
        _FORCE_MAE: accuracy.forces_mae,
        "force RMSE, meV/Å": accuracy.forces_rmse,
        "energy MAE, meV/atom": accuracy.energy_mae,
        "relative energy MAE, meV/atom": accuracy.energy_mae_relative,
        "conformational energy MAE, meV": relative,
        "equivariance error, meV/Å": float(lengths.mean()) / units.MEV,
    }


def _tell(report: Report, measured: _Errors, caption: str) -> None:
    """Add tables that stay legible however many molecules there are."""
    rows = measured.errors
    names = [*rows]
    if len(names) > _MOST_ROWS + 1:
        names = [*measured.worst, _ALL]
        title = f"the {_WORST} worst of {len(rows) - 1} molecules, and all"
    else:
        title = None
    columns = list(rows[_ALL])
    headings = [_HEADINGS[column] for column in columns]
    table = Table(
        Column("molecule", no_wrap=True),
        *(Column(heading, justify="right") for heading in headings),
        title=title,
        caption=f"{_CAPTION} {caption}",
    )
    for name in names:
        table.add_row(name, *(_cell(rows[name][column]) for column in columns))
    report.table(table)
    report.table(_parts("element", measured.elements))
    report.table(_parts("molecules with", measured.classes))
    if measured.torsions:
        columns = ["atoms", "points", "barrier, meV", "error there, meV", "MAE, meV"]
        table = Table("torsion of", *columns)
        for one in measured.torsions:
            values = (one.barrier, one.barrier_error, one.mae)
            atoms = " ".join(map(str, one.atoms))
            table.add_row(one.name, atoms, str(len(one.angles)), *map(_cell, values))
        report.table(table)


def _parts(name: str, parts: Mapping[str, ForceErrors]) -> Table:
    headings = ("molecules", "atoms", "MAE, meV/Å", "RMSE")
    numbers = (Column(heading, justify="right") for heading in headings)
    table = Table(Column(name, no_wrap=True), *numbers)
    for part, one in parts.items():
        values = (one.molecules, one.atoms, one.mae, one.rmse)
        table.add_row(part, *map(_cell, values))
    return table


def _cell(value: float | int | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.1f}"
