"""HDF5 files: how they are opened, and arrays of which shape and type are known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.errors import ModelFileError
from mlmd_calc.optional import require


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """Open a file as ``h5py.File``.

    Raises
    ------
    ModelFileError
        If it does not exist, is no HDF5 file, or is damaged where it is read.
    MissingDependencyError
        If h5py is not installed.
    """
    h5py = require("h5py", extra="hdf5", why="read HDF5 files")
    if not path.is_file():
        raise ModelFileError(f"{path} does not exist")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise ModelFileError(
            f"{path} cannot be read as HDF5 ({error}); download it again"
        ) from error


def read_array(
    group: Any,
    key: str,
    dtype: Any,
    shape: tuple[int | None, ...],
    rows: int | None = None,
) -> NDArray[Any]:
    """Read an array.

    Parameters
    ----------
    group
        ``h5py.Group``.
    key
        Name in the group.
    dtype
        Numpy type to return; str for text of fixed or variable length.
    shape
        Expected shape, with None for any length.
    rows
        Read no more than this many entries along the first axis.

    Raises
    ------
    ModelFileError
        If it is not there or has another shape or type.
    """
    where = f"{group.file.filename}: {group.name}"
    if not hasattr(group, "keys"):
        raise ModelFileError(f"{where} is an array, not a group; the file is of another kind")
    if key not in group:
        raise ModelFileError(
            f"{where} has no {key!r}, only {sorted(group)}; the file is incomplete or of another "
            "kind"
        )
    if not hasattr(group[key], "shape"):
        raise ModelFileError(f"{where}/{key} is a group, not an array; the file is of another kind")
    found = group[key].shape
    if len(found) != len(shape) or any(
        wanted not in (None, length) for wanted, length in zip(shape, found, strict=True)
    ):
        wanted = tuple("any" if length is None else length for length in shape)
        raise ModelFileError(f"{where}/{key} has shape {found}, expected {wanted}")
    try:
        data = group[key].asstr("utf-8") if dtype is str else group[key]
        stored = np.asarray(data[() if rows is None else slice(rows)])
        if stored.dtype.kind == "c":
            raise TypeError("its numbers are complex")
        converted = np.asarray(stored, dtype=dtype)
        if (stored.dtype.kind, converted.dtype.kind) == ("f", "i") and (stored != converted).any():
            raise ValueError("its numbers are not whole")
    except (TypeError, ValueError) as error:
        raise ModelFileError(
            f"{where}/{key} cannot be read as {dtype.__name__}: {error}"
        ) from error
    return converted
