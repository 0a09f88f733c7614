"""What a recipe asks for: network, data, and how the one is trained on the other."""

from __future__ import annotations

import copy
import pkgutil
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from ase.data import chemical_symbols

from mlmd_calc.errors import ConfigError
from mlmd_calc.models.larger import seeded
from mlmd_calc.training.batches import BatchStream
from mlmd_calc.training.held_out import elements_of, split
from mlmd_calc.training.module import TrainingModule
from mlmd_calc.training.recipe import Recipe, TrainingData
from mlmd_calc.zoo import KINDS, LoadedModel

N = TypeVar("N", bound=torch.nn.Module)


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
    card
        Other entries of the model card that follow from data and recipe.
    """

    module: TrainingModule
    stream: Callable[..., BatchStream[Any]]
    validation: dict[str, list[Any]]
    atomic_energies: dict[int, float]
    elements: list[int]
    card: dict[str, Any]


PrepareTask: TypeAlias = Callable[
    [Sequence[Any], dict[str, list[Any]], Any, LoadedModel[Any] | None], Task
]
"""Prepares the training of one kind of networks.

It takes training data, validation sets by name, the recipe, and the model to fine-tune or None;
errors as of :func:`prepare`.
"""


def prepare(data: TrainingData, recipe: Recipe, start: LoadedModel[Any] | None) -> Task:
    """Prepare the training that a recipe describes.

    Parameters
    ----------
    data
        Labelled frames, or trajectories; the recipe's held-out part is split off.
    recipe
        Hyper-parameters.
    start
        Model to fine-tune; None to train from random weights.

    Raises
    ------
    ConfigError
        If held-out molecules have elements that the others lack, or data, model and recipe do not
        fit together.
    InputError
        If labels are missing, or the model to fine-tune does not know an element.
    """
    if start is not None and start.card.kind != recipe.kind:
        raise ConfigError(
            f"model {start.name!r} is {KINDS[start.card.kind].title}, but the recipe has "
            f"kind={recipe.kind!r}; choose a model and a recipe of the same kind"
        )
    if found := {type(item).__name__ for item in data if not isinstance(item, recipe.data)}:
        raise ConfigError(
            f"a recipe with kind={recipe.kind!r} trains on {recipe.data.__name__}, but the data "
            f"have {', '.join(sorted(found))}"
        )
    where = KINDS[recipe.kind].task
    assert where is not None, "what has a recipe is trained"
    prepare_task: PrepareTask = pkgutil.resolve_name(where)
    return prepare_task(*split(data, recipe), recipe, start)


def network_to_train(start: LoadedModel[N] | None, seed: int, build: Callable[[], N]) -> N:
    """Copy the network of the model to fine-tune, or build one whose weights follow from a seed.

    Returns
    -------
    nn.Module
        In single precision on the CPU, in training mode.
    """
    if start is not None:
        return copy.deepcopy(start.network).float().cpu().train()
    return seeded(build, seed).train()


def refuse_new_elements(validation: Mapping[str, TrainingData], known: Collection[int]) -> None:
    """Refuse validation sets with elements that are not in the training data.

    Raises
    ------
    ConfigError
        With the missing elements.
    """
    found = set[int]().union(*map(elements_of, validation.values()))
    if missing := sorted(found.difference(known)):
        symbols = ", ".join(chemical_symbols[z] for z in missing)
        raise ConfigError(
            f"held-out molecules contain {symbols}, which no training molecule does; leave them out"
        )
