"""Checkpoints of a run, and whether a folder holds the run that is to be continued."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from numpy.typing import NDArray

from mlmd_calc.data.biomolecules.trajectories import BiomolecularTrajectory
from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.errors import ConfigError
from mlmd_calc.io.files import replacing
from mlmd_calc.training.recipe import Recipe, TrainingData
from mlmd_calc.zoo import LoadedModel
from mlmd_calc.zoo.training_run import PREVIOUS_CHECKPOINT, has_checkpoint, read_last_checkpoint

RUN_KEY: Final = "run"
"""Entry of a checkpoint that holds :func:`run_identity`."""

MINUTES_KEY: Final = "minutes"
"""Entry that holds how long the training has taken."""

RAW_KEY: Final = "current_model_state"
"""Where Lightning keeps the weights if those of the checkpoint are averaged."""

_BEFORE: Final = {"max_minutes": 0.0}
"""What runs did whose checkpoints are older than a recipe entry."""

_Content: TypeAlias = tuple[str, tuple[NDArray[np.generic] | None, ...]]


def run_identity(
    frames: TrainingData,
    recipe: Recipe,
    start: LoadedModel[Any] | None,
    processes: int,
) -> dict[str, Any]:
    """Describe all that decides the outcome of a run.

    Returns
    -------
    dict
        The recipe without what has no effect on the weights, a checksum of the data, that of the
        starting model, and the number of processes.
    """
    digest = hashlib.sha256()
    for molecule in frames:
        header, columns = (
            _trajectory_content(molecule)
            if isinstance(molecule, BiomolecularTrajectory)
            else _frames_content(molecule)
        )
        digest.update(header.encode())
        for array in columns:
            digest.update(b"" if array is None else array.tobytes())
    return {
        "recipe": {
            name: value
            for name, value in recipe.to_dict().items()
            if name not in recipe.without_effect
        },
        "data": digest.hexdigest(),
        "start": None if start is None else start.sha256,
        "processes": processes,
    }


def _frames_content(molecule: MoleculeFrames) -> _Content:
    header = f"{molecule.name} {molecule.charge} {molecule.multiplicity}\n{molecule.dt_fs}\n"
    columns = (molecule.numbers, molecule.positions, molecule.forces, molecule.energies)
    return header, (*columns, molecule.velocities, molecule.segment)


def _trajectory_content(trajectory: BiomolecularTrajectory) -> _Content:
    features = trajectory.system.features
    columns = (features.restype, features.ref_element, features.ref_charge, features.ref_pos)
    header = f"{trajectory.name} {trajectory.dt_ps}\n"
    return header, (trajectory.positions, *(column.numpy() for column in columns))


def read_checkpoint(folder: Path, identity: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """Read the last checkpoint of a run.

    Parameters
    ----------
    folder
        Folder of the run.
    identity
        :func:`run_identity` of the run that is to be continued.

    Returns
    -------
    tuple or None
        The file and the checkpoint; None if there is none.

    Raises
    ------
    ConfigError
        If the checkpoint belongs to another run; the message names what differs.
    ModelFileError
        If the checkpoint is damaged.
    """
    if not has_checkpoint(folder):
        return None
    path, checkpoint = read_last_checkpoint(folder)
    if differences := _differences(checkpoint.get(RUN_KEY, {}), identity):
        raise ConfigError(
            f"{folder} holds another run: {'; '.join(differences)}. Continue it with its own "
            "settings and data, or choose another folder"
        )
    return path, checkpoint


def _differences(saved: dict[str, Any], identity: dict[str, Any]) -> list[str]:
    old, new = ({**found.get("recipe", {}), **found, "recipe": None} for found in (saved, identity))
    return [
        f"{key} was {old.get(key)}, is {new[key]}"
        for key in new
        if old.get(key, _BEFORE.get(key)) != new[key]
    ]


class CheckpointFiles(TorchCheckpointIO):
    """Checkpoints that are complete at any time; the one before the last is kept.

    (Lightning writes to the folder for temporary files and copies from there over the last
    checkpoint, which is lost if the disk fills up meanwhile.)
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write beside the file, keep the file under another name, and take its place."""
        target = Path(path)
        # torch reports a full disk by a RuntimeError, a file by an OSError that says so.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with replacing(target) as temporary:
            temporary.write_bytes(buffer.getbuffer())
            if target.exists():
                target.replace(target.with_name(PREVIOUS_CHECKPOINT))
