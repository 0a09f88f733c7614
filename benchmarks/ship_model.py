"""Measure a trained model, write the numbers into its card, and put it into the package.

    python benchmarks/ship_model.py runs/ethanol/model.safetensors benchmarks/cards/ethanol.toml \
        --test "independent trajectories=labels/test/ethanol.npz"

The card file holds what cannot be measured: name, description, data, recommended settings, the
commands that trained the model. Errors are measured in the recommended setting and, where the model
allows it, with direct forces in one fresh random orientation per call.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from mlmd_calc import Potential
from mlmd_calc.analysis.accuracy import equivariance_error, measure_accuracy, structures_of
from mlmd_calc.data import MoleculeFrames, read_dataset, split_by_block, split_by_molecule
from mlmd_calc.training.recipe import read_toml
from mlmd_calc.zoo import ModelCard, load_model, save_model
from mlmd_calc.zoo.manifest import SHIPPED_WEIGHTS, write_manifest

FRAMES: Final = 100
EQUIVARIANCE_STRUCTURES: Final = 40


def measure(model: Any, options: dict[str, Any], frames: list[MoleculeFrames]) -> dict[str, float]:
    """Errors of one setting on one test set."""
    potential = Potential(model, seed=0, **options)
    accuracy = measure_accuracy(potential, frames, most=FRAMES)
    each = max(1, EQUIVARIANCE_STRUCTURES // len(frames))
    few = [s for m in frames for s in structures_of(m, each)]
    result = {
        "structures": accuracy.structures,
        "force MAE, meV/Å": round(accuracy.forces_mae, 2),
        "force RMSE, meV/Å": round(accuracy.forces_rmse, 2),
        "equivariance error (600-cell), meV/Å": round(equivariance_error(potential, few), 2),
    }
    if accuracy.energy_mae is not None and accuracy.energy_mae_relative is not None:
        result["energy MAE, meV/atom"] = round(accuracy.energy_mae, 2)
        result["energy MAE less each molecule's mean, meV/atom"] = round(
            accuracy.energy_mae_relative, 2
        )
    return result


def main() -> None:
    """Measure, write, register."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("card", type=Path)
    parser.add_argument("--test", action="append", default=[], metavar="NAME=PATH[,PATH]")
    parser.add_argument("--held-out", nargs="+", type=Path, help="data the recipe split")
    parser.add_argument("--default", default="mdet-small-organics")
    arguments = parser.parse_args()
    console = Console()
    model = load_model(str(arguments.model), device="cpu")
    card = ModelCard.from_dict({**model.card.to_dict(), **read_toml(arguments.card)})
    tests = {}
    for item in arguments.test:
        name, _, paths = item.partition("=")
        tests[name] = read_dataset([Path(path) for path in paths.split(",")])
    if arguments.held_out:
        frames = read_dataset(arguments.held_out)
        names = [m.name for m in frames]
        held = [n for n in card.recipe["held_out_molecules"] if n in names]
        frames, tests["molecules never trained on"] = split_by_molecule(frames, held)
        _, tests["held-out frames of training molecules"] = split_by_block(
            frames, card.recipe["held_out_fraction"]
        )
    settings: dict[str, dict[str, Any]] = {"recommended": dict(card.recommended)}
    settings["direct, one random orientation per call"] = {
        "forces": "direct",
        "rotation": "random",
        "n_rotations": 1,
    }
    errors: dict[str, Any] = {}
    for setting, options in settings.items():
        for name, frames in tests.items():
            key = f"{name}; {setting}"
            errors[key] = measure(model, options, frames)
            console.print(key, errors[key])
    card = replace(card, errors=errors, sha256="")
    path = SHIPPED_WEIGHTS / f"{card.name}.safetensors"
    save_model(path, model.network.float(), model.atomic_energies, card.to_dict())
    write_manifest(SHIPPED_WEIGHTS, arguments.default)
    console.print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
