"""`mlmd validate spread`: what the spread of a force field tells of its error."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mlmd_calc.cli.data_options import EnergyKey, ForcesKey, Reading, Seed
from mlmd_calc.cli.evaluate import HeldOut, Only, chosen_data
from mlmd_calc.cli.report import Html, Json, Report
from mlmd_calc.wording import counted

if TYPE_CHECKING:
    from mlmd_calc.analysis.spread import SpreadCalibration


def validate_spread(
    model: Annotated[str, typer.Argument(help="Name or file of a force field.")],
    data: Annotated[
        list[Path], typer.Argument(help="Label files, or directories, of unseen molecules.")
    ],
    only: Only = None,
    held_out: HeldOut = None,
    frames: Annotated[
        int, typer.Option(min=1, help="At most this many frames per molecule.")
    ] = 100,
    forces: Annotated[
        str | None,
        typer.Option(
            help="conservative: the spread is the difference between the gradient of the energy "
            "and the force head. direct: the standard deviation over orientations."
        ),
    ] = None,
    rotation: Annotated[str | None, typer.Option(help="none, random or average.")] = None,
    n_rotations: Annotated[
        int | None, typer.Option(help="Orientations per call, for direct forces.")
    ] = None,
    keep: Annotated[
        float, typer.Option(help="Share of the structures that the limit to be chosen keeps.")
    ] = 0.95,
    seed: Seed = 0,
    as_json: Json = False,
    html: Html = None,
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
) -> None:
    """Compare the spread of the forces, which a model knows by itself, with their true error."""
    from mlmd_calc.analysis.plots import plot_calibration
    from mlmd_calc.analysis.spread import calibrate_spread, spreads_and_errors
    from mlmd_calc.potential import Potential
    from mlmd_calc.zoo import load_model

    loaded = load_model(model, device="cpu")
    found = Reading(energy_key, forces_key).read(data)
    molecules = chosen_data(found, loaded, held_out, only)
    potential = Potential(
        loaded,
        forces=forces,
        rotation=rotation,
        n_rotations=n_rotations,
        seed=seed,
        on_spread="measure",
    )
    console = Console(stderr=True)
    calibration = calibrate_spread(
        [
            spreads_and_errors(potential, molecule, frames)
            for molecule in track(molecules, "measuring", console=console, transient=True)
        ],
        keep,
    )
    settings = {
        "model": potential.model.card.name,
        "forces": potential.forces,
        "rotation": potential.rotation,
        "n_rotations": potential.n_rotations,
        "seed": seed,
    }
    report = Report(f"Spread and error of {settings['model']}")
    _tell(report, calibration, " ".join(f"{name}={value}" for name, value in settings.items()))
    if html is not None:
        with report.drawing(None) as folder:
            plot_calibration(calibration, folder / "calibration.png")
    report.card(loaded.card)
    numbers = {"settings": settings, "calibration": asdict(calibration)}
    report.deliver(numbers, as_json, html)


def _tell(report: Report, found: SpreadCalibration, caption: str) -> None:
    table = Table(title=f"{counted(found.structures, 'structure')}, meV/Å", caption=caption)
    for column in ("structures", "spread", "RMS error", "a tenth below", "a tenth above"):
        table.add_column(column, justify="right")
    for one in found.bins:
        values = (one.spread, one.error, one.low, one.high)
        table.add_row(str(one.structures), *(f"{value:.0f}" for value in values))
    report.table(table)
    within = found.rank_correlation_within
    report.text(
        f"rank correlation of spread and error: {found.rank_correlation:.2f} of structures"
        + ("" if within is None else f", {within:.2f} within a molecule")
        + f", {found.rank_correlation_atoms:.2f} of atoms; error / spread "
        f"{found.error_by_spread:.2f}\n"
        f"max_spread={found.max_spread:.3f} eV/Å keeps {100 * found.share_kept:g} %: RMS error "
        f"{found.error_within:.0f} meV/Å within, {found.error_beyond:.0f} beyond; of as many worst "
        f"structures {100 * found.worst_found:.0f} % are beyond"
    )
