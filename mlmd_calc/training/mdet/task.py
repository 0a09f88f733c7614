"""Training of an MD-ET force field on labelled structures."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict

from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.electrons import ElectronicState, TrainedState
from mlmd_calc.errors import ConfigError
from mlmd_calc.models.mdet import MDET, MDETConfig
from mlmd_calc.potential.coverage import measure
from mlmd_calc.training.mdet.atomic_energies import fit_atomic_energies, refit_atomic_energies
from mlmd_calc.training.mdet.batches import StructureTable, TrainingBatches
from mlmd_calc.training.mdet.module import MDETTraining, energy_head
from mlmd_calc.training.mdet.recipe import MDETRecipe
from mlmd_calc.training.task import Task, network_to_train, refuse_new_elements
from mlmd_calc.zoo import Model


def mdet_task(
    train: Sequence[MoleculeFrames],
    validation: dict[str, list[MoleculeFrames]],
    recipe: MDETRecipe,
    start: Model | None,
) -> Task:
    """Prepare a training; see :data:`~mlmd_calc.training.task.PrepareTask`."""
    _check_precision(recipe)
    network = network_to_train(start, recipe.seed, lambda: MDET(MDETConfig.from_dict(recipe.model)))
    if start is not None and (size := recipe.wanted_size()):
        network = network.grown(**size, seed=recipe.seed)
    if start is not None and energy_head(network.config, recipe.loss):
        references = refit_atomic_energies(start, train)
    else:
        references = fit_atomic_energies(train)
    refuse_new_elements(validation, references)
    batches = {}
    for name, part in validation.items():
        table = StructureTable(part, references, recipe.size_step)
        batches[name] = list(table.spread(recipe.validation_structures, recipe.pairs_per_batch))
    stream = functools.partial(
        TrainingBatches,
        StructureTable(train, references, recipe.size_step),
        pairs_per_batch=recipe.pairs_per_batch,
        copies=recipe.copies,
    )
    # Fine-tuned to one molecule, a model forgets others.
    is_alone = len({molecule.name for molecule in train}) == 1
    known = () if start is None or is_alone else start.card.electronic_states
    # Of a model whose own states are not known the states of its child are not known either.
    states = None if known is None else trained_states(train, known)
    card = {"electronic_states": states, **_distances(train, start)}
    return Task(
        MDETTraining(network, recipe), stream, batches, references, sorted(references), card
    )


def _check_precision(recipe: MDETRecipe) -> None:
    """Refuse a precision without effect; model cards hold recipes that have one."""
    if recipe.precision != "32-true" and (recipe.loss.gradient or recipe.loss.consistency):
        raise ConfigError(
            f"precision={recipe.precision!r} with loss.gradient={recipe.loss.gradient:g} and "
            f"loss.consistency={recipe.loss.consistency:g}; energy gradients need single precision "
            "throughout, so it would change nothing: leave precision at '32-true', or set both "
            "weights to 0"
        )


def _distances(train: Sequence[MoleculeFrames], start: Model | None) -> dict[str, float]:
    """Card entries of the distances in the training data, those of the parent included."""
    measured = measure((molecule.numbers, molecule.positions) for molecule in train)
    if measured is None:
        return {}
    closest, gap = measured
    if start is not None:
        closest = min(closest, start.card.closest_contact or closest)
        gap = max(gap, start.card.largest_gap_A or gap)
    return {"closest_contact": round(closest, 3), "largest_gap_A": round(gap, 2)}


def trained_states(
    frames: Sequence[MoleculeFrames], before: Sequence[TrainedState]
) -> list[dict[str, int]]:
    """Charges and multiplicities in training data, as a model card lists them.

    Parameters
    ----------
    frames
        The data.
    before
        What the model to fine-tune was trained on.
    """
    sizes: dict[ElectronicState, dict[str, int]] = {}
    for molecule in frames:
        sizes.setdefault(molecule.state, {})[molecule.name] = len(molecule.numbers)
    found = {state: TrainedState(*state, len(n), max(n.values())) for state, n in sizes.items()}
    for old in before:
        state = ElectronicState(old.charge, old.multiplicity)
        new = found.get(state, TrainedState(*state, 0, 0))
        # The same molecules may be in both; their number is at least that of the larger set.
        found[state] = TrainedState(
            *state,
            max(old.molecules, new.molecules),
            max(old.most_atoms, new.most_atoms),
            # Fine-tuned to molecules that were too small before, it knows them.
            min(old.fewest_atoms, new.most_atoms or old.fewest_atoms),
        )
    return [asdict(found[state]) for state in sorted(found)]
