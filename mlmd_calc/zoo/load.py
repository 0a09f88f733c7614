"""Find and load models by name, file, run directory or Hugging Face repository."""

from __future__ import annotations

import dataclasses
import difflib
import os
from pathlib import Path
from typing import Any, Final, TypeVar

import torch

from mlmd_calc.errors import ConfigError, ModelFileError
from mlmd_calc.options import one_of, shown
from mlmd_calc.zoo import manifest
from mlmd_calc.zoo.atom_checkpoint import read_atom_checkpoint
from mlmd_calc.zoo.card import ModelCard
from mlmd_calc.zoo.hub import HUB_PREFIX, fetch_run_directory
from mlmd_calc.zoo.kinds import KINDS, ATMOSModel, ATOMModel, LoadedModel, Model, OperatorModel
from mlmd_calc.zoo.model_file import ModelFile, read_card, read_model
from mlmd_calc.zoo.run_directory import read_run_directory
from mlmd_calc.zoo.training_run import is_training_run, read_training_run

M = TypeVar("M", bound=LoadedModel[Any])

WEIGHTS_DTYPE: Final = {
    "float64": torch.float64,
    "float32": torch.float32,
    "mixed": torch.float32,
}
"""Type of the weights for each precision of :class:`mlmd_calc.Potential`."""


def list_models() -> list[ModelCard]:
    """Cards of the shipped models, the default first."""
    entries = manifest.read_manifest(manifest.SHIPPED_WEIGHTS).values()
    return [
        dataclasses.replace(
            read_card(manifest.SHIPPED_WEIGHTS / entry.file), name=entry.name, sha256=entry.sha256
        )
        for entry in sorted(entries, key=lambda entry: (not entry.default, entry.name))
    ]


def load_model(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    dtype: str = "float64",
) -> Model:
    """Load a force field.

    Parameters
    ----------
    name_or_path
        One of

        * None: the default shipped model;
        * the name of a shipped model (see :func:`list_models`); write ``./name`` for a file or
          folder of the same name;
        * a ``.safetensors`` file written by this package;
        * the folder of `mlmd train` or `mlmd finetune`, whose last checkpoint is taken while the
          run is not finished;
        * a run directory of the MD-ET authors' code (see :func:`read_run_directory`);
        * ``hf://owner/repo`` or ``hf://owner/repo/variant``, a run directory on Hugging Face.
    device
        "auto" (CUDA if there is one), or a torch device.
    dtype
        "float64", "float32" or "mixed" (weights in single precision).

    Raises
    ------
    ConfigError
        If there is no such model, or an option is wrong.
    ModelFileError
        If the model is damaged or cannot be read.

    Examples
    --------
    >>> from mlmd_calc import load_model
    >>> print(load_model().card)  # doctest: +SKIP
    """
    return _of(Model, load_any_model(name_or_path, device=device, dtype=dtype))


def load_atom(
    name_or_path: str | os.PathLike[str], *, device: str = "auto", dtype: str = "float32"
) -> ATOMModel:
    """Load an ATOM integrator; see :func:`load_model` for arguments and errors."""
    return _of(ATOMModel, load_any_model(name_or_path, device=device, dtype=dtype))


def load_operator(
    name_or_path: str | os.PathLike[str], *, device: str = "auto", dtype: str = "float32"
) -> OperatorModel:
    """Load a published ATOM operator; see :func:`load_any_model` for arguments and errors."""
    return _of(OperatorModel, load_any_model(name_or_path, device=device, dtype=dtype))


def load_atmos(
    name_or_path: str | os.PathLike[str], *, device: str = "auto", dtype: str = "float32"
) -> ATMOSModel:
    """Load an ATMOS network; see :func:`load_model` for arguments and errors."""
    return _of(ATMOSModel, load_any_model(name_or_path, device=device, dtype=dtype))


def _of(wanted: type[M], model: LoadedModel[Any]) -> M:
    """Refuse a model of another kind than the wanted one."""
    if isinstance(model, wanted):
        return model
    needed = next(kind.title for kind in KINDS.values() if kind.model is wanted)
    kind = KINDS[model.card.kind]
    raise ConfigError(
        f"model {model.source!r} is {kind.title}, but {needed} is needed here; name one, or load "
        f"this one with mlmd_calc.{kind.loader}"
    )


def load_any_model(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    dtype: str = "float64",
) -> LoadedModel[Any]:
    """Load a model of any kind; see :func:`load_model` for arguments and errors.

    Beside what that takes, it takes checkpoints of the ATOM authors' code (see
    :func:`~.atom_checkpoint.read_atom_checkpoint`).
    """
    one_of("dtype", dtype, WEIGHTS_DTYPE)
    torch_device = resolve_device(device)
    source, content = _read(name_or_path)
    network = content.network.to(device=torch_device, dtype=WEIGHTS_DTYPE[dtype])
    return KINDS[content.card.kind].model(
        card=content.card,
        source=source,
        sha256=content.card.sha256,
        network=network,
        atomic_energies=content.atomic_energies,
    )


def resolve_device(name: str) -> torch.device:
    """Torch device of a name; "auto" is CUDA if there is one, else the CPU.

    Raises
    ------
    ConfigError
        If there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"device={name!r} is no device of torch; choose auto, cpu, cuda or, of several, cuda:1"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name!r}, but torch finds no CUDA device; use 'auto' or 'cpu'")
    return device


def _read(name_or_path: str | os.PathLike[str] | None) -> tuple[str, ModelFile]:
    shipped = manifest.read_manifest(manifest.SHIPPED_WEIGHTS)
    if name_or_path is None:
        name_or_path = next((entry.name for entry in shipped.values() if entry.default), None)
        if name_or_path is None:
            raise ConfigError(
                "no model is shipped with this installation of mlmd; give a model file, a run "
                "directory or hf://owner/repo"
            )
    if not isinstance(name_or_path, str | os.PathLike) or not str(name_or_path):
        raise ConfigError(
            f"{shown(name_or_path)} is not a model; give the name of a shipped one (mlmd models), "
            "a file or a folder"
        )
    if isinstance(name_or_path, str) and name_or_path.startswith(HUB_PREFIX):
        content = read_run_directory(fetch_run_directory(name_or_path))
        card = dataclasses.replace(content.card, name=name_or_path.removeprefix(HUB_PREFIX))
        return name_or_path, dataclasses.replace(content, card=card)
    if isinstance(name_or_path, str) and name_or_path in shipped:
        entry = shipped[name_or_path]
        content = read_model(manifest.verified_file(manifest.SHIPPED_WEIGHTS, entry))
        card = dataclasses.replace(content.card, name=entry.name)
        return entry.name, dataclasses.replace(content, card=card)
    path = Path(name_or_path).expanduser().absolute()
    if path.is_dir():
        is_ours = is_training_run(path)
        return str(path), read_training_run(path) if is_ours else read_run_directory(path)
    if path.is_file():
        return str(path), _read_file(path)
    named_by_path = isinstance(name_or_path, os.PathLike) or os.sep in name_or_path
    if named_by_path or path.suffix == ".safetensors":
        raise ConfigError(f"there is no file or folder {path}")
    raise ConfigError(_unknown_name(str(name_or_path), list(shipped)))


def _read_file(path: Path) -> ModelFile:
    if path.suffix == ".safetensors":
        return read_model(path)
    if path.suffix == ".pth" and path.parent.name != "ckpts":
        return read_atom_checkpoint(path)
    raise ModelFileError(
        f"{path} is not a .safetensors file; for a checkpoint give the folder of the run: the one "
        "with last.ckpt, or with .hydra and ckpts for the MD-ET authors' code"
    )


def _unknown_name(name: str, shipped: list[str]) -> str:
    if not shipped:
        return f"there is no model {name!r}: this installation of mlmd ships none"
    close = difflib.get_close_matches(name, shipped, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"there is no model {name!r}; shipped are {', '.join(shipped)}.{hint}"
