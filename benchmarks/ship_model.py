"""Measure a trained model, write the numbers into its card, and put it into the package.

    python benchmarks/ship_model.py runs/ethanol/model.safetensors benchmarks/cards/ethanol.toml \
        --test "independent trajectories=labels/test/ethanol.npz"

The card file holds what cannot be measured: name, description, data, recommended settings, the
commands that trained the model. Errors of force fields are measured in the recommended setting and,
where the model allows it, with direct forces in one fresh random orientation per call; those of
propagators with the recommended potential, beside ballistic motion. From the first test set of a
force field also comes what ``mlmd validate spread`` finds, and its recommended ``max_spread``.
Those of ATMOS models are what ``mlmd evaluate rollouts DATA --model MODEL --json`` printed, given
as ``--evaluation``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from mlmd_calc import Potential, load_propagator, units
from mlmd_calc.analysis.accuracy import (
    molecule_errors,
    orientation_errors,
    structures_of,
    summarise_errors,
)
from mlmd_calc.analysis.jump_baselines import ALL, MODEL, compare_with_baselines
from mlmd_calc.analysis.spread import calibrate_spread, spreads_and_errors
from mlmd_calc.data import MoleculeFrames, read_dataset
from mlmd_calc.errors import ConfigError
from mlmd_calc.training.held_out import held_out
from mlmd_calc.training.recipe import Recipe, read_toml
from mlmd_calc.zoo import ATMOSModel, ATOMModel, Model, ModelCard, load_any_model, save_model
from mlmd_calc.zoo.manifest import SHIPPED_WEIGHTS, write_manifest

STRUCTURES: Final = 1200
"""Of a test set, as many of each molecule: of a single molecule, two hundred are too few."""

EQUIVARIANCE_STRUCTURES: Final = 40
HELD_OUT: Final = {
    "molecules never trained on": "molecules",
    "held-out frames of training molecules": "frames",
}
TIMES_FS: Final = (2.0, 4.0, 8.0, 16.0, 32.0)

Tests = dict[str, list[MoleculeFrames]]


def measure_forces(
    model: Model, options: dict[str, Any], frames: list[MoleculeFrames]
) -> dict[str, float]:
    """Errors of one setting on one test set."""
    potential = Potential(model, seed=0, **options)
    most = STRUCTURES // len(frames)
    accuracy = summarise_errors([molecule_errors(potential, m, most) for m in frames])
    each = max(1, EQUIVARIANCE_STRUCTURES // len(frames))
    few = [s for m in frames for s in structures_of(m, each)]
    turned = orientation_errors(potential, few)
    result = {
        "structures": accuracy.structures,
        "force MAE, meV/Å": round(accuracy.forces_mae, 2),
        "force RMSE, meV/Å": round(accuracy.forces_rmse, 2),
        "equivariance error (600-cell), meV/Å": round(float(turned.mean()) / units.MEV, 2),
    }
    if accuracy.energy_mae is not None and accuracy.energy_mae_relative is not None:
        result["energy MAE, meV/atom"] = round(accuracy.energy_mae, 2)
        result["energy MAE less each molecule's mean, meV/atom"] = round(
            accuracy.energy_mae_relative, 2
        )
    return result


def force_errors(model: Model, card: ModelCard, tests: Tests) -> dict[str, Any]:
    """Errors of a force field by test set and setting."""
    settings: dict[str, dict[str, Any]] = {
        "recommended": {k: v for k, v in card.recommended.items() if k != "max_spread"},
        "direct, one random orientation per call": {
            "forces": "direct",
            "rotation": "random",
            "n_rotations": 1,
        },
    }
    return {
        f"{name}; {setting}": measure_forces(model, options, frames)
        for setting, options in settings.items()
        for name, frames in tests.items()
    }


def with_spread(model: Model, card: ModelCard, tests: Tests) -> ModelCard:
    """Add what the spread of the forces tells of the error, and the limit to be recommended.

    Left out for models that know no spread in the recommended setting.
    """
    options = {k: v for k, v in card.recommended.items() if k != "max_spread"}
    try:
        potential = Potential(model, seed=0, on_spread="measure", **options)
    except ConfigError:
        return card
    name, frames = next(iter(tests.items()))
    most = STRUCTURES // len(frames)
    found = calibrate_spread([spreads_and_errors(potential, one, most) for one in frames])
    row = {
        "structures": found.structures,
        "rank correlation with the error": round(found.rank_correlation, 3),
        "error / spread": round(found.error_by_spread, 2),
        "RMS error within max_spread, meV/Å": round(found.error_within, 1),
        "RMS error beyond, meV/Å": round(found.error_beyond, 1),
    }
    return replace(
        card,
        recommended={**options, "max_spread": round(found.max_spread, 3)},
        errors={**card.errors, f"spread of the forces; {name}": row},
    )


def jump_errors(model: ATOMModel, card: ModelCard, tests: Tests) -> dict[str, Any]:
    """Errors of a propagator by test set and time, in percent of the RMS change."""
    propagator = load_propagator(
        model.source, device="cpu", potential=card.recommended.get("potential")
    )
    times = [time for time in TIMES_FS if time in propagator.strides]
    errors = {}
    for name, frames in tests.items():
        most = STRUCTURES // len(frames)
        found = compare_with_baselines(propagator, frames, times, most=most)[ALL]
        rows: dict[str, Any] = {}
        for column, time in enumerate(times):
            rows[f"{time:g} fs"] = {
                f"{label}{quantity}, %": round(
                    100.0 * float(found[row].relative(quantity)[column]), 2
                )
                for row, label in ((MODEL, ""), ("ballistic", "ballistic "))
                for quantity in ("position", "velocity")
            }
        rows["largest time at which both beat every baseline, fs"] = largest_useful(found)
        errors[f"{name}; errors relative to the RMS change"] = rows
    return errors


def largest_useful(found: dict[str, Any]) -> float:
    """Largest time up to which positions and velocities are better than every baseline's."""
    useful = 0.0
    for column, time in enumerate(found[MODEL].times):
        for quantity in ("position", "velocity"):
            own = found[MODEL].relative(quantity)[column]
            others = [e.relative(quantity)[column] for n, e in found.items() if n != MODEL]
            if own >= min(others):
                return useful
        useful = float(time)
    return useful


def rollout_errors(path: Path) -> dict[str, Any]:
    """Rows of the tables that ``mlmd evaluate rollouts`` printed for an ATMOS model."""
    report = json.loads(path.read_text(encoding="utf-8"))
    return {
        f"{row['row']}, {table['interval_ps']:g} ps": {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in row.items()
            if name != "row" and value is not None
        }
        for table in report["tables"]
        for row in table["rows"]
    }


def main() -> None:
    """Measure, write, register."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("card", type=Path)
    parser.add_argument("--test", action="append", default=[], metavar="NAME=PATH[,PATH]")
    parser.add_argument("--held-out", nargs="+", type=Path, help="data the recipe split")
    parser.add_argument("--evaluation", type=Path, help="of an ATMOS model")
    parser.add_argument("--default", default="mdet-small-organics")
    arguments = parser.parse_args()
    console = Console()
    model = load_any_model(str(arguments.model), device="cpu")
    card = ModelCard.from_dict({**model.card.to_dict(), **read_toml(arguments.card)})
    tests = {}
    for item in arguments.test:
        name, _, paths = item.partition("=")
        tests[name] = read_dataset([Path(path) for path in paths.split(",")])
    if arguments.held_out:
        frames, recipe = read_dataset(arguments.held_out), Recipe.from_dict(card.recipe)
        tests |= {label: held_out(frames, recipe, part) for label, part in HELD_OUT.items()}
    errors: dict[str, Any]
    references: dict[int, float]
    if isinstance(model, ATMOSModel):
        if arguments.evaluation is None:
            parser.error("an ATMOS model needs --evaluation")
        errors, references = rollout_errors(arguments.evaluation), {}
    elif isinstance(model, ATOMModel):
        errors, references = jump_errors(model, card, tests), {}
    else:
        errors, references = force_errors(model, card, tests), model.atomic_energies
    card = replace(card, errors=errors, sha256="")
    if isinstance(model, Model) and tests:
        card = with_spread(model, card, tests)
    console.print(card.errors)
    path = SHIPPED_WEIGHTS / f"{card.name}.safetensors"
    save_model(path, model.network.float(), references, card.to_dict())
    write_manifest(SHIPPED_WEIGHTS, arguments.default)
    console.print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
