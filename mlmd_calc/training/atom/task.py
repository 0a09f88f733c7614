"""Training of an ATOM propagator on trajectories."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from mlmd_calc import units
from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.models.atom import ATOMIntegrator
from mlmd_calc.training.atom.batches import JumpBatches, TrajectoryTable
from mlmd_calc.training.atom.module import ATOMTraining
from mlmd_calc.training.atom.recipe import ATOMRecipe
from mlmd_calc.training.held_out import elements_of
from mlmd_calc.training.task import Task, network_to_train, refuse_new_elements
from mlmd_calc.zoo import ATOMModel, load_model


def atom_task(
    train: Sequence[MoleculeFrames],
    validation: dict[str, list[MoleculeFrames]],
    recipe: ATOMRecipe,
    start: ATOMModel | None,
) -> Task:
    """Prepare a training; see :data:`~mlmd_calc.training.task.PrepareTask`."""
    network = network_to_train(start, recipe.seed, lambda: ATOMIntegrator(recipe.network_config()))
    if start is not None and (size := recipe.wanted_size()):
        network = network.widened(**size, seed=recipe.seed)
    if recipe.encoder:
        forces = load_model(recipe.encoder, device="cpu", dtype="float32")
        network = network.with_encoder(forces.network)
    elements = elements_of(train)
    refuse_new_elements(validation, elements)
    options = network.config
    horizons = (recipe.shortest_horizon, options.max_horizon)
    table = TrajectoryTable(
        train, horizons, accelerations=options.accelerations, size_step=recipe.size_step
    )
    batches = {}
    for name, part in validation.items():
        held_out = TrajectoryTable(
            part,
            horizons,
            accelerations=options.accelerations,
            scales=table.scales,
            held_out=True,
        )
        batches[name] = list(held_out.spread(recipe.validation_structures, recipe.atoms_per_batch))
    stream = functools.partial(
        JumpBatches, table, atoms_per_batch=recipe.atoms_per_batch, times=recipe.times
    )
    strides = [round(n * table.dt_fs / units.FS_PER_PS, 9) for n in table.strides]
    card = {"strides_ps": strides}
    return Task(ATOMTraining(network, recipe), stream, batches, {}, sorted(elements), card)
