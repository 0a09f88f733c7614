"""Which of the data a recipe trains on, and which it holds out."""

from __future__ import annotations

from collections.abc import Sequence

from mlmd_calc.data import MoleculeFrames, split_by_block, split_by_molecule
from mlmd_calc.errors import ConfigError
from mlmd_calc.training.recipe import Recipe


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
        If the recipe holds out a molecule that there is not, or everything, or a fraction that is
        less than one frame.
    """
    names = sorted({molecule.name for molecule in frames})
    if unknown := sorted(set(recipe.held_out_molecules) - set(names)):
        raise ConfigError(
            f"held_out_molecules of the recipe names {unknown}, which the data do not have; they "
            f"have {names}. Set held_out_molecules to some of these or to []"
        )
    validation: dict[str, list[MoleculeFrames]] = {}
    train = list(frames)
    if recipe.held_out_molecules:
        train, validation["molecules"] = split_by_molecule(train, list(recipe.held_out_molecules))
    if recipe.held_out_fraction:
        train, validation["frames"] = split_by_block(train, recipe.held_out_fraction)
    return train, validation
