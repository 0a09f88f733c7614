"""Training of the published ATOM operator on trajectories."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

from mlmd_calc.analysis.operator import operator_frames, operator_starts
from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.models.atom import ATOM, ATOMConfig
from mlmd_calc.training.held_out import elements_of
from mlmd_calc.training.operator.batches import OperatorBatches, OperatorTable, split_starts
from mlmd_calc.training.operator.module import OperatorTraining
from mlmd_calc.training.operator.recipe import OperatorRecipe
from mlmd_calc.training.task import Task, network_to_train, refuse_new_elements
from mlmd_calc.zoo import OperatorModel

STARTS: Final = "starts"
"""Name of the validation set of start frames between those of the training."""


def operator_task(
    train: Sequence[MoleculeFrames],
    validation: dict[str, list[MoleculeFrames]],
    recipe: OperatorRecipe,
    start: OperatorModel | None,
) -> Task:
    """Prepare a training; see :data:`~mlmd_calc.training.task.PrepareTask`."""
    network = network_to_train(start, recipe.seed, lambda: ATOM(ATOMConfig.from_dict(recipe.model)))
    seen = [operator_frames(molecule) for molecule in train]
    splits = [split_starts(molecule, recipe) for molecule in seen]
    elements = elements_of(seen)
    sets = {STARTS: (seen, [split.validation for split in splits])}
    for name, part in validation.items():
        held = [operator_frames(molecule) for molecule in part]
        most = recipe.validation_structures
        sets[name] = held, [operator_starts(m, recipe.horizon, most) for m in held]
    refuse_new_elements({name: molecules for name, (molecules, _) in sets.items()}, elements)
    walks = network.config.rrwp_length
    batches = {
        name: list(OperatorTable(*found, recipe, walks).all(recipe.samples_per_batch))
        for name, found in sets.items()
    }
    table = OperatorTable(seen, [split.train for split in splits], recipe, walks)
    stream = functools.partial(OperatorBatches, table, recipe)
    return Task(OperatorTraining(network, recipe), stream, batches, {}, sorted(elements), {})
