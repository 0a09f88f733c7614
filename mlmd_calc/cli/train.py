"""`mlmd train` and `mlmd finetune`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console

from mlmd_calc.cli.data_options import Data, Reading, with_reading
from mlmd_calc.cli.endings import advise, end_of, stop_on_signal
from mlmd_calc.errors import ConfigError
from mlmd_calc.optional import require
from mlmd_calc.wording import counted

if TYPE_CHECKING:
    from mlmd_calc.training.recipe import Recipe, TrainingData
    from mlmd_calc.zoo import LoadedModel

_GO_ON: Final = "the same command goes on from there"

Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder for checkpoints, metrics and the model.")
]
RecipeName = Annotated[
    str,
    typer.Option(
        "--recipe", "-r", help="Recipe: a name or a .toml file, which may name another as its base."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change a recipe entry, as in --set steps=500 or, in tables, --set loss.energy=1 and "
        "--set model.integrator.accelerations=false; may be repeated. "
        """--set 'loss={"forces": 1, "energy": 1}' replaces the whole table.""",
    ),
]
Description = Annotated[
    Path | None,
    typer.Option("--card", help="TOML file with entries of the model card (name, licence, ...)."),
]
Devices = Annotated[
    int, typer.Option(min=1, help="Processes or GPUs; more than one trains with DDP.")
]
Accelerator = Annotated[str, typer.Option(help="cpu, gpu, or auto: gpu if there is one.")]


@with_reading
def train_command(
    data: Data,
    out: Out,
    recipe: RecipeName = "small-organics",
    override: Overrides = None,
    card: Description = None,
    from_protenix: Annotated[
        Path | None,
        typer.Option(help="ATMOS: checkpoint of Protenix to start from, of the recipe's sizes."),
    ] = None,
    devices: Devices = 1,
    accelerator: Accelerator = "auto",
    *,
    reading: Reading,
) -> None:
    """Train a network from random weights; continues the run that OUT holds, if any."""
    _run(data, reading, out, recipe, override, from_protenix, card, devices, accelerator)


@with_reading
def finetune_command(
    model: Annotated[
        str,
        typer.Argument(help="Model to start from: a shipped name, a file or the folder of a run."),
    ],
    data: Data,
    out: Out,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            help="Recipe: a name or a .toml file. Default: mdet-finetune, molecule-finetune where "
            "the model is recommended with conservative forces, atom-molecule for jumps.",
        ),
    ] = None,
    override: Overrides = None,
    card: Description = None,
    devices: Devices = 1,
    accelerator: Accelerator = "auto",
    *,
    reading: Reading,
) -> None:
    """Fine-tune a model; continues the run that OUT holds, if any."""
    require("lightning", extra="train", why="train models")
    from mlmd_calc.zoo import load_any_model

    start = load_any_model(model, device="cpu", dtype="float32")
    recipe = recipe or usual_recipe(start)
    _check_growth(override, recipe)
    _run(data, reading, out, recipe, override, start, card, devices, accelerator)


def usual_recipe(start: LoadedModel[Any]) -> str:
    """Name of the recipe for fine-tuning a model.

    Raises
    ------
    ConfigError
        If there is none for its kind.
    """
    from mlmd_calc.training.recipe import list_recipes, load_recipe

    if start.card.recommended.get("forces") == "conservative":
        return "molecule-finetune"
    kind, names = start.card.kind, list_recipes()
    if kind == "atom":
        return "atom-molecule"
    if f"{kind}-finetune" not in names:
        usual = ", ".join(n for n in names if load_recipe(n).kind == kind) or "a .toml file"
        raise ConfigError(
            f"there is no usual recipe for fine-tuning {start.name!r}; name one with --recipe "
            f"({usual}), and give --set steps and --set learning_rate"
        )
    return f"{kind}-finetune"


def _check_growth(override: list[str] | None, recipe_name: str) -> None:
    """Refuse options of an architecture that fine-tuning would not change."""
    from mlmd_calc.training.recipe import load_recipe

    grows_by = [f"model.{name}" for name in load_recipe(recipe_name).grows_by]
    what_to_do = f"it can only grow, by {' and '.join(grows_by)}" if grows_by else "leave it out"
    for key in _overrides(override):
        if key.split(".")[0] == "model" and key not in grows_by:
            raise ConfigError(
                f"--set {key}: fine-tuning keeps the network of the model; {what_to_do}. "
                "`mlmd train` trains one of another architecture"
            )


def _run(
    data: list[Path],
    reading: Reading,
    out: Path,
    recipe_name: str,
    override: list[str] | None,
    start: LoadedModel[Any] | Path | None,
    card_file: Path | None,
    devices: int,
    accelerator: str,
) -> None:
    from mlmd_calc.training.recipe import list_recipes, load_recipe, read_toml

    overrides = _overrides(override)
    recipe = load_recipe(recipe_name, overrides)
    entries = {} if card_file is None else read_toml(card_file)
    entries.setdefault("command", shlex.join(["mlmd", *sys.argv[1:]]))
    require("lightning", extra="train", why="train models")
    from mlmd_calc.training.held_out import spare_molecules
    from mlmd_calc.training.stop import TrainingStopped
    from mlmd_calc.training.train import train

    # Every process of a distributed training runs this command; one of them speaks.
    console = Console(stderr=True, quiet=os.environ.get("LOCAL_RANK", "0") != "0")
    frames = _read(data, reading, recipe)
    count = sum(len(molecule) for molecule in frames)
    console.print(f"{counted(len(frames), 'molecule')}, {counted(count, 'structure')}")
    if recipe_name in list_recipes() and "held_out_molecules" not in overrides:
        recipe = spare_molecules(frames, recipe)
    names = ", ".join(recipe.held_out_molecules) or "no molecules"
    console.print(f"held out: {names}, and {recipe.held_out_fraction:.0%} of the other structures")
    if isinstance(start, Path):
        from mlmd_calc.training.atmos.protenix_start import start_from_protenix

        checkpoint, (start, report) = start, start_from_protenix(start, recipe, frames)
        console.print(
            f"{counted(len(report.loaded), 'tensor')} from {checkpoint}; left out: "
            f"{len(report.unused):,} of known parts, {len(report.unknown):,} of unknown ones"
        )
    with stop_on_signal() as should_stop:
        advise(f"steps up to the last checkpoint are kept in {out}; {_GO_ON}")
        try:
            path = train(
                frames,
                recipe,
                out,
                start=start,
                card=entries,
                devices=devices,
                accelerator=accelerator,
                should_stop=should_stop,
            )
        except TrainingStopped as stop:
            advise(f"{stop.step:,} of {recipe.steps:,} steps are kept in {out}; {_GO_ON}")
            raise typer.Exit(end_of(should_stop.number)) from stop
    console.print(f"model written to {path}; measure it with: mlmd evaluate DATA --model {out}")


def _read(data: list[Path], reading: Reading, recipe: Recipe) -> TrainingData:
    """Read what a recipe trains on."""
    from mlmd_calc.data.biomolecules.trajectories import BiomolecularTrajectory, read_trajectories

    if recipe.data is not BiomolecularTrajectory:
        return reading.read(data)
    for name, value in reading._asdict().items():
        if value is not None:
            raise ConfigError(
                f"--{name.replace('_', '-')} means nothing for trajectories of biomolecules, on "
                f"which recipes with kind={recipe.kind!r} train; leave it out"
            )
    return read_trajectories(data)


def _overrides(items: list[str] | None) -> dict[str, Any]:
    """Parse ``key=value`` pairs; values are JSON, or text where they are not."""
    result: dict[str, Any] = {}
    for item in items or []:
        key, separator, text = item.partition("=")
        if not separator:
            raise ConfigError(f"--set {item!r} is not of the form KEY=VALUE")
        try:
            result[key] = json.loads(text)
        except json.JSONDecodeError:
            result[key] = text
    return result
