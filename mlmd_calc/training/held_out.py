"""Which of the data a recipe trains on, and which it holds out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from mlmd_calc.data import MoleculeFrames, split_by_block, split_by_molecule
from mlmd_calc.data.biomolecules.trajectories import BiomolecularTrajectory
from mlmd_calc.errors import ConfigError
from mlmd_calc.training.recipe import Recipe


def spare_molecules(
    frames: Sequence[MoleculeFrames] | Sequence[BiomolecularTrajectory], recipe: Recipe
) -> Recipe:
    """Reduce the held-out molecules of a recipe to those that the data have and can spare.

    The recipes of the package name test molecules of one collection. Other data need not have them,
    and may have little else: those are trained on that would leave an element untrained.
    """
    held_out = set(recipe.held_out_molecules)
    trained = set[int]().union(*(elements_of(m) for m in frames if m.name not in held_out))
    spared = {m.name for m in frames if elements_of(m) <= trained}
    names = tuple(name for name in recipe.held_out_molecules if name in spared)
    return replace(recipe, held_out_molecules=names)


def elements_of(molecule: MoleculeFrames | BiomolecularTrajectory) -> set[int]:
    """Atomic numbers in a molecule."""
    if isinstance(molecule, BiomolecularTrajectory):
        return {1 + z for z in molecule.system.features.ref_element.tolist()}
    return set(molecule.numbers.tolist())


def split(
    frames: Sequence[MoleculeFrames], recipe: Recipe
) -> tuple[list[MoleculeFrames], dict[str, list[MoleculeFrames]]]:
    """Split frames into training data and validation sets as the recipe says.

    Returns
    -------
    tuple
        Training frames, and by name "molecules" (molecules never trained on) and "frames" (held-out
        time blocks of training molecules) as far as they are not empty.

    Raises
    ------
    ConfigError
        If the recipe holds out a molecule that there is not, or everything, or a fraction where
        no frame can be spared.
    """
    _check_names(frames, recipe)
    validation: dict[str, list[MoleculeFrames]] = {}
    train = list(frames)
    if recipe.held_out_molecules:
        train, validation["molecules"] = split_by_molecule(train, list(recipe.held_out_molecules))
    if recipe.held_out_fraction:
        train, validation["frames"] = split_by_block(train, recipe.held_out_fraction)
    return train, validation


def split_trajectories(
    trajectories: Sequence[BiomolecularTrajectory], recipe: Recipe
) -> tuple[list[BiomolecularTrajectory], dict[str, list[BiomolecularTrajectory]]]:
    """Split trajectories of biomolecules into training data and validation sets.

    All replicas of a name are on one side. See :func:`split` for the result and the errors.
    """
    _check_names(trajectories, recipe)
    held_out = set(recipe.held_out_molecules)
    validation: dict[str, list[BiomolecularTrajectory]] = {}
    train = [trajectory for trajectory in trajectories if trajectory.name not in held_out]
    if not train:
        raise ConfigError(
            f"held_out_molecules={sorted(held_out)} holds out everything; leave at least one "
            "molecule to train on"
        )
    if held_out:
        validation["molecules"] = [t for t in trajectories if t.name in held_out]
    if recipe.held_out_fraction:
        first = [len(t) - math.floor(recipe.held_out_fraction * len(t)) for t in train]
        validation["frames"] = [
            replace(t, positions=t.positions[n:])
            for t, n in zip(train, first, strict=True)
            if n < len(t)
        ]
        if not validation["frames"]:
            raise ConfigError(
                f"held_out_fraction={recipe.held_out_fraction} holds out no frame of trajectories "
                f"of at most {max(map(len, train))}; raise it or set it to 0"
            )
        train = [replace(t, positions=t.positions[:n]) for t, n in zip(train, first, strict=True)]
    return train, validation


def _check_names(
    frames: Sequence[MoleculeFrames] | Sequence[BiomolecularTrajectory], recipe: Recipe
) -> None:
    names = sorted({molecule.name for molecule in frames})
    if unknown := sorted(set(recipe.held_out_molecules) - set(names)):
        raise ConfigError(
            f"held_out_molecules of the recipe names {unknown}, which the data do not have; they "
            f"have {names}. Hold out some of these, or none (--set held_out_molecules=[])"
        )
