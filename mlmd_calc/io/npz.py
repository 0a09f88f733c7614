"""Archives of NumPy whose keys tell what they hold, and folders of files of data."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.errors import InputError, MLMDError, ModelFileError
from mlmd_calc.io.files import replacing

T = TypeVar("T")

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
Parse: TypeAlias = Callable[[Path, Arrays], T]
Layouts: TypeAlias = Sequence[tuple[frozenset[str], Parse[T]]]
"""Keys that are needed, and what makes something of the arrays; the first that fits is taken."""


def data_files(path: Path, is_data: Callable[[Path], bool], endings: str) -> list[Path]:
    """List a file, or those of a directory that hold data, of which there must be one."""
    if not path.exists():
        raise ModelFileError(f"{path} does not exist")
    if path.is_file():
        return [path]
    found = sorted(
        file for file in path.iterdir() if is_data(file) and not file.name.startswith(".")
    )
    if not found:
        folders = [file.name for file in sorted(path.iterdir()) if file.is_dir()]
        hint = f"; folders in it are not looked into, name them: {', '.join(folders[:3])}"
        raise InputError(
            f"the directory {path} holds no file ending in {endings}{hint if folders else ''}"
        )
    return found


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say of a file that cannot be read, or made sense of, that it is damaged."""
    try:
        yield
    except MLMDError:
        raise
    except (OSError, ValueError, TypeError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise ModelFileError(
            f"{path} cannot be read as npz ({error}); copy or generate it again"
        ) from error


def load_layout(
    path: Path, layouts: Layouts[T], is_optional: Callable[[str], bool], kind: str
) -> tuple[Parse[T], Arrays]:
    """Load what a layout needs, and optional keys; use it within :func:`reading`."""
    # Not np.load(path): it leaves the file open when it is no zip file.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        found = archive.files
        for required, parse in layouts:
            if required <= set(found):
                # The others are not even looked at: they may be objects, which need unpickling.
                wanted = [key for key in found if key in required or is_optional(key)]
                return parse, {key: _array(path, archive, key) for key in wanted}
    if {"header", "content"} <= set(found):
        raise ModelFileError(
            f"{path} is a checkpoint, not a {kind}; name the trajectory of the run, not its folder"
        )
    known = "; ".join(", ".join(sorted(required)) for required, _ in layouts)
    raise ModelFileError(
        f"{path} has the keys {sorted(found)}, which is not a {kind}; one of these sets of keys is "
        f"needed: {known}"
    )


def _array(path: Path, archive: Mapping[str, Any], key: str) -> NDArray[Any]:
    try:
        return np.asarray(archive[key])
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise ModelFileError(
            f"{path}: {key} holds objects of Python, and reading them may run code that the file "
            "brings; write it as numbers or text, or leave it out"
        ) from error


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays into a file ``.npz``, which appears complete or not at all."""
    if path.suffix != ".npz":
        raise InputError(f"{path} must end in .npz")
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
