"""Checkpoints of the ATOM authors' code.

A run of it leaves its configuration, a ``.toml`` file, in a folder, and checkpoints in ``run_1``,
``run_2``, ... below: ``best_val_model.pth`` and ``last_model.pth``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlmd_calc.errors import ConfigError, ModelFileError
from mlmd_calc.io import toml
from mlmd_calc.models.atom import ATOM, official
from mlmd_calc.zoo.card import ModelCard
from mlmd_calc.zoo.checkpoint import in_one_type, plain_names, read_checkpoint
from mlmd_calc.zoo.model_file import ModelFile, build_network, content_checksum


def read_atom_checkpoint(path: Path) -> ModelFile:
    """Read an operator that was trained with the ATOM authors' code.

    Parameters
    ----------
    path
        The checkpoint; the configuration of its run is the one ``.toml`` file beside it or in the
        folder above.

    Raises
    ------
    ModelFileError
        If a file is missing or damaged, does not hold an ATOM network, or holds one of a kind that
        is not supported.
    """
    file = _configuration_file(path)
    try:
        configuration = toml.loads(file.read_text(encoding="utf-8"))
        arguments = official.constructor_arguments(configuration)
        config, tensors = official.convert(
            arguments, in_one_type(plain_names(path, read_checkpoint(path)))
        )
        network = build_network(ATOM, config, tensors)
    except (ConfigError, ModelFileError, ValueError, TypeError, KeyError) as error:
        raise ModelFileError(f"{path} with {file}: {error}") from error
    card = ModelCard(
        name=file.stem,
        kind="atom-operator",
        description=f"Checkpoint {path.stem} of the ATOM authors' code. Positions of heavy atoms, "
        f"from velocities per frame.{_training(configuration)}",
        units="positions Å, velocities Å per frame of the data",
        citation="ATOM, arXiv 2510.05482",
        parameters=sum(p.numel() for p in network.parameters()),
        sha256=content_checksum(json.dumps(config.to_dict(), sort_keys=True), tensors),
    )
    return ModelFile(network=network, atomic_energies={}, card=card)


def _configuration_file(path: Path) -> Path:
    for folder in (path.parent, path.parent.parent):
        found = sorted(folder.glob("*.toml"))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(file.name for file in found)
            raise ModelFileError(
                f"{folder} has several configurations ({names}); leave only that of {path.name}"
            )
    raise ModelFileError(
        f"there is no .toml file beside {path} or in the folder above; a checkpoint of the ATOM "
        "authors' code needs the configuration of its run"
    )


def _training(configuration: dict[str, Any]) -> str:
    """Say what a run was trained on, as far as its configuration tells."""
    data = configuration["dataloader"]
    said = [str(data[name]) for name in ("dataset", "molecule_type") if data.get(name)]
    horizon = f", horizon {data['delta_T']} frames" if data.get("delta_T") else ""
    return f" Trained on {' '.join(said)}{horizon}." if said else ""
