"""`mlmd models` and `mlmd evaluate`: look at models and measure them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mlmd_calc.analysis.accuracy import equivariance_error, measure_accuracy, structures_of
from mlmd_calc.data import MoleculeFrames, read_dataset
from mlmd_calc.potential import Potential
from mlmd_calc.zoo import list_models, load_model

AsJSON = Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")]
Model = Annotated[
    str | None, typer.Argument(help="Shipped name, file or run directory; default: the default.")
]


def models_command(model: Model = None, as_json: AsJSON = False) -> None:
    """List the shipped models, or show the card of one model."""
    console = Console()
    if model is not None:
        card = load_model(model, device="cpu").card
        if as_json:
            typer.echo(json.dumps(card.to_dict(), indent=2))
        else:
            console.print(card)
        return
    cards = list_models()
    if as_json:
        typer.echo(json.dumps([card.to_dict() for card in cards], indent=2))
        return
    table = Table("model", "parameters", "recommended for MD", "description")
    for card in cards:
        settings = " ".join(f"{key}={value}" for key, value in card.recommended.items())
        table.add_row(card.name, f"{card.parameters:,}", settings, card.description)
    console.print(table)


def evaluate_command(
    data: Annotated[list[Path], typer.Argument(help="Label files or directories of them.")],
    model: Annotated[str | None, typer.Option(help="Model; default: the default model.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only these molecules; may be repeated.")
    ] = None,
    frames: Annotated[int, typer.Option(help="At most this many frames per molecule.")] = 100,
    forces: Annotated[str | None, typer.Option(help="direct or conservative.")] = None,
    rotation: Annotated[str | None, typer.Option(help="none, random or average.")] = None,
    n_rotations: Annotated[int | None, typer.Option(help="Orientations per call.")] = None,
    dtype: Annotated[str, typer.Option(help="float64, float32 or mixed.")] = "float64",
    seed: Annotated[int, typer.Option(help="Seed of random orientations.")] = 0,
    as_json: AsJSON = False,
) -> None:
    """Measure force, energy and equivariance errors of a model on labelled structures."""
    potential = Potential(
        model,
        dtype=dtype,
        forces=forces,
        rotation=rotation,
        n_rotations=n_rotations,
        seed=seed,
    )
    molecules = [m for m in read_dataset(data) if not only or m.name in only]
    rows: dict[str, dict[str, Any]] = {}
    console = Console(stderr=True)
    for molecule in track(molecules, "measuring", console=console, transient=True):
        rows[molecule.name] = _measure(potential, [molecule], frames)
    rows["all"] = _measure(potential, molecules, frames)
    settings = {
        "model": potential.model.card.name,
        "forces": potential.forces,
        "rotation": potential.rotation,
        "n_rotations": potential.n_rotations,
        "dtype": dtype,
        "seed": seed,
    }
    if as_json:
        typer.echo(json.dumps({"settings": settings, "errors": rows}, indent=2))
        return
    columns = list(rows["all"])
    table = Table("molecule", *columns, caption=" ".join(f"{k}={v}" for k, v in settings.items()))
    for name, row in rows.items():
        table.add_row(name, *(_cell(row[column]) for column in columns))
    Console().print(table)


_EQUIVARIANCE_FRAMES = 3


def _measure(
    potential: Potential, molecules: list[MoleculeFrames], frames: int
) -> dict[str, float | int | None]:
    accuracy = measure_accuracy(potential, molecules, most=frames)
    few = [s for m in molecules for s in structures_of(m, _EQUIVARIANCE_FRAMES)]
    return {
        "structures": accuracy.structures,
        "force MAE, meV/Å": accuracy.forces_mae,
        "force RMSE, meV/Å": accuracy.forces_rmse,
        "energy MAE, meV/atom": accuracy.energy_mae,
        "relative energy MAE, meV/atom": accuracy.energy_mae_relative,
        "equivariance error, meV/Å": equivariance_error(potential, few),
    }


def _cell(value: float | int | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.1f}"
