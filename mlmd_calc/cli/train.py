"""`mlmd train` and `mlmd finetune`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mlmd_calc.data import read_dataset
from mlmd_calc.errors import ConfigError
from mlmd_calc.optional import require

Data = Annotated[list[Path], typer.Argument(help="Label or trajectory files, or directories.")]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder for checkpoints, metrics and the model.")
]
RecipeName = Annotated[str, typer.Option("--recipe", "-r", help="Recipe: a name or a .toml file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change a recipe entry, as in --set steps=500; may be repeated. Tables are replaced "
        """as a whole, as in --set 'loss={"forces": 1, "energy": 1}'.""",
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


def train_command(
    data: Data,
    out: Out,
    recipe: RecipeName = "small-organics",
    override: Overrides = None,
    card: Description = None,
    devices: Devices = 1,
    accelerator: Accelerator = "auto",
) -> None:
    """Train a network from random weights; continues the run that OUT holds, if any."""
    _run(data, out, recipe, _overrides(override), None, card, devices, accelerator)


def finetune_command(
    model: Annotated[str, typer.Argument(help="Model to start from: a shipped name or a file.")],
    data: Data,
    out: Out,
    recipe: RecipeName = "mdet-finetune",
    override: Overrides = None,
    card: Description = None,
    devices: Devices = 1,
    accelerator: Accelerator = "auto",
) -> None:
    """Fine-tune a model; continues the run that OUT holds, if any."""
    _run(data, out, recipe, _overrides(override), model, card, devices, accelerator)


def _run(
    data: list[Path],
    out: Path,
    recipe_name: str,
    overrides: dict[str, Any],
    model: str | None,
    card_file: Path | None,
    devices: int,
    accelerator: str,
) -> None:
    # These import torch, which `mlmd --help` need not wait for.
    from mlmd_calc.data.biomolecules.trajectories import read_trajectories
    from mlmd_calc.training.recipe import load_recipe, read_toml

    recipe = load_recipe(recipe_name, overrides)
    require("lightning", extra="train", why="train models")
    from mlmd_calc.training.task import AnyModel
    from mlmd_calc.training.train import train
    from mlmd_calc.zoo import load_atmos, load_atom, load_model

    # Every process of a distributed training runs this command; one of them speaks.
    console = Console(stderr=True, quiet=os.environ.get("LOCAL_RANK", "0") != "0")
    frames = read_trajectories(data) if recipe.kind == "atmos" else read_dataset(data)
    count = sum(len(molecule) for molecule in frames)
    console.print(f"{len(frames)} molecules, {count:,} structures")
    entries = {} if card_file is None else read_toml(card_file)
    entries.setdefault("command", shlex.join(["mlmd", *sys.argv[1:]]))
    loaders: dict[str, Callable[..., AnyModel]] = {
        "mdet": load_model,
        "atom": load_atom,
        "atmos": load_atmos,
    }
    path = train(
        frames,
        recipe,
        out,
        start=None if model is None else loaders[recipe.kind](model, device="cpu", dtype="float32"),
        card=entries,
        devices=devices,
        accelerator=accelerator,
    )
    console.print(f"model written to {path}")


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
