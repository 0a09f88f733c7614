"""Checkpoints of a run, and whether a folder holds the run that is to be continued."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.errors import ConfigError, ModelFileError
from mlmd_calc.training.recipe import Recipe
from mlmd_calc.zoo import ATOMModel, Model

LAST_CHECKPOINT: Final = "last.ckpt"
RUN_KEY: Final = "run"
"""Entry of a checkpoint that holds :func:`run_identity`."""


def run_identity(
    frames: Sequence[MoleculeFrames],
    recipe: Recipe,
    start: Model | ATOMModel | None,
    processes: int,
) -> dict[str, Any]:
    """Describe all that decides the outcome of a run.

    Parameters
    ----------
    frames
        Labelled frames.
    recipe
        Hyper-parameters.
    start
        Model to fine-tune, if any.
    processes
        Number of processes that train together.

    Returns
    -------
    dict
        The recipe, a checksum of the data, that of the starting model, and the number of processes.
    """
    digest = hashlib.sha256()
    for molecule in frames:
        digest.update(f"{molecule.name} {molecule.charge} {molecule.multiplicity}\n".encode())
        digest.update(f"{molecule.dt_fs}\n".encode())
        columns = (molecule.numbers, molecule.positions, molecule.forces, molecule.energies)
        for array in (*columns, molecule.velocities, molecule.segment):
            digest.update(b"" if array is None else array.tobytes())
    return {
        "recipe": recipe.to_dict(),
        "data": digest.hexdigest(),
        "start": None if start is None else start.sha256,
        "processes": processes,
    }


def read_checkpoint(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Read the last checkpoint of a run.

    Parameters
    ----------
    folder
        Folder of the run.
    identity
        :func:`run_identity` of the run that is to be continued.

    Returns
    -------
    dict or None
        The checkpoint; None if there is none.

    Raises
    ------
    ConfigError
        If the checkpoint belongs to another run; the message names what differs.
    ModelFileError
        If the checkpoint is damaged.
    """
    path = folder / LAST_CHECKPOINT
    if not path.exists():
        return None
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        saved = checkpoint.get(RUN_KEY, {})
    except Exception as error:  # damaged bytes make the reader fail in almost any way
        raise ModelFileError(
            f"{path} cannot be read ({type(error).__name__}: {error}); delete it to start over"
        ) from error
    if differences := _differences(saved, identity):
        raise ConfigError(
            f"{folder} holds another run: {'; '.join(differences)}. Continue it with its own "
            "settings and data, or choose another folder"
        )
    return checkpoint


def _differences(saved: dict[str, Any], identity: dict[str, Any]) -> list[str]:
    old, new = ({**found.get("recipe", {}), **found, "recipe": None} for found in (saved, identity))
    return [f"{key} was {old.get(key)}, is {new[key]}" for key in new if old.get(key) != new[key]]
