"""Our own model file: a ``.safetensors`` file with architecture and model card inside."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mlmd_calc.errors import ModelFileError
from mlmd_calc.models.mdet import MDET, MDETConfig

_KEY = "mlmd"
_VERSION = 1


@dataclass(frozen=True)
class ModelFile:
    """Content of a model file.

    Attributes
    ----------
    network
        The network, in single precision, in evaluation mode.
    atomic_energies
        Energy in eV of each element that was subtracted in training.
    card
        The model card.
    """

    network: MDET
    atomic_energies: dict[int, float]
    card: dict[str, Any]


def save_model(
    path: Path, network: MDET, atomic_energies: dict[int, float], card: dict[str, Any]
) -> None:
    """Write a model file.

    Parameters
    ----------
    path
        File to write, by convention ``*.safetensors``.
    network
        Network to store.
    atomic_energies
        Energy in eV of each element that the predicted energy is relative to.
    card
        JSON-able description.
    """
    content = {
        "version": _VERSION,
        "model": "mdet",
        "config": network.config.to_dict(),
        "atomic_energies": {str(z): e for z, e in sorted(atomic_energies.items())},
        "card": card,
    }
    tensors = {
        name: tensor.detach().float().contiguous() for name, tensor in network.state_dict().items()
    }
    temporary = path.with_name(path.name + ".part")
    save_file(tensors, temporary, metadata={_KEY: json.dumps(content)})
    temporary.replace(path)


def read_model(path: Path) -> ModelFile:
    """Read a model file.

    Raises
    ------
    ModelFileError
        If the file is damaged, or not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path} is not a readable model file: {error}") from error
    if _KEY not in metadata:
        raise ModelFileError(f"{path} is a safetensors file but holds no mlmd model description")
    content = json.loads(metadata[_KEY])
    if content["version"] != _VERSION or content["model"] != "mdet":
        raise ModelFileError(
            f"{path} holds model {content['model']!r} in format version {content['version']}; this "
            f"version of mlmd reads 'mdet' in version {_VERSION}"
        )
    network = MDET(MDETConfig.from_dict(content["config"]))
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelFileError(f"the tensors in {path} do not fit its configuration: {error}") from error
    return ModelFile(
        network=network.eval(),
        atomic_energies={int(z): float(e) for z, e in content["atomic_energies"].items()},
        card=content["card"],
    )
