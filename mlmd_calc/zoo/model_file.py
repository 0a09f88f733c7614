"""Our own model file: a ``.safetensors`` file with architecture and model card inside.

The file carries a checksum of everything in it, so that a damaged or edited file is refused whoever
made it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mlmd_calc.errors import ConfigError, ModelFileError
from mlmd_calc.io.files import replacing
from mlmd_calc.options import shown
from mlmd_calc.zoo.card import ModelCard
from mlmd_calc.zoo.kinds import KINDS, kind_of

_DESCRIPTION: Final = "mlmd"
_CHECKSUM: Final = "sha256"
_VERSION: Final = 2
"""Version 1 had no checksum."""

LARGEST_NETWORK: Final = 2**31
"""Weights; the largest published network of any kind has a quarter of it."""

_LARGEST_FILE: Final = 4 * LARGEST_NETWORK + 2**27
"""Bytes: numbers in single precision, and a description of the length the format allows."""

_LARGEST_ENERGY: Final = 1e7
"""eV; the electrons of the heaviest atom have less."""

N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class ModelFile:
    """Content of a model file or run directory.

    Attributes
    ----------
    network
        The network, in the precision of the file, in evaluation mode.
    atomic_energies
        Energy in eV of each element that was subtracted in training; empty if nothing was.
    card
        The model card.
    """

    network: nn.Module
    atomic_energies: dict[int, float]
    card: ModelCard


def save_model(
    path: str | os.PathLike[str],
    network: nn.Module,
    atomic_energies: dict[int, float],
    card: Mapping[str, Any],
) -> None:
    """Write a model file.

    Parameters
    ----------
    path
        File to write, by convention ``*.safetensors``.
    network
        Network to store. Weights are rounded to single precision, in which networks are trained.
    atomic_energies
        Energy in eV of each element that the predicted energy is relative to; empty for networks
        that predict none.
    card
        Entries of the :class:`ModelCard`. The elements default to those with an atomic energy;
        the kind, the number of parameters and the checksum are filled in here and on reading.

    Raises
    ------
    ConfigError
        If the card has a wrong entry or elements without an atomic energy, or an atomic energy is
        no finite number.
    """
    description = describe_model(network, atomic_energies, card)
    tensors = {
        name: tensor.detach().cpu().float().contiguous()
        for name, tensor in network.state_dict().items()
    }
    metadata = {_DESCRIPTION: description, _CHECKSUM: content_checksum(description, tensors)}
    with replacing(Path(path)) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def describe_model(
    network: nn.Module, atomic_energies: dict[int, float], card: Mapping[str, Any]
) -> str:
    """Describe all of a model but its weights, as JSON.

    See :func:`save_model` for arguments and errors.
    """
    _check_energies(atomic_energies)
    complete = _complete(ModelCard.from_dict(card), network, atomic_energies)
    config: Any = network.config
    content = {
        "version": _VERSION,
        "model": complete.kind,
        "config": config.to_dict(),
        "atomic_energies": {str(z): e for z, e in sorted(atomic_energies.items())},
        "card": dataclasses.replace(complete, sha256="").to_dict(),
    }
    return json.dumps(content)


def read_model(path: Path) -> ModelFile:
    """Read a model file.

    Raises
    ------
    ModelFileError
        If the file is missing, damaged, or not one of ours.
    """
    try:
        _check_size(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            content = _description(path, metadata)
            names = file.keys()
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            # Check the declared shapes before memory is allocated for them.
            with _explained(path):
                _check_shapes(*_architecture(content), shapes)
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, RuntimeError, MemoryError) as error:
        raise ModelFileError(
            f"{path} is not a readable model file ({error}); fetch or copy it again"
        ) from error
    _verify(path, metadata, content, tensors)
    return _build(path, content, tensors)


def build_model(path: Path, description: str, tensors: Mapping[str, Tensor]) -> ModelFile:
    """Build a model from what :func:`describe_model` returned, and its weights.

    Raises
    ------
    ModelFileError
        If they do not make a model.
    """
    return _build(path, _description(path, {_DESCRIPTION: description}), tensors)


def _build(path: Path, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ModelFile:
    with _explained(path):
        network: nn.Module = build_network(*_architecture(content), tensors)
        energies = {int(z): e for z, e in content["atomic_energies"].items()}
        _check_energies(energies)
        card = _complete(ModelCard.from_dict(content["card"]), network, energies)
    card = dataclasses.replace(card, name=card.name or path.stem, sha256=file_checksum(path))
    return ModelFile(network=network, atomic_energies=energies, card=card)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say of which file it is that a model cannot be built."""
    try:
        yield
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError(
            f"{path} does not hold a model this version of mlmd can build: {error}"
        ) from error


def _architecture(content: Mapping[str, Any]) -> tuple[type[Any], Any]:
    """Class of the network a description is of, and its options."""
    kind = KINDS[content["model"]]
    return kind.network, kind.config.from_dict(content["config"])


def read_card(path: Path) -> ModelCard:
    """Read the card of a model file without its tensors and without verifying them.

    Raises
    ------
    ModelFileError
        If the file is missing, damaged, or not one of ours.
    """
    try:
        _check_size(path)
        with safe_open(path, framework="pt") as file:
            content = _description(path, file.metadata() or {})
        card = ModelCard.from_dict(content["card"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path} has no readable model card: {error}") from error
    return dataclasses.replace(card, name=card.name or path.stem)


def build_network(
    kind: Callable[[Any], N],
    config: Any,
    tensors: Mapping[str, Tensor],
) -> N:
    """Build a network around tensors, which must be exactly those it needs.

    Raises
    ------
    ModelFileError
        If tensors are missing, superfluous or of the wrong shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    network = _check_shapes(kind, config, shapes)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            what = f"of type {tensor.dtype}" if tensor.isfinite().all() else "not finite"
            raise ModelFileError(f"tensor {name} is {what}; weights must be finite real numbers")
    network.load_state_dict(tensors, assign=True)
    return network.eval()


def _check_shapes(
    kind: Callable[[Any], N], config: Any, shapes: Mapping[str, tuple[int, ...]]
) -> N:
    """Compare names and shapes of tensors with those a network needs; return it without weights."""
    # On the meta device no memory is taken and no initial weights are drawn: global random numbers
    # stay as they are.
    with torch.device("meta"):
        network = kind(config)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    missing = sorted(set(expected) - set(shapes))
    extra = sorted(set(shapes) - set(expected))
    if missing or extra:
        raise ModelFileError(
            f"tensors do not fit: missing {shown(missing)}, not expected {shown(extra)}"
        )
    wrong = [f"{n} {shapes[n]} not {shape}" for n, shape in expected.items() if shapes[n] != shape]
    if wrong:
        raise ModelFileError(f"tensors have the wrong shape: {shown(wrong)}")
    numbers = sum(math.prod(shape) for shape in expected.values())
    if numbers > LARGEST_NETWORK:
        raise ModelFileError(
            f"the network has {numbers:,} weights; at most {LARGEST_NETWORK:,} are read"
        )
    return network


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def content_checksum(description: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a description and of the names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256(description.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_size(path: Path) -> None:
    """Refuse files that no memory has room for before any of it is set aside."""
    size = path.stat().st_size
    if size > _LARGEST_FILE:
        raise ModelFileError(
            f"{path} has {size / 2**30:,.0f} GiB, a model file {_LARGEST_FILE / 2**30:,.0f} at most"
        )


def _description(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    if _DESCRIPTION not in metadata:
        raise ModelFileError(f"{path} is a safetensors file but holds no mlmd model description")
    try:
        content = json.loads(metadata[_DESCRIPTION])
        version, model = int(content["version"]), str(content["model"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ModelFileError(f"the model description in {path} is damaged: {error!r}") from error
    if not 1 <= version <= _VERSION or model not in KINDS:
        raise ModelFileError(
            f"{path} holds model {shown(model)} in format version {version}; this version of "
            f"mlmd reads {', '.join(map(repr, KINDS))} up to version {_VERSION}"
        )
    return dict(content)


def _verify(
    path: Path, metadata: dict[str, str], content: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    if _CHECKSUM not in metadata and content["version"] == 1:
        return
    actual = content_checksum(metadata[_DESCRIPTION], tensors)
    expected = metadata.get(_CHECKSUM, "none")
    if actual != expected:
        raise ModelFileError(
            f"{path} is damaged or was changed: its content has sha256 {actual}, but it says "
            f"{expected}. Fetch or copy it again"
        )


def _check_energies(energies: Mapping[int, Any]) -> None:
    for number, energy in energies.items():
        a_number = isinstance(energy, (int, float)) and not isinstance(energy, bool)
        if not a_number or not abs(energy) < _LARGEST_ENERGY:
            raise ConfigError(
                f"the atomic energy of element {number} is {shown(energy)}; it must be a finite "
                "number in eV"
            )


def _complete(card: ModelCard, network: nn.Module, energies: dict[int, float]) -> ModelCard:
    elements = card.elements
    if elements is None and energies:
        elements = tuple(sorted(energies))
    missing = sorted(set(elements or ()) - set(energies)) if energies else []
    if missing:
        raise ConfigError(f"the card names elements {missing} that have no atomic energy")
    parameters = sum(p.numel() for p in network.parameters())
    kind = kind_of(network).name
    return dataclasses.replace(card, kind=kind, elements=elements, parameters=parameters)
