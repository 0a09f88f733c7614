"""One function that reads labelled frames from every supported file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mlmd_calc.data.ase_files import VELOCITY_UNITS, VelocityUnit, read_ase_db, read_extxyz
from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.data.npz import read_npz
from mlmd_calc.data.spin import check_spin
from mlmd_calc.errors import ConfigError, InputError, ModelFileError

_SUFFIXES = (".npz", ".extxyz", ".xyz", ".db")


def read_dataset(
    path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    velocity_unit: VelocityUnit | None = None,
) -> list[MoleculeFrames]:
    """Read labelled molecular frames from files or directories of files.

    Recognised are our label and trajectory npz, MD17, rMD17 and MD22 npz (converted from kcal/mol
    to eV), extxyz and ASE databases. The layout is told from the content, the kind of file from
    its suffix (.npz, .extxyz, .xyz, .db); other files in a directory are passed over.

    `mlmd_calc.data.ase_files` says what is taken from the latter two.

    Parameters
    ----------
    path
        A file, a directory, or several of them.
    velocity_unit
        Unit of a ``velocities`` column in extxyz: ``"angstrom/fs"`` or ``"ase"`` (Å per ASE time
        unit). With None such a column is left out with a warning.

    Returns
    -------
    list of MoleculeFrames
        In the order of the paths, directories sorted by file name. A molecule found in several
        files is listed several times, under the same name.

    Raises
    ------
    ConfigError
        If `velocity_unit` is neither of the two nor None.
    ModelFileError
        If a file does not exist, is damaged, or has an unknown layout (the keys found are named).
    InputError
        If the content of a file contradicts itself (shapes, electron count, cell) or is not
        finite, or nothing was found.
    """
    if velocity_unit is not None and velocity_unit not in VELOCITY_UNITS:
        raise ConfigError(
            f"velocity_unit is {velocity_unit!r}; allowed are {', '.join(VELOCITY_UNITS)} and None"
        )
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not paths:
        raise InputError("the list of data files is empty; name at least one file or directory")
    molecules = [
        molecule
        for entry in paths
        for file in _files(Path(entry))
        for molecule in _read_file(file, velocity_unit)
    ]
    for molecule in molecules:
        _check(molecule)
    return molecules


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise ModelFileError(f"{path} does not exist")
    if path.is_file():
        return [path]
    files = sorted(
        file
        for file in path.iterdir()
        if file.suffix in _SUFFIXES and not file.name.startswith(".")
    )
    if not files:
        raise InputError(f"the directory {path} holds no file ending in {', '.join(_SUFFIXES)}")
    return files


def _read_file(path: Path, velocity_unit: VelocityUnit | None) -> list[MoleculeFrames]:
    if path.suffix == ".npz":
        return [read_npz(path)]
    if path.suffix in (".extxyz", ".xyz"):
        return read_extxyz(path, velocity_unit)
    if path.suffix == ".db":
        return read_ase_db(path, velocity_unit)
    raise ModelFileError(
        f"{path} ends in {path.suffix!r}; readable are files ending in {', '.join(_SUFFIXES)}"
    )


def _check(molecule: MoleculeFrames) -> None:
    """Refuse what no model should be trained on."""
    numbers = molecule.numbers
    if numbers.min() < 1 or numbers.max() > 118:
        raise InputError(
            f"molecule {molecule.name!r}: atomic numbers {sorted(set(numbers.tolist()))} are not "
            "all between 1 and 118; remove dummy atoms and padding"
        )
    for key in ("positions", "forces", "energies", "velocities"):
        values = getattr(molecule, key)
        if values is None or np.isfinite(values).all():
            continue
        per_frame = np.isfinite(values).reshape(len(molecule), -1).all(axis=1)
        raise InputError(
            f"molecule {molecule.name!r}: {key} of frame {int(np.argmin(per_frame))} are not "
            "finite; remove the frame"
        )
    check_spin(molecule.name, int(numbers.sum()), molecule.charge, molecule.multiplicity)
