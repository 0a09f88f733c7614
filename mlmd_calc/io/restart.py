"""Restart files: nested dictionaries of numbers, texts and arrays, in one file for every engine.

A file is a NumPy ``.npz`` of a JSON header (format, version, checksum), a JSON text, and the arrays
that the text refers to. It replaces an older one atomically.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.errors import ModelFileError
from mlmd_calc.io.files import replacing

FORMAT: Final = "mlmd-restart"
VERSION: Final = 1

_REFERENCE: Final = "array:"
"""Marks a text that stands for an array; other texts that begin so are refused."""


def write_restart(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a restart file, replacing an older one in one go.

    Parameters
    ----------
    path
        File to write.
    content
        Dictionaries with text keys, lists, arrays, numbers, texts, None.
    """
    arrays: dict[str, NDArray[Any]] = {}
    text = _bytes(json.dumps(_pack(content, arrays)))
    header = {"format": FORMAT, "version": VERSION, "sha256": _digest(text, arrays)}
    with replacing(Path(path)) as temporary, temporary.open("wb") as file:
        np.savez(file, header=_bytes(json.dumps(header)), content=text, **_as_any(arrays))


def read_restart(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a restart file.

    Raises
    ------
    ModelFileError
        If it is missing, damaged, of another kind, or of another version.
    """
    try:
        # NumPy leaves the file open when it is damaged.
        with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            _check_header(path, header)
            text = file["content"]
            arrays = {name: file[name] for name in file.files if name.startswith(_REFERENCE)}
    except FileNotFoundError as error:
        raise ModelFileError(f"{path} does not exist; there is nothing to continue from") from error
    except ModelFileError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ModelFileError(
            f"{path} is not a readable restart file: {error!r}; use an older one or start anew"
        ) from error
    if header["sha256"] != _digest(text, arrays):
        raise ModelFileError(f"{path} is damaged: its checksum is wrong; use an older one")
    content: dict[str, Any] = _unpack(json.loads(text.tobytes()), arrays)
    return content


def check_identity(
    path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], *, remedy: str
) -> None:
    """Refuse a checkpoint of another run.

    Parameters
    ----------
    path
        The checkpoint.
    stored, wanted
        What it is of, and what it should be of; both JSON-able.
    remedy
        What to do otherwise.

    Raises
    ------
    ModelFileError
        If they differ; the first difference is named.
    """
    if stored == wanted:
        return
    for name in sorted({*stored, *wanted}):
        old, new = stored.get(name), wanted.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            check_identity(path, old, new, remedy=remedy)
        elif old != new:
            raise ModelFileError(
                f"{path} belongs to another run: {name} is {_short(old)} there and {_short(new)} "
                f"here; {remedy}"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_header(path: str | os.PathLike[str], header: Mapping[str, Any]) -> None:
    if header["format"] != FORMAT:
        raise ModelFileError(f"{path} has format {header['format']!r}; expected {FORMAT!r}")
    if header["version"] != VERSION:
        raise ModelFileError(
            f"{path} is a restart file of version {header['version']}, but this program reads "
            f"version {VERSION}; continue with the program that wrote it"
        )


def _digest(text: NDArray[np.uint8], arrays: Mapping[str, NDArray[Any]]) -> str:
    total = hashlib.sha256(text.tobytes())
    for name in sorted(arrays):
        array = arrays[name]
        total.update(f"{name} {array.dtype.str} {array.shape}".encode() + array.tobytes())
    return total.hexdigest()


def _bytes(text: str) -> NDArray[np.uint8]:
    # A text array would take four bytes per character.
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _as_any(arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    return dict(arrays)


def _pack(value: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    """Replace arrays by references."""
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise TypeError("an array of Python objects cannot be stored; convert it to numbers")
        name = f"{_REFERENCE}{len(arrays)}"
        arrays[name] = value
        return name
    if isinstance(value, Mapping):
        return {str(key): _pack(item, arrays) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_pack(item, arrays) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, str) and value.startswith(_REFERENCE):
        raise ValueError(f"text {value!r} cannot be stored")
    return value


def _unpack(value: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Put arrays back in the place of their references."""
    if isinstance(value, str) and value.startswith(_REFERENCE):
        return arrays[value]
    if isinstance(value, dict):
        return {key: _unpack(item, arrays) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpack(item, arrays) for item in value]
    return value
