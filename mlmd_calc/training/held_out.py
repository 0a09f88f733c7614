"""Which of the data a recipe trains on, and which it holds out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from mlmd_calc.data import MoleculeFrames, split_by_block, split_by_molecule
from mlmd_calc.data.biomolecules.trajectories import BiomolecularTrajectory
from mlmd_calc.errors import ConfigError
from mlmd_calc.training.recipe import Recipe, TrainingData

D = TypeVar("D", bound=MoleculeFrames | BiomolecularTrajectory)

MOLECULES: Final = "molecules"
"""Name of the validation set of molecules that are never trained on."""

FRAMES: Final = "frames"
"""Name of the validation set of held-out frames of the other molecules."""


def spare_molecules(data: TrainingData, recipe: Recipe) -> Recipe:
    """Reduce the held-out molecules of a recipe to those that the data have and can spare.

    The recipes of the package name test molecules of one collection. Other data need not have them,
    and may have little else: those are trained on that would leave an element untrained.
    """
    trained = elements_of([m for m in data if m.name not in recipe.held_out_molecules])
    spared = {molecule.name for molecule in data if elements_of([molecule]) <= trained}
    names = tuple(name for name in recipe.held_out_molecules if name in spared)
    return replace(recipe, held_out_molecules=names)


def elements_of(data: TrainingData) -> set[int]:
    """Atomic numbers in the data."""
    found = set[int]()
    for molecule in data:
        if isinstance(molecule, BiomolecularTrajectory):
            found.update(1 + z for z in molecule.system.features.ref_element.tolist())
        else:
            found.update(molecule.numbers.tolist())
    return found


def split(data: Sequence[D], recipe: Recipe) -> tuple[list[D], dict[str, list[D]]]:
    """Split data into training data and validation sets as the recipe says.

    All of one name is on one side.

    Returns
    -------
    tuple
        Training data, and by name "molecules" (molecules never trained on) and "frames" (the last
        block in time of the others) as far as the recipe holds them out.

    Raises
    ------
    ConfigError
        If the recipe holds out a molecule that there is not, or everything, or a fraction where
        no frame can be spared.
    """
    names = sorted({molecule.name for molecule in data})
    if unknown := sorted(set(recipe.held_out_molecules) - set(names)):
        raise ConfigError(
            f"held_out_molecules of the recipe names {unknown}, which the data do not have; they "
            f"have {names}. Hold out some of these, or none (--set held_out_molecules=[])"
        )
    validation: dict[str, list[D]] = {}
    train = list(data)
    if recipe.held_out_molecules:
        train, validation[MOLECULES] = split_by_molecule(train, recipe.held_out_molecules)
    if recipe.held_out_fraction:
        train, validation[FRAMES] = _split_in_time(train, recipe.held_out_fraction)
    return train, validation


def held_out(data: Sequence[D], recipe: Recipe, part: str) -> list[D]:
    """Pick what the recipe of a model kept from training.

    Parameters
    ----------
    data
        Data that the model was trained on, or some of the molecules in them; of each all frames.
    recipe
        Recipe of the model.
    part
        "molecules" or "frames", see :func:`split`.

    Raises
    ------
    ConfigError
        If the recipe or the data do not have that part.
    """
    names, fraction = recipe.held_out_molecules, recipe.held_out_fraction
    known = [key for key, value in ((MOLECULES, names), (FRAMES, fraction)) if value]
    if part not in known:
        raise ConfigError(f"held_out={part!r}; this model's recipe held out {known}")
    if part == MOLECULES:
        found = [molecule for molecule in data if molecule.name in names]
    else:
        trained = [molecule for molecule in data if molecule.name not in names]
        found = _split_in_time(trained, fraction)[1] if trained else []
    if not found:
        raise ConfigError(
            f"the data have no held-out {part}: the model's recipe held out the molecules "
            f"{list(names)} and the last {fraction:g} of the frames of others, and the data are of "
            f"{sorted({molecule.name for molecule in data})}"
        )
    return found


def _split_in_time(data: Sequence[Any], fraction: float) -> tuple[list[Any], list[Any]]:
    """Split off the last block of frames of every molecule that has enough of them."""
    if not all(isinstance(item, BiomolecularTrajectory) for item in data):
        return split_by_block(data, fraction)
    first = [len(t) - math.floor(fraction * len(t)) for t in data]
    pairs = list(zip(data, first, strict=True))
    held = [replace(t, positions=t.positions[n:]) for t, n in pairs if n < len(t)]
    if not held:
        raise ConfigError(
            f"held_out_fraction={fraction} holds out no frame of trajectories of at most "
            f"{max(map(len, data), default=0)}; raise it or set it to 0"
        )
    return [replace(t, positions=t.positions[:n]) for t, n in pairs], held
