"""One function that reads labelled frames from every supported file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np

from mlmd_calc.data.ase_files import (
    ASE_SUFFIXES,
    ReadOptions,
    VelocityUnit,
    is_ase_file,
    read_ase_file,
)
from mlmd_calc.data.frames import READ_IN, MoleculeFrames
from mlmd_calc.data.hdf5_files import read_hdf5
from mlmd_calc.data.npz import read_npz
from mlmd_calc.data.plausibility import check_told, check_units
from mlmd_calc.electrons import check_parity
from mlmd_calc.errors import InputError, ModelFileError
from mlmd_calc.io.files import refuse_huge
from mlmd_calc.io.npz import data_files

_HDF5_SUFFIXES: Final = (".h5", ".hdf5")

_SUFFIXES: Final = (
    ".npz",
    *_HDF5_SUFFIXES,
    *(suffix for suffix in ASE_SUFFIXES if suffix != ".json"),
)
"""Of files that are taken from a directory, where other JSON files may lie about."""


def read_dataset(
    path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    velocity_unit: VelocityUnit | None = None,
    energy_key: str | None = None,
    forces_key: str | None = None,
    frame_spacing_fs: float | None = None,
) -> list[MoleculeFrames]:
    """Read labelled molecular frames from files or directories of files.

    Recognised are our label and trajectory npz; MD17, rMD17, MD22 and TG80 npz; the HDF5 files of
    SPICE, QM7-X, ANI-1x, ANI-2x and Transition1x (all converted to eV and Å); extxyz (also
    compressed, .gz; xxMD is of this kind), ASE's trajectories and databases. The layout is told
    from the content, the kind of file from its suffix (.npz, .h5, .hdf5, .extxyz, .xyz, .traj, .db,
    and .json where a file is named); other files in a directory are passed over.

    `mlmd_calc.data.npz`, `mlmd_calc.data.hdf5_files` and `mlmd_calc.data.ase_files` say what is
    taken from the files, and `mlmd_calc.data.plausibility` which labels are refused because their
    unit must be another one.

    Parameters
    ----------
    path
        A file, a directory, or several of them.
    velocity_unit
        Unit of a ``velocities`` column in extxyz: ``"angstrom/fs"`` or ``"ase"`` (Å per ASE time
        unit). With None such a column is left out with a warning.
    energy_key, forces_key
        Names of the energies (eV) and of the column of forces (eV/Å) in files ASE reads; None:
        ``energy`` and ``forces``.
    frame_spacing_fs
        Time between frames in fs, for trajectories that do not say it: those ASE reads, and npz
        of MD17, rMD17, MD22 and TG80. Where they have no velocities either, these are taken from
        the positions; see `mlmd_calc.data.differences`.

    Returns
    -------
    list of MoleculeFrames
        In the order of the paths, directories sorted by file name. A molecule found in several
        files is listed several times, under the same name.

    Raises
    ------
    ConfigError
        If an option has a value that is not allowed.
    ModelFileError
        If a file does not exist, is damaged, or has an unknown layout (the keys found are named).
    InputError
        If the content of a file contradicts itself (shapes, electron count, cell), is not finite,
        not in our units, or has its labels under other names, or nothing was found.
    """
    options = ReadOptions(velocity_unit, energy_key, forces_key, frame_spacing_fs)
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not paths:
        raise InputError("the list of data files is empty; name at least one file or directory")
    molecules = [
        molecule
        for entry in paths
        for file in _files(Path(entry))
        for molecule in _read_file(file, options)
    ]
    for molecule in molecules:
        _check(molecule)
    return molecules


def _files(path: Path) -> list[Path]:
    def is_data(file: Path) -> bool:
        return _is_data(file) and file.suffix != ".json"

    return data_files(path, is_data, f"{', '.join(_SUFFIXES)}, .extxyz.gz or .xyz.gz")


def _is_data(path: Path) -> bool:
    return path.suffix.lower() in (".npz", *_HDF5_SUFFIXES) or is_ase_file(path)


def _read_file(path: Path, options: ReadOptions) -> list[MoleculeFrames]:
    if not _is_data(path):
        raise ModelFileError(
            f"{path} ends in {path.suffix!r}; readable are files ending in {', '.join(_SUFFIXES)}, "
            ".json (an ASE database), .extxyz.gz and .xyz.gz"
        )
    if path.suffix.lower() == ".npz":
        return [read_npz(path, options.frame_spacing_fs)]
    if path.suffix.lower() in _HDF5_SUFFIXES:
        return read_hdf5(path)
    refuse_huge(path)
    return read_ase_file(path, options)


def _check(molecule: MoleculeFrames) -> None:
    """Refuse what no model should be trained on."""
    numbers = molecule.numbers
    if len(molecule) == 0:
        raise InputError(f"molecule {molecule.name!r} has no frames; leave its file out")
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
    try:
        check_units(molecule)
    except InputError as error:
        if unit := molecule.metadata.get(READ_IN):
            raise InputError(
                f"{error} (read in {unit}; a file of this layout that states other units is read "
                "in these: e_unit='eV' and r_unit='Ang' in npz, the attribute units of arrays in "
                "HDF5)"
            ) from error
        raise
    check_told(molecule)
    check_parity(f"molecule {molecule.name!r}: ", int(numbers.sum()), molecule.state)
