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
from mlmd_calc.cli.report import Html, Report
from mlmd_calc.wording import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlmd_calc.data import MoleculeFrames

_LONGEST_FS: Final = 1000.0
"""Of the autocorrelation."""


def spectrum_command(
    data: Annotated[list[Path], typer.Argument(help="Trajectory files, as of mlmd run.")],
    model: Annotated[
        str | None,
        typer.Option(help="Compare with the harmonic frequencies of this force field."),
    ] = None,
    resolution: Annotated[float, typer.Option(help="1/cm.")] = 10.0,
    plots: Annotated[Path | None, typer.Option(help="Folder for pictures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")] = False,
    html: Html = None,
    velocity_unit: VelocityUnitOption = None,
    frame_spacing: FrameSpacing = None,
) -> None:
    """Peaks in the power spectrum of the velocities, beside the frequencies of a Hessian."""
    # These import torch, which `mlmd --help` need not wait for.
    from mlmd_calc.analysis.plots import plot_spectrum
    from mlmd_calc.analysis.spectra import velocity_autocorrelation, velocity_spectrum
    from mlmd_calc.zoo import load_any_model

    found: list[dict[str, Any]] = []
    report = Report("Vibrations of trajectories")
    for molecule in Reading(None, None, velocity_unit, frame_spacing).read(data):
        spectrum = velocity_spectrum(molecule, resolution)
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
        report.table(_table(found[-1]))
        if plots is not None or html is not None:
            with report.drawing(plots) as folder:
                path = folder / f"{molecule.name}-spectrum.png"
                plot_spectrum(spectrum, path, molecule.name, harmonic)
    if model is not None:
        report.card(load_any_model(model, device="cpu").card)
    report.deliver(json.dumps(found, indent=1) if as_json else None, html)


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


def _table(found: dict[str, Any]) -> Table:
    peaks = np.array(found["peaks_per_cm"])
    harmonic = found["harmonic_per_cm"]
    title = (
        f"{found['molecule']}: {counted(found['windows'], 'window')}, resolution "
        f"{found['resolution_per_cm']:.1f} 1/cm"
    )
    if harmonic is None:
        table = Table("peak, 1/cm", title=title)
        for peak in peaks:
            table.add_row(f"{peak:.1f}")
    else:
        table = Table("harmonic, 1/cm", "nearest peak", "difference", title=title)
        for wave in harmonic:
            near = peaks[np.abs(peaks - wave).argmin()] if len(peaks) else np.nan
            table.add_row(f"{wave:.1f}", f"{near:.1f}", f"{near - wave:+.1f}")
    return table
