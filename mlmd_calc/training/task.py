"""What a recipe asks for: network, data, and how the one is trained on the other."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from ase.data import chemical_symbols

from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.errors import ConfigError
from mlmd_calc.models.atom import ATOM, ATOMConfig, IntegratorConfig
from mlmd_calc.models.mdet import MDET, MDETConfig
from mlmd_calc.training.atom_module import ATOMTraining
from mlmd_calc.training.atomic_energies import fit_atomic_energies, refit_atomic_energies
from mlmd_calc.training.batches import BatchStream, StructureTable, TrainingBatches
from mlmd_calc.training.mdet_module import MDETTraining, energy_head
from mlmd_calc.training.module import TrainingModule
from mlmd_calc.training.recipe import ATOMRecipe, MDETRecipe, Recipe
from mlmd_calc.training.trajectory_batches import JumpBatches, TrajectoryTable
from mlmd_calc.zoo import ATOMModel, Model

N = TypeVar("N", bound=torch.nn.Module)

Parts: TypeAlias = dict[str, list[MoleculeFrames]]


class Task(NamedTuple):
    """A training that is ready to start.

    Attributes
    ----------
    module
        Network and losses.
    stream
        Training batches; takes the seed and, as keywords, ``start``, ``rank`` and ``world_size``.
    validation
        Batches of each validation set by name.
    atomic_energies
        Energy of each element that was subtracted from the labels; empty for trajectories.
    elements
        Atomic numbers in the training data.
    """

    module: TrainingModule
    stream: Callable[..., BatchStream[Any]]
    validation: dict[str, list[Any]]
    atomic_energies: dict[int, float]
    elements: list[int]


def prepare(
    train: Sequence[MoleculeFrames],
    validation: Parts,
    recipe: Recipe,
    start: Model | ATOMModel | None,
    identity: dict[str, Any],
) -> Task:
    """Prepare the training that a recipe describes.

    Parameters
    ----------
    train, validation
        Frames to train on, and by name those that are never trained on.
    recipe
        Hyper-parameters.
    start
        Model to fine-tune; None to train from random weights.
    identity
        What the checkpoints say they belong to (:func:`~.resume.run_identity`).

    Raises
    ------
    ConfigError
        If held-out molecules have elements that the others lack, or data, model and recipe do not
        fit together.
    InputError
        If labels are missing, or the model to fine-tune does not know an element.
    """
    if isinstance(recipe, ATOMRecipe):
        if isinstance(start, Model):
            raise ConfigError(_wrong_start(start.card.name, "an MD-ET force field", recipe))
        return _atom_task(train, validation, recipe, start, identity)
    if isinstance(recipe, MDETRecipe):
        if isinstance(start, ATOMModel):
            raise ConfigError(_wrong_start(start.card.name, "an ATOM propagator", recipe))
        return _mdet_task(train, validation, recipe, start, identity)
    raise ConfigError(f"{type(recipe).__name__} is not the recipe of a model")


def _wrong_start(name: str, what: str, recipe: Recipe) -> str:
    return (
        f"model {name!r} is {what}, but the recipe has kind={recipe.kind!r}; choose a model and a "
        "recipe of the same kind"
    )


def _mdet_task(
    train: Sequence[MoleculeFrames],
    validation: Parts,
    recipe: MDETRecipe,
    start: Model | None,
    identity: dict[str, Any],
) -> Task:
    if start is None:
        network = _seeded(lambda: MDET(MDETConfig.from_dict(recipe.model)), recipe.seed)
        references = fit_atomic_energies(train)
    else:
        network = copy.deepcopy(start.network).float().cpu()
        if energy_head(network.config, recipe.loss):
            references = refit_atomic_energies(start, train)
        else:
            references = fit_atomic_energies(train)
    _refuse_new_elements(validation, set(references))
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
    module = MDETTraining(network.train(), recipe, tuple(batches), identity)
    return Task(module, stream, batches, references, sorted(references))


def _atom_task(
    train: Sequence[MoleculeFrames],
    validation: Parts,
    recipe: ATOMRecipe,
    start: ATOMModel | None,
    identity: dict[str, Any],
) -> Task:
    if start is None:
        network = _seeded(lambda: ATOM(recipe.network_config()), recipe.seed)
    else:
        network = copy.deepcopy(start.network).float().cpu()
    elements = _elements(train)
    _refuse_new_elements(validation, elements)
    options = integrator_options(network.config)
    horizons = (recipe.shortest_horizon, options.max_horizon)
    table = TrajectoryTable(
        train, horizons, accelerations=options.accelerations, size_step=recipe.size_step
    )
    batches = {}
    for name, part in validation.items():
        held_out = TrajectoryTable(
            part, horizons, accelerations=options.accelerations, scales=table.scales
        )
        batches[name] = list(held_out.spread(recipe.validation_structures, recipe.atoms_per_batch))
    stream = functools.partial(
        JumpBatches, table, atoms_per_batch=recipe.atoms_per_batch, times=recipe.times
    )
    module = ATOMTraining(network.train(), recipe, tuple(batches), identity)
    return Task(module, stream, batches, {}, sorted(elements))


def integrator_options(config: ATOMConfig) -> IntegratorConfig:
    """Options of a network that is a jump of an integrator.

    Raises
    ------
    ConfigError
        If the network is the published operator.
    """
    if config.integrator is None:
        raise ConfigError(
            "this network is the published operator, not an integrator, and cannot be trained here"
        )
    return config.integrator


def _seeded(build: Callable[[], N], seed: int) -> N:
    """Build a network with random weights that follow from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which seeds accelerators as well.
        torch.default_generator.manual_seed(seed)
        return build()


def _elements(frames: Sequence[MoleculeFrames]) -> set[int]:
    return {int(z) for molecule in frames for z in molecule.numbers}


def _refuse_new_elements(validation: Parts, known: set[int]) -> None:
    found = set[int]().union(*(_elements(part) for part in validation.values()))
    if missing := found - known:
        symbols = ", ".join(chemical_symbols[z] for z in sorted(missing))
        raise ConfigError(
            f"held-out molecules contain {symbols}, which no training molecule does; leave them out"
        )
