"""Training of an ATMOS propagator on trajectories of biomolecules."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from mlmd_calc.biomolecules.domain import Domain
from mlmd_calc.data.biomolecules.trajectories import BiomolecularTrajectory
from mlmd_calc.models.atmos import ATMOS
from mlmd_calc.models.atmos.interpolator import interpolator_from
from mlmd_calc.training.atmos.batches import WindowBatches, WindowTable, coordinate_scale
from mlmd_calc.training.atmos.module import ATMOSTraining
from mlmd_calc.training.atmos.recipe import ATMOSRecipe
from mlmd_calc.training.held_out import elements_of
from mlmd_calc.training.task import Task, network_to_train, refuse_new_elements
from mlmd_calc.zoo import ATMOSModel


def atmos_task(
    train: Sequence[BiomolecularTrajectory],
    validation: dict[str, list[BiomolecularTrajectory]],
    recipe: ATMOSRecipe,
    start: ATMOSModel | None,
) -> Task:
    """Prepare a training; see :data:`~mlmd_calc.training.task.PrepareTask`."""
    network = network_to_train(
        start,
        recipe.seed,
        lambda: ATMOS(recipe.network_config(round(coordinate_scale(train), 2))),
    )
    if start is not None:
        remaining = recipe.model.get("max_remaining", 0)
        if remaining and not network.config.max_remaining:
            network = interpolator_from(network, remaining)
        recipe.check_network(network.config)
    elements = elements_of(train)
    refuse_new_elements(validation, elements)
    table = WindowTable(train, network.config, recipe, frame_noise=recipe.frame_noise)
    per_batch = recipe.systems * recipe.subsequences
    batches = {
        name: list(
            WindowTable(part, network.config, recipe).spread(
                recipe.validation_structures, per_batch
            )
        )
        for name, part in validation.items()
    }
    stream = functools.partial(WindowBatches, table, recipe)
    domain = Domain.of([trajectory.system.residues for trajectory in train])
    card: dict[str, Any] = {
        "strides_ps": list(recipe.strides_ps),
        "domain": domain.to_dict(),
    }
    temperatures = {trajectory.temperature_K for trajectory in train}
    if len(temperatures) == 1:
        card["temperature_K"] = temperatures.pop()
    return Task(ATMOSTraining(network, recipe), stream, batches, {}, sorted(elements), card)
