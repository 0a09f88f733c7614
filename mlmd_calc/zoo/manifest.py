"""The list of shipped models, with the checksum each file must have."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from mlmd_calc.errors import ConfigError, ModelFileError
from mlmd_calc.zoo.model_file import file_checksum, read_model

SHIPPED_WEIGHTS: Final = Path(__file__).with_name("weights")
"""Folder of the models in the package."""

MANIFEST: Final = "manifest.json"


@dataclass(frozen=True)
class ShippedModel:
    """Entry of the manifest.

    Attributes
    ----------
    name
        What users call the model.
    file
        File name in the folder of the manifest.
    sha256
        Checksum of the file.
    default
        Whether this is the model used when none is named.
    """

    name: str
    file: str
    sha256: str
    default: bool


def read_manifest(folder: Path) -> dict[str, ShippedModel]:
    """Read the manifest of a folder of models, by name; empty if there is none.

    Raises
    ------
    ModelFileError
        If the manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        entries = [ShippedModel(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise ModelFileError(f"{path} is damaged ({error}); reinstall mlmd") from error
    return {entry.name: entry for entry in entries}


def verified_file(folder: Path, entry: ShippedModel) -> Path:
    """Path of a shipped model whose checksum has been compared with the manifest.

    Raises
    ------
    ModelFileError
        If the file is missing or has another checksum.
    """
    path = folder / entry.file
    if not path.is_file():
        raise ModelFileError(f"the file {path} of model {entry.name!r} is missing; reinstall mlmd")
    actual = file_checksum(path)
    if actual != entry.sha256:
        raise ModelFileError(
            f"{path} is damaged or was changed: it has sha256 {actual}, but the shipped model "
            f"{entry.name!r} has {entry.sha256}. Reinstall mlmd"
        )
    return path


def write_manifest(folder: Path, default: str) -> list[ShippedModel]:
    """Write the manifest of all ``*.safetensors`` files in a folder, named by their cards.

    Every file is read, and so verified, first.

    Parameters
    ----------
    folder
        Folder of model files.
    default
        Name of the model to use when none is named.

    Returns
    -------
    list of ShippedModel
        What was written.

    Raises
    ------
    ConfigError
        If two models have the same name or none has the name of the default.
    ModelFileError
        If a file is damaged.
    """
    entries: dict[str, ShippedModel] = {}
    for path in sorted(folder.glob("*.safetensors")):
        card = read_model(path).card
        if card.name in entries:
            raise ConfigError(
                f"{path.name} and {entries[card.name].file} are both named {card.name!r}"
            )
        entries[card.name] = ShippedModel(card.name, path.name, card.sha256, card.name == default)
    if default not in entries:
        raise ConfigError(f"default={default!r} is not among the models {sorted(entries)}")
    text = json.dumps([asdict(entry) for entry in entries.values()], indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return list(entries.values())
