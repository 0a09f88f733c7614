"""`mlmd evaluate`: measure models on data."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from mlmd_calc.cli import shared_options as shared
from mlmd_calc.cli.data_options import Data, Reading, Seed, with_reading
from mlmd_calc.cli.evaluate_spectrum import spectrum_command
from mlmd_calc.cli.report import Html, Json, Report
from mlmd_calc.errors import ConfigError

if TYPE_CHECKING:
    from mlmd_calc.data import MoleculeFrames
    from mlmd_calc.data.biomolecules.trajectories import BiomolecularTrajectory
    from mlmd_calc.zoo import LoadedModel

D = TypeVar("D", bound="MoleculeFrames | BiomolecularTrajectory")

ModelName = Annotated[str, typer.Option("--model", help="Shipped name, file or run directory.")]
Only = Annotated[list[str] | None, typer.Option(help="Only these molecules; may be repeated.")]
HeldOut = Annotated[
    str | None,
    typer.Option(help="Only what the model's recipe held out of these data: frames or molecules."),
]
Frames = Annotated[int, typer.Option(min=1, help="At most this many frames per molecule.")]
Plots = Annotated[Path | None, typer.Option(help="Folder for pictures.")]
Dtype = Annotated[str, typer.Option(help="float64, float32 or, for force fields, mixed.")]


class _ByKind(TyperGroup):
    """Takes the command that fits the model where none is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = (*self.commands, *self.get_help_option_names(ctx))
        if args and args[0] not in known and not ctx.resilient_parsing:
            command = "rollouts" if "--sampled" in args else _command_of(_load(_named_model(args)))
            args = [command, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_ByKind, no_args_is_help=True)


@app.callback()
def evaluate() -> None:
    """Measure a model on data. Where no command is named, that of the --model's kind is taken."""


@app.command("forces")
@with_reading
def forces_command(
    data: Data,
    model: Annotated[
        str | None, typer.Option(help="Force field; default: the default model.")
    ] = None,
    only: Only = None,
    frames: Frames = 100,
    held_out: HeldOut = None,
    forces: shared.Forces = None,
    rotation: shared.Rotation = None,
    n_rotations: shared.NRotations = None,
    dtype: Dtype = "float64",
    seed: Seed = 0,
    as_json: Json = False,
    html: Html = None,
    *,
    reading: Reading,
) -> None:
    """Errors of forces and energies of a force field, by molecule, element and class."""
    from mlmd_calc.cli.evaluate_forces import evaluate_forces
    from mlmd_calc.potential import Potential

    loaded = _load(model, "forces")
    found = reading.read(data)
    molecules = chosen_data(found, loaded, held_out, only)
    potential = Potential(
        loaded.source,
        dtype=dtype,
        seed=seed,
        forces=forces,
        rotation=rotation,
        n_rotations=n_rotations,
    )
    evaluate_forces(potential, molecules, frames, seed=seed, as_json=as_json, html=html)


app.command("spectrum")(spectrum_command)


@app.command("jumps")
@with_reading
def jumps_command(
    data: Data,
    model: ModelName,
    only: Only = None,
    frames: Frames = 100,
    held_out: HeldOut = None,
    potential: Annotated[
        str | None, typer.Option(help="Force field for accelerations and energies.")
    ] = None,
    rotation: Annotated[str | None, typer.Option(help="none or random.")] = None,
    time: Annotated[
        list[float] | None, typer.Option(help="fs to predict ahead; may be repeated. (2 4 8 16 32)")
    ] = None,
    verlet: Annotated[
        float | None, typer.Option(help="Compare with velocity Verlet at this time step in fs.")
    ] = None,
    plots: Plots = None,
    dtype: Dtype = "float64",
    seed: Seed = 0,
    as_json: Json = False,
    html: Html = None,
    *,
    reading: Reading,
) -> None:
    """Errors of positions and velocities that an ATOM propagator predicts."""
    from mlmd_calc.cli.evaluate_jumps import evaluate_jumps
    from mlmd_calc.propagation.load import load_propagator

    loaded = _load(model, "jumps")
    found = reading.read(data)
    molecules = chosen_data(found, loaded, held_out, only)
    propagator = load_propagator(
        loaded.source, device="cpu", dtype=dtype, potential=potential, rotation=rotation
    )
    report = Report(f"Jumps of {loaded.card.name}")
    report.card(loaded.card)
    numbers = evaluate_jumps(
        propagator,
        molecules,
        report,
        potential=potential,
        times_fs=time,
        frames=frames,
        verlet_fs=verlet,
        plots=plots,
        draw=html is not None,
        seed=seed,
    )
    report.deliver(numbers, as_json, html)


@app.command("operator")
@with_reading
def operator_command(
    data: Data,
    model: ModelName,
    only: Only = None,
    frames: Frames = 100,
    held_out: Annotated[
        str | None,
        typer.Option(
            help="Only what the model's recipe held out of these data: frames, molecules, or "
            "starts, the start frames of the test."
        ),
    ] = None,
    time: Annotated[
        list[float] | None,
        typer.Option(
            help="fs to the last target; may be repeated. Default: the frames of the model's "
            "recipe, or 3,000."
        ),
    ] = None,
    dtype: Dtype = "float64",
    as_json: Json = False,
    html: Html = None,
    *,
    reading: Reading,
) -> None:
    """Errors of mean positions that the published ATOM operator predicts."""
    from mlmd_calc.cli.evaluate_operator import TEST_STARTS, data_of_training, evaluate_operator
    from mlmd_calc.zoo import load_operator

    loaded = _load(model, "operator")
    found = reading.read(data)
    operator = load_operator(loaded.source, device="cpu", dtype=dtype)
    if of_test := held_out == TEST_STARTS:
        molecules = _named(data_of_training(operator, found), only)
    else:
        molecules = chosen_data(found, loaded, held_out, only)
    evaluate_operator(
        operator,
        molecules,
        times_fs=time,
        frames=frames,
        of_test=of_test,
        as_json=as_json,
        html=html,
    )


@app.command("rollouts")
def rollouts_command(
    data: Data,
    model: Annotated[
        str | None, typer.Option(help="Shipped name, file or run directory; not with --sampled.")
    ] = None,
    only: Only = None,
    frames: Annotated[int, typer.Option(min=1, help="At most this many per trajectory.")] = 100,
    held_out: HeldOut = None,
    replicas: Annotated[int, typer.Option(min=1, help="Trajectories from each start.")] = 1,
    interpolator: Annotated[
        str | None, typer.Option(help="Also with this model between the frames.")
    ] = None,
    stride: shared.Stride = None,
    sampler: shared.Sampler = None,
    ablation: Annotated[bool, typer.Option("--ablation", help="With both samplers.")] = False,
    steps: shared.Steps = None,
    noise_scale: shared.NoiseScale = None,
    step_scale: shared.StepScale = None,
    steer: shared.Steer = True,
    redraws: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Times that a frame that no simulation would visit is drawn again before its "
            "trajectory ends; 0 keeps every frame. (100)",
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
    device: shared.Device = "cpu",
    plots: Plots = None,
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Trajectories that an ATMOS propagator draws, compared with molecular dynamics."""
    from mlmd_calc.cli.evaluate_rollouts import RolloutOptions, evaluate_rollouts
    from mlmd_calc.data.biomolecules.trajectories import read_trajectories
    from mlmd_calc.sampling.rollouts import REDRAWS, SamplerOptions
    from mlmd_calc.zoo import load_atmos

    trajectories = read_trajectories(data, topology=topology, interval_ps=interval)
    if sampled:
        from mlmd_calc.cli.evaluate_sampled import evaluate_sampled

        if model is not None:
            raise ConfigError("--sampled compares trajectories that exist; leave out --model")
        evaluate_sampled(
            _named(trajectories, only),
            read_trajectories(sampled, topology=topology, interval_ps=interval),
            seed=seed,
            as_json=as_json,
            html=html,
        )
        return
    if model is None:
        raise ConfigError("name a model with --model, or trajectories with --sampled")
    loaded = _load(model, "rollouts")
    place = {"device": device, "dtype": dtype}
    evaluate_rollouts(
        load_atmos(loaded.source, **place),
        chosen_data(trajectories, loaded, held_out, only),
        RolloutOptions(
            frames=frames,
            replicas=replicas,
            stride_ps=stride,
            sampler=SamplerOptions(sampler, steps, noise_scale, step_scale, steer),
            ablation=ablation,
            redraws=REDRAWS if redraws is None else redraws,
            seed=seed,
        ),
        interpolator=None if interpolator is None else load_atmos(interpolator, **place),
        plots=plots,
        as_json=as_json,
        html=html,
    )


def _named_model(args: list[str]) -> str | None:
    """Model that arguments name, if they do."""
    for word, following in itertools.zip_longest(args, args[1:]):
        if word == "--model":
            return following
        if word.startswith("--model="):
            return word.removeprefix("--model=")
    return None


def _command_of(model: LoadedModel[Any]) -> str:
    """Name of the command that measures a model.

    Raises
    ------
    ConfigError
        If none does.
    """
    from mlmd_calc.zoo import KINDS

    kind = KINDS[model.card.kind]
    if kind.evaluation is None:
        raise ConfigError(
            f"model {model.card.name!r} is {kind.title}, which no command of mlmd evaluate measures"
        )
    return kind.evaluation


def _load(name: str | None, command: str | None = None) -> LoadedModel[Any]:
    """Load a model, which must be of the kind that a command measures."""
    from mlmd_calc.zoo import KINDS, load_any_model

    model = load_any_model(name, device="cpu")
    if command is not None and (right := _command_of(model)) != command:
        raise ConfigError(
            f"mlmd evaluate {command} does not measure {model.card.name!r}, which is "
            f"{KINDS[model.card.kind].title}; use mlmd evaluate {right}"
        )
    return model


def chosen_data(
    data: list[D], model: LoadedModel[Any], part: str | None, only: list[str] | None
) -> list[D]:
    """Part of the data that the recipe of a model held out, and of that what has these names."""
    from mlmd_calc.training.held_out import held_out
    from mlmd_calc.training.recipe import Recipe

    if part is not None:
        data = held_out(data, Recipe.from_dict(model.card.recipe), part)
    return _named(data, only)


def _named(data: list[D], only: list[str] | None) -> list[D]:
    """Pick what has one of the names."""
    names = sorted({molecule.name for molecule in data})
    if unknown := sorted(set(only or ()) - set(names)):
        raise ConfigError(f"no molecule is called {unknown}; there are {names}")
    return [molecule for molecule in data if not only or molecule.name in only]
