"""Folders of `mlmd train` and `mlmd finetune`, finished or not, as models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Final

import torch

from mlmd_calc.errors import ModelFileError
from mlmd_calc.zoo.model_file import ModelFile, build_model, read_model

MODEL_NAME: Final = "model.safetensors"
"""The model of a finished run."""

RAW_NAME: Final = "unaveraged.safetensors"
"""The same without averaging, of runs that were limited in time."""

LAST_CHECKPOINT: Final = "last.ckpt"
PREVIOUS_CHECKPOINT: Final = "previous.ckpt"
"""The checkpoint before the last one, which stands in where that is missing or damaged."""

MODEL_KEY: Final = "model"
"""Entry of a checkpoint that holds :func:`~.model_file.describe_model` of its network."""

_PREFIX: Final = "network."


def is_training_run(folder: Path) -> bool:
    """Tell whether a folder holds a model or a checkpoint of `mlmd train`."""
    return (folder / MODEL_NAME).is_file() or has_checkpoint(folder)


def has_checkpoint(folder: Path) -> bool:
    """Tell whether a folder holds a checkpoint of `mlmd train`."""
    return any((folder / name).exists() for name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT))


def read_training_run(folder: Path) -> ModelFile:
    """Read the model of a finished run, or the weights of the last checkpoint of another.

    The weights of a checkpoint are the averaged ones where the recipe averages.

    Raises
    ------
    ModelFileError
        If the files are damaged, or the checkpoint holds no model.
    """
    if (folder / MODEL_NAME).is_file():
        return read_model(folder / MODEL_NAME)
    path, checkpoint = read_last_checkpoint(folder)
    if MODEL_KEY not in checkpoint:
        raise ModelFileError(
            f"{path} does not say which model it belongs to: an earlier version of mlmd wrote it. "
            "Run the command that trains it again to its end"
        )
    tensors = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(_PREFIX)
    }
    model = build_model(path, checkpoint[MODEL_KEY], tensors)
    steps = f"after {checkpoint['global_step']:,} of {model.card.recipe.get('steps', 0):,} steps"
    description = f"{model.card.description} Unfinished: {steps}.".strip()
    card = dataclasses.replace(model.card, description=description)
    return dataclasses.replace(model, card=card)


def read_last_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Read the last checkpoint in a folder that can be read, and say which file it is.

    Raises
    ------
    ModelFileError
        If there is none, or all are damaged.
    """
    problems = []
    for name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT):
        path = folder / name
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            continue
        except Exception as error:  # damaged bytes make the reader fail in almost any way
            problems.append(f"{path} cannot be read ({type(error).__name__}: {error})")
            continue
        if isinstance(checkpoint, dict) and {"state_dict", "global_step"} <= checkpoint.keys():
            return path, checkpoint
        problems.append(f"{path} is not a checkpoint of mlmd train")
    raise ModelFileError(
        "; ".join(problems) + "; delete it to start over"
        if problems
        else f"there is no {LAST_CHECKPOINT} in {folder}"
    )
