"""`mlmd evaluate` for the published ATOM operator."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mlmd_calc.analysis.accuracy import spread_index
from mlmd_calc.analysis.operator import SLOTS, measure_operator, operator_frames, operator_starts
from mlmd_calc.cli.report import Report
from mlmd_calc.data import MoleculeFrames
from mlmd_calc.errors import ConfigError
from mlmd_calc.options import steps_in
from mlmd_calc.wording import counted
from mlmd_calc.zoo import OperatorModel

HORIZON: Final = 3000
"""Frames to the last target that most published models were trained for."""

TEST_STARTS: Final = "starts"
"""Start frames that a recipe kept for the test, between those of the training."""


def evaluate_operator(
    model: OperatorModel,
    molecules: list[MoleculeFrames],
    *,
    times_fs: list[float] | None,
    frames: int,
    of_test: bool,
    as_json: bool,
    html: Path | None,
) -> None:
    """Measure the operator beside its baselines; print a table, or JSON.

    Parameters
    ----------
    model
        What to measure.
    molecules
        Trajectories.
    times_fs
        Times of the last target; None for the horizon of the recipe, or `HORIZON` frames.
    frames
        At most this many start frames per molecule.
    of_test
        Take the start frames that the recipe kept for the test; `molecules` are those of
        :func:`data_of_training` then.
    as_json
        Print JSON.
    html
        File of a page, or None.

    Raises
    ------
    ConfigError
        If a time is not a whole number of frames, longer than the trajectories, or not that of the
        starts of the test.
    InputError
        If there is a molecule that the operator cannot see.
    """
    rows: list[dict[str, Any]] = []
    slots = model.card.recipe.get("slots", SLOTS)
    for molecule in track(molecules, "measuring", console=Console(stderr=True), transient=True):
        seen = operator_frames(molecule)
        for horizon in _horizons(model, seen, times_fs):
            starts = (
                _test_starts(model, seen, horizon, frames)
                if of_test
                else operator_starts(seen, horizon, frames)
            )
            errors = measure_operator(model.network, seen, starts, horizon=horizon, slots=slots)
            rows.append(
                {
                    "molecule": molecule.name,
                    "horizon, frames": horizon,
                    "starts": len(starts),
                    "errors, Å²": {name: asdict(found) for name, found in errors.items()},
                }
            )
    names = list(rows[0]["errors, Å²"])
    table = Table(
        *("molecule", "frames", "", *names),
        title="mean square position error per coordinate, 10⁻² Å²",
    )
    for row in rows:
        for title, key in (("S2S", "s2s"), ("S2T", "s2t")):
            cells = (f"{100.0 * row['errors, Å²'][name][key]:.3g}" for name in names)
            table.add_row(row["molecule"], str(row["horizon, frames"]), title, *cells)
    report = Report(f"Mean positions by {model.card.name}")
    report.table(table)
    report.card(model.card)
    numbers = {"model": model.card.name, "rows": rows}
    report.deliver(numbers, as_json, html)


def data_of_training(model: OperatorModel, data: list[MoleculeFrames]) -> list[MoleculeFrames]:
    """Frames among which a training drew its start frames, those of the test too.

    Other data are refused: the starts are drawn again, and would be others, some of the training.

    Raises
    ------
    ConfigError
        If the model was not trained here, or on other data.
    """
    from mlmd_calc.training.card import data_summary
    from mlmd_calc.training.held_out import split
    from mlmd_calc.training.recipe import Recipe

    if not model.card.recipe:
        raise ConfigError(
            f"--held-out {TEST_STARTS}: model {model.card.name!r} was not trained here, so which "
            "start frames its test had is not known; leave it out"
        )
    if (found := data_summary(data)) != model.card.training_data:
        raise ConfigError(
            f"--held-out {TEST_STARTS} needs all data of the training, "
            f"{model.card.training_data!r}, but these are {found!r}; give the same files, and "
            "--frame-spacing as in the training"
        )
    return split(data, Recipe.from_dict(model.card.recipe))[0]


def _test_starts(
    model: OperatorModel, frames: MoleculeFrames, horizon: int, most: int
) -> NDArray[np.int64]:
    from mlmd_calc.training.operator.batches import split_starts
    from mlmd_calc.training.operator.recipe import OperatorRecipe
    from mlmd_calc.training.recipe import Recipe

    recipe = Recipe.from_dict(model.card.recipe)
    assert isinstance(recipe, OperatorRecipe)
    if horizon != recipe.horizon:
        raise ConfigError(
            f"--time asks for {counted(horizon, 'frame')}, but the start frames of the test were "
            f"drawn for {recipe.horizon}; leave out --time or --held-out"
        )
    test = split_starts(frames, recipe).test
    return test[spread_index(len(test), most)]


def _horizons(
    model: OperatorModel, frames: MoleculeFrames, times_fs: list[float] | None
) -> list[int]:
    """Return the times in frames."""
    slots = model.card.recipe.get("slots", SLOTS)
    if times_fs is None:
        return [model.card.recipe.get("horizon", HORIZON)]
    if frames.dt_fs is None:
        raise ConfigError(
            f"the data do not say how far apart the frames of {frames.name!r} are, so --time means "
            "nothing; give --frame-spacing"
        )
    horizons = []
    for time in times_fs:
        count = steps_in(time, frames.dt_fs)
        if count is None or count < slots:
            raise ConfigError(
                f"time={time:g} fs is not a whole number of frames of {frames.dt_fs:g} fs, at "
                f"least {slots}; choose another one"
            )
        horizons.append(count)
    return horizons
