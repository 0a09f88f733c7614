"""`mlmd models` and `mlmd evaluate`: look at models and measure them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias, TypeVar

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from mlmd_calc import units
from mlmd_calc.cli.data_options import (
    EnergyKey,
    ForcesKey,
    FrameSpacing,
    VelocityUnitOption,
    read_with,
)
from mlmd_calc.cli.tables import print_table
from mlmd_calc.data import MoleculeFrames
from mlmd_calc.errors import ConfigError

if TYPE_CHECKING:
    from mlmd_calc.analysis.accuracy import MoleculeErrors
    from mlmd_calc.data.biomolecules.trajectories import BiomolecularTrajectory
    from mlmd_calc.potential import Potential
    from mlmd_calc.zoo import ATMOSModel, Model

# What needs torch is imported inside the functions, so that `mlmd --help` need not wait for it.

AsJSON = Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")]
ModelName = Annotated[
    str | None,
    typer.Argument(help="Shipped name, file or run directory; without it all shipped are listed."),
]


def models_command(model: ModelName = None, as_json: AsJSON = False) -> None:
    """List the shipped models, or show the card of one model."""
    from mlmd_calc.zoo import list_models, load_any_model

    console = Console()
    if model is not None:
        card = load_any_model(model, device="cpu").card
        if as_json:
            typer.echo(json.dumps(card.to_dict(), indent=2))
        else:
            console.print(card)
        return
    cards = list_models()
    if as_json:
        typer.echo(json.dumps([card.to_dict() for card in cards], indent=2))
        return
    table = Table(Column("model", no_wrap=True), "kind", "parameters", "recommended", "description")
    for card in cards:
        settings = " ".join(f"{key}={value}" for key, value in card.recommended.items())
        table.add_row(card.name, card.kind, f"{card.parameters:,}", settings, card.description)
    print_table(table)


def evaluate_command(
    data: Annotated[
        list[Path], typer.Argument(help="Label or trajectory files, or directories of them.")
    ],
    model: Annotated[str | None, typer.Option(help="Model; default: the default model.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only these molecules; may be repeated.")
    ] = None,
    frames: Annotated[
        int,
        typer.Option(min=1, help="At most this many frames per molecule; ATMOS: per trajectory."),
    ] = 100,
    held_out: Annotated[
        str | None,
        typer.Option(
            help="Only what the model's recipe held out of these data: frames or molecules."
        ),
    ] = None,
    forces: Annotated[
        str | None, typer.Option(help="Force fields: direct or conservative.")
    ] = None,
    rotation: Annotated[str | None, typer.Option(help="none, random or average.")] = None,
    n_rotations: Annotated[
        int | None, typer.Option(help="Force fields: orientations per call.")
    ] = None,
    potential: Annotated[
        str | None, typer.Option(help="Propagators: force field for accelerations and energies.")
    ] = None,
    time: Annotated[
        list[float] | None,
        typer.Option(help="Propagators: fs to predict ahead; may be repeated. (2 4 8 16 32)"),
    ] = None,
    verlet: Annotated[
        float | None,
        typer.Option(help="Propagators: compare with velocity Verlet at this time step in fs."),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="ATMOS: trajectories from each start. (1)")
    ] = None,
    interpolator: Annotated[
        str | None, typer.Option(help="ATMOS: also with this model between the frames.")
    ] = None,
    stride: Annotated[
        float | None, typer.Option(help="ATMOS: ps between frames, if the model knows several.")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="ATMOS: sde or ode; default: that of the model.")
    ] = None,
    ablation: Annotated[
        bool | None, typer.Option("--ablation", help="ATMOS: with both samplers.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="ATMOS: denoiser calls per frame.")
    ] = None,
    noise_scale: Annotated[
        float | None,
        typer.Option(help="ATMOS: factor on the sampler's noise; default: that of the model."),
    ] = None,
    step_scale: Annotated[
        float | None,
        typer.Option(help="ATMOS: factor on the sampler's steps; default: that of the model."),
    ] = None,
    redraws: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="ATMOS: times that a frame that no simulation would visit is drawn again before "
            "its trajectory ends; 0 keeps every frame. (100)",
        ),
    ] = None,
    sampled: Annotated[
        list[Path] | None,
        typer.Option(
            help="Compare this trajectory (.xtc, .dcd or .npz) with DATA instead of drawing any; "
            "may be repeated."
        ),
    ] = None,
    topology: Annotated[
        Path | None, typer.Option(help="PDB or mmCIF file of the .xtc and .dcd files.")
    ] = None,
    interval: Annotated[
        float | None, typer.Option(help="ps between the frames of .dcd files.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="ATMOS: auto, cpu, cuda or cuda:N.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Propagators: folder for pictures.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float64, float32 or mixed; default: float64, for ATMOS float32."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    as_json: AsJSON = False,
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    velocity_unit: VelocityUnitOption = None,
    frame_spacing: FrameSpacing = None,
) -> None:
    """Measure a model on data: errors of forces and energies, or of predicted trajectories."""
    from mlmd_calc.training.held_out import split
    from mlmd_calc.training.recipe import Recipe
    from mlmd_calc.zoo import ATMOSModel, Model, load_any_model, load_atmos

    files: dict[str, Any] = {"topology": topology, "interval_ps": interval}
    if sampled:
        from mlmd_calc.cli.evaluate_sampled import evaluate_sampled
        from mlmd_calc.data.biomolecules.trajectories import read_trajectories

        evaluate_sampled(
            _selected(read_trajectories(data, **files), only),
            read_trajectories(sampled, **files),
            seed=seed,
            as_json=as_json,
        )
        return
    loaded = load_any_model(model, device="cpu")
    reading: dict[str, Any] = {
        "energy_key": energy_key,
        "forces_key": forces_key,
        "velocity_unit": velocity_unit,
        "frame_spacing": frame_spacing,
    }
    labels = {"forces": forces, "rotation": rotation, "n_rotations": n_rotations}
    jumps = {"potential": potential, "time": time, "verlet": verlet}
    rollouts: dict[str, object] = {
        **{"replicas": replicas, "interpolator": interpolator, "stride": stride, "steps": steps},
        **{"sampler": sampler, "ablation": ablation, "redraws": redraws, "device": device},
        **{"noise_scale": noise_scale, "step_scale": step_scale},
        **{"topology": topology, "interval": interval},
    }
    if isinstance(loaded, ATMOSModel):
        from mlmd_calc.cli.evaluate_trajectories import RolloutOptions, evaluate_trajectories
        from mlmd_calc.sampling.rollouts import REDRAWS

        _refuse(loaded.card.name, {**labels, **jumps, **reading})
        place = {"device": device or "cpu", "dtype": dtype or "float32"}
        evaluate_trajectories(
            load_atmos(loaded.source, **place),
            _trajectories(loaded, data, held_out, only, files),
            RolloutOptions(
                frames=frames,
                replicas=replicas or 1,
                stride_ps=stride,
                sampler=sampler,
                ablation=bool(ablation),
                steps=steps,
                noise_scale=noise_scale,
                step_scale=step_scale,
                redraws=REDRAWS if redraws is None else redraws,
                seed=seed,
            ),
            interpolator=None if interpolator is None else load_atmos(interpolator, **place),
            plots=plots,
            as_json=as_json,
        )
        return
    _refuse(loaded.card.name, rollouts)
    dtype = dtype or "float64"
    molecules = read_with(data, **reading)
    if held_out is not None:
        parts = split(molecules, Recipe.from_dict(loaded.card.recipe))[1]
        if held_out not in parts:
            raise ConfigError(f"held_out={held_out!r}; this model's recipe held out {list(parts)}")
        molecules = parts[held_out]
    molecules = _selected(molecules, only)
    if isinstance(loaded, Model):
        _refuse(loaded.card.name, {**jumps, "plots": plots})
        _evaluate_forces(loaded, molecules, frames, labels, dtype, seed, as_json)
        return
    from mlmd_calc.cli.evaluate_jumps import evaluate_jumps
    from mlmd_calc.propagation.load import load_propagator

    _refuse(loaded.card.name, {"forces": forces, "n_rotations": n_rotations})
    propagator = load_propagator(
        loaded.source, device="cpu", dtype=dtype, potential=potential, rotation=rotation
    )
    evaluate_jumps(
        propagator,
        molecules,
        potential=potential,
        times_fs=time,
        frames=frames,
        verlet_fs=verlet,
        plots=plots,
        seed=seed,
        as_json=as_json,
    )


def _trajectories(
    model: ATMOSModel,
    data: list[Path],
    held_out: str | None,
    only: list[str] | None,
    files: dict[str, Any],
) -> list[BiomolecularTrajectory]:
    """Read trajectories, and pick those that were asked for."""
    from mlmd_calc.cli.evaluate_trajectories import held_out_trajectories
    from mlmd_calc.data.biomolecules.trajectories import read_trajectories

    found = read_trajectories(data, **files)
    if held_out is not None:
        found = held_out_trajectories(found, model.card.recipe, held_out)
    return _selected(found, only)


def _refuse(name: str, options: dict[str, object]) -> None:
    """Refuse options that mean nothing for a model."""
    for option, value in options.items():
        if value is not None:
            raise ConfigError(
                f"--{option.replace('_', '-')} means nothing for model {name!r}; leave it out"
            )


def _evaluate_forces(
    model: Model,
    molecules: list[MoleculeFrames],
    frames: int,
    options: dict[str, Any],
    dtype: str,
    seed: int,
    as_json: bool,
) -> None:
    from mlmd_calc.potential import Potential

    potential = Potential(model, dtype=dtype, seed=seed, **options)
    rows = _measure(potential, molecules, frames)
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
    columns = list(rows[_ALL])
    table = Table("molecule", *columns, caption=" ".join(f"{k}={v}" for k, v in settings.items()))
    for name, row in rows.items():
        table.add_row(name, *(_cell(row[column]) for column in columns))
    print_table(table)


_ALL: Final = "all"
_EQUIVARIANCE_FRAMES: Final = 3

Row: TypeAlias = dict[str, float | int | None]


_Frames = TypeVar("_Frames", "MoleculeFrames", "BiomolecularTrajectory")


def _selected(molecules: list[_Frames], only: list[str] | None) -> list[_Frames]:
    names = sorted({molecule.name for molecule in molecules})
    if unknown := sorted(set(only or names) - set(names)):
        raise ConfigError(f"no molecule is called {unknown}; there are {names}")
    return [molecule for molecule in molecules if not only or molecule.name in only]


def _measure(potential: Potential, molecules: list[MoleculeFrames], frames: int) -> dict[str, Row]:
    """Errors by name of the molecule, and of all molecules together."""
    from mlmd_calc.analysis.accuracy import molecule_errors, orientation_errors, structures_of

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
    from mlmd_calc.analysis.accuracy import summarise_errors

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
