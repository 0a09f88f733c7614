"""`mlmd evaluate spectrum`: vibrations in trajectories, beside those of a Hessian."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from mlmd_calc.cli.data_options import FrameSpacing, Reading, VelocityUnitOption
from mlmd_calc.cli.report import Html, Json, Report
from mlmd_calc.errors import InputError, ModelFileError
from mlmd_calc.wording import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlmd_calc.data import MoleculeFrames

_LONGEST_FS: Final = 1000.0
"""Of the autocorrelation."""

_HYDROGENS_PER_CM: Final = 3700.0
"""Above the stretches of C-H, about those of O-H."""


def spectrum_command(
    data: Annotated[
        list[Path],
        typer.Argument(
            help="Trajectory files, as of mlmd run; those of one molecule are averaged over."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Compare with the harmonic frequencies of this force field."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON",
            help="Compare with the peaks of other dynamics: what --json has written of them.",
        ),
    ] = None,
    resolution: Annotated[float, typer.Option(help="1/cm.")] = 10.0,
    plots: Annotated[Path | None, typer.Option(help="Folder for pictures.")] = None,
    as_json: Json = False,
    html: Html = None,
    velocity_unit: VelocityUnitOption = None,
    frame_spacing: FrameSpacing = None,
) -> None:
    """Peaks in the power spectrum of the velocities, beside the frequencies of a Hessian."""
    from mlmd_calc.analysis.plots import plot_spectrum
    from mlmd_calc.analysis.spectra import (
        joined_runs,
        velocity_autocorrelation,
        velocity_spectrum,
    )
    from mlmd_calc.zoo import load_any_model

    others = None if reference is None else _read_reference(reference)
    found: list[dict[str, Any]] = []
    report = Report("Vibrations of trajectories")
    for molecule in joined_runs(
        Reading(velocity_unit=velocity_unit, frame_spacing=frame_spacing).read(data)
    ):
        spectrum = velocity_spectrum(molecule, resolution)
        _say_what_is_folded(molecule, float(spectrum.wavenumbers[-1]))
        window_fs = 0.5 * len(spectrum.wavenumbers) * (molecule.dt_fs or 0.0)
        lags = velocity_autocorrelation(molecule, min(_LONGEST_FS, window_fs))
        harmonic = None if model is None else _harmonic(molecule, model)
        found.append(
            {
                "molecule": molecule.name,
                "frames": len(molecule),
                "frame_spacing_fs": molecule.dt_fs,
                "windows": spectrum.windows,
                "resolution_per_cm": spectrum.resolution,
                "peaks_per_cm": spectrum.peaks().tolist(),
                "harmonic_per_cm": None if harmonic is None else harmonic.tolist(),
                "wavenumbers_per_cm": spectrum.wavenumbers.tolist(),
                "density_cm": spectrum.density.tolist(),
                "autocorrelation": lags.tolist(),
            }
        )
        for table in _tables(found[-1], others):
            report.table(table)
        if plots is not None or html is not None:
            with report.drawing(plots) as folder:
                path = folder / f"{molecule.name}-spectrum.png"
                plot_spectrum(spectrum, path, molecule.name, harmonic)
    if model is not None:
        report.card(load_any_model(model, device="cpu").card)
    report.deliver(found, as_json, html)


def _say_what_is_folded(molecule: MoleculeFrames, highest: float) -> None:
    """Say so if frames are too far apart for the fastest vibrations, those of hydrogen."""
    if highest < _HYDROGENS_PER_CM and 1 in molecule.numbers:
        Console(stderr=True).print(
            f"{molecule.name}: frames {molecule.dt_fs:g} fs apart tell wavenumbers up to "
            f"{highest:.0f}/cm, and faster vibrations, such as those of hydrogen, appear below "
            "that, folded back; record more often (mlmd run --interval, or --frames-per-jump)",
            markup=False,
            highlight=False,
        )


def _harmonic(molecule: MoleculeFrames, model: str) -> NDArray[np.float64]:
    """Wavenumbers of the minimum nearest to the first frame."""
    from ase import Atoms

    from mlmd_calc import MDETCalculator
    from mlmd_calc.analysis.spectra import harmonic_wavenumbers
    from mlmd_calc.cli.job import relax

    atoms = Atoms(molecule.numbers, molecule.positions[0])
    atoms.calc = MDETCalculator(
        model, forces="conservative", charge=molecule.charge, multiplicity=molecule.multiplicity
    )
    Console(stderr=True).print(relax(atoms), highlight=False)
    return harmonic_wavenumbers(atoms.calc.get_hessian(atoms), atoms.numbers, atoms.positions)


def _read_reference(path: Path) -> dict[str, list[float]]:
    """Peaks of each molecule in what ``--json`` has written."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {one["molecule"]: one["peaks_per_cm"] for one in content}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(
            f"{path} is not a spectrum ({error}); write one with mlmd evaluate spectrum --json"
        ) from error


def _tables(found: dict[str, Any], others: dict[str, list[float]] | None) -> list[Table]:
    """Peaks beside the frequencies of a Hessian and the peaks of a reference, or alone."""
    title = (
        f"{found['molecule']}: {counted(found['windows'], 'window')}, resolution "
        f"{found['resolution_per_cm']:.1f} 1/cm"
    )
    known = {"harmonic, 1/cm": found["harmonic_per_cm"]}
    if others is not None:
        if found["molecule"] not in others:
            raise InputError(
                f"the reference has {', '.join(others) or 'nothing'}, but not "
                f"{found['molecule']}; give files of one molecule the same name"
            )
        known["reference, 1/cm"] = others[found["molecule"]]
    peaks = np.array(found["peaks_per_cm"])
    tables = [
        _comparison(name, waves, peaks, found["wavenumbers_per_cm"][-1], title)
        for name, waves in known.items()
        if waves is not None
    ]
    if tables:
        return tables
    table = Table("peak, 1/cm", title=title)
    for peak in peaks:
        table.add_row(f"{peak:.1f}")
    return [table]


def _comparison(
    name: str, waves: list[float], peaks: NDArray[np.float64], highest: float, title: str
) -> Table:
    """Nearest peaks to wavenumbers, as far as frames tell them."""
    table = Table(name, "nearest peak", "difference", title=title)
    for wave in waves:
        if wave > highest or not len(peaks):
            table.add_row(f"{wave:.1f}", "–", "–")
            continue
        near = peaks[np.abs(peaks - wave).argmin()]
        table.add_row(f"{wave:.1f}", f"{near:.1f}", f"{near - wave:+.1f}")
    return table
