"""Checkpoints that other people's training code wrote, read as data and nothing else."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from mlmd_calc.errors import ModelFileError
from mlmd_calc.options import shown
from mlmd_calc.zoo.model_file import LARGEST_NETWORK

_COMPILED: Final = "_orig_mod"
"""Name that torch.compile puts before the parameters of what it compiles, at any depth."""

_LARGEST_CHECKPOINT: Final = 2**36
"""Bytes; weights in double precision, their averages, and two moments of an optimizer."""


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """Read a file of ``torch.save`` on the CPU.

    Raises
    ------
    ModelFileError
        If the file is damaged, absurdly large, or holds anything but tensors in dictionaries.
    """
    _check_size(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the reader fail in almost any way
        raise ModelFileError(
            f"{path} is damaged or not a checkpoint of tensors ({type(error).__name__}: "
            f"{shown(str(error))}). "
            "Fetch or copy it again"
        ) from error
    if not isinstance(content, Mapping):
        raise ModelFileError(f"{path} holds {type(content).__name__}, not a checkpoint dictionary")
    return content


def in_one_type(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert tensors to double precision if one of them has it, else to single precision."""
    double = any(tensor.dtype == torch.float64 for tensor in tensors.values())
    dtype = torch.float64 if double else torch.float32
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def _check_size(path: Path) -> None:
    """Refuse what would fill the memory: a file, or its content once unpacked."""
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                size = max(size, sum(entry.file_size for entry in archive.infolist()))
        except (OSError, zipfile.BadZipFile) as error:
            raise ModelFileError(f"{path} is damaged ({error}); fetch or copy it again") from error
    if size > _LARGEST_CHECKPOINT:
        raise ModelFileError(
            f"{path} holds {size / 2**30:,.0f} GiB; a checkpoint has at most "
            f"{_LARGEST_CHECKPOINT // 2**30} GiB"
        )


def plain_names(path: Path, state: Any, wrappers: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """State dictionary without the names of wrappers and of compiled modules.

    Parameters
    ----------
    path
        File it comes from.
    state
        What should be a state dictionary.
    wrappers
        Names of modules that training code wraps around the network.

    Raises
    ------
    ModelFileError
        If it is none, or absurdly large.
    """
    if not isinstance(state, Mapping) or not state:
        raise ModelFileError(f"{path} holds no state dictionary")
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ModelFileError(
                f"{path} is not a checkpoint of a network: entry {shown(name)} is "
                f"{type(tensor).__name__}, not a tensor"
            )
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise ModelFileError(
                f"{path} is not a checkpoint of a network: entry {shown(name)} is a tensor of "
                f"{tensor.dtype} ({tensor.layout}); weights are floating-point numbers"
            )
        parts = [part for part in name.split(".") if part != _COMPILED]
        while parts and parts[0] in wrappers:
            parts = parts[1:]
        plain = ".".join(parts)
        if plain in tensors:
            raise ModelFileError(
                f"{path} holds tensor {shown(plain)} twice, under different prefixes"
            )
        tensors[plain] = tensor
    # A tensor may show one stored number any number of times.
    if sum(tensor.numel() for tensor in tensors.values()) > LARGEST_NETWORK:
        raise ModelFileError(f"{path} has more than {LARGEST_NETWORK:,} weights")
    return tensors
