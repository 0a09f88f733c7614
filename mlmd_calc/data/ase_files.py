"""Frames from the files ASE reads: extxyz and ASE databases.

Energies and forces are ASE's results of these names. ``charge``, ``multiplicity`` and ``name`` come
from ``info`` (a database's key-value pairs); where absent they are 0, 1, and a name made of file
and formula. Velocities come from ``momenta`` or, if the caller knows its unit, from a column
``velocities``. Frames are grouped into molecules by name, order of the atoms, charge and
multiplicity.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.errors import InputError, ModelFileError

VelocityUnit: TypeAlias = Literal["angstrom/fs", "ase"]

VELOCITY_UNITS: dict[VelocityUnit, float] = {"angstrom/fs": 1.0, "ase": units.FS}
"""Å/fs per unit of velocity."""


def read_extxyz(path: Path, velocity_unit: VelocityUnit | None) -> list[MoleculeFrames]:
    """Read an (ext)xyz file.

    Parameters
    ----------
    path
        The file.
    velocity_unit
        As for `mlmd_calc.data.read_dataset`.

    Raises
    ------
    ModelFileError
        If ASE cannot read the file.
    InputError
        If frames of one molecule carry different properties, or a molecule crosses the boundary
        of its periodic cell.
    """
    import ase.io

    try:
        frames = list(ase.io.iread(path, index=":", format="extxyz"))
    except Exception as error:  # ASE raises whatever its parser stumbles over
        raise ModelFileError(f"{path} cannot be read as extxyz: {error}") from error
    return _group(path, frames, velocity_unit)


def read_ase_db(path: Path, velocity_unit: VelocityUnit | None) -> list[MoleculeFrames]:
    """Read an ASE database.

    Parameters
    ----------
    path
        The file.
    velocity_unit
        As for `mlmd_calc.data.read_dataset`.

    Raises
    ------
    ModelFileError
        If ASE cannot read the file.
    InputError
        As for `read_extxyz`.
    """
    import ase.db

    frames = []
    try:
        for row in ase.db.connect(path).select():
            atoms = row.toatoms()
            # Not the values of key_value_pairs: for "charge" ASE returns the sum of the initial
            # charges there, whatever was written.
            pairs = {key: vars(row)[key] for key in row.key_value_pairs}
            atoms.info = {**row.data, **pairs}
            frames.append(atoms)
    except Exception as error:  # sqlite, JSON and ASE errors alike
        raise ModelFileError(f"{path} cannot be read as an ASE database: {error}") from error
    return _group(path, frames, velocity_unit)


def _group(
    path: Path, frames: list[Atoms], velocity_unit: VelocityUnit | None
) -> list[MoleculeFrames]:
    if not frames:
        raise InputError(f"{path} holds no frames")
    groups: dict[tuple[Any, ...], list[Atoms]] = defaultdict(list)
    for index, atoms in enumerate(frames):
        where = f"{path}, frame {index}"
        _refuse_wrapped(where, atoms)
        charge = _integer(where, atoms.info, "charge", 0)
        _refuse_other_charge(where, atoms, charge)
        multiplicity = _integer(where, atoms.info, "multiplicity", 1)
        name = atoms.info.get("name")
        groups[name, atoms.numbers.tobytes(), charge, multiplicity].append(atoms)
    molecules = []
    for (name, _, charge, multiplicity), members in groups.items():
        if name is None:
            # Isomers and differently ordered copies share the name of their formula, so that a
            # split by name never puts the same molecule on both sides.
            formula = members[0].get_chemical_formula()
            name = path.stem if len(groups) == 1 else f"{path.stem}_{formula}"
        molecules.append(
            MoleculeFrames(
                name=str(name),
                numbers=members[0].numbers.astype(np.int64),
                positions=np.array([atoms.positions for atoms in members]),
                forces=_result(path, members, "forces"),
                energies=_result(path, members, "energy"),
                velocities=_velocities(path, members, velocity_unit),
                charge=charge,
                multiplicity=multiplicity,
                metadata={"source": path.name},
            )
        )
    return molecules


def _integer(where: str, info: dict[str, Any], key: str, default: int) -> int:
    value = info.get(key, default)
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not is_number or not np.isfinite(value) or value != int(value):
        raise InputError(f"{where}: {key} is {value!r}, expected an integer")
    return int(value)


def _refuse_wrapped(where: str, atoms: Atoms) -> None:
    """Refuse a periodic frame whose atoms are closer through the cell than in the file."""
    if not atoms.pbc.any():
        return
    direct = atoms.get_all_distances()
    if not np.allclose(direct, atoms.get_all_distances(mic=True), atol=1e-6):
        raise InputError(
            f"{where}: the cell is periodic and atoms are closer through its boundary than in the "
            "file; make the molecule whole (unwrap it) and save it without a cell"
        )


def _refuse_other_charge(where: str, atoms: Atoms, charge: int) -> None:
    """Refuse a total charge that contradicts the atoms' own charges."""
    total = float(atoms.get_initial_charges().sum())
    if atoms.has("initial_charges") and abs(total - charge) > 0.5:
        raise InputError(
            f"{where}: the initial charges add up to {total:g} but the charge is {charge} (0 where "
            "not given); state the total charge as info['charge']"
        )


def _result(path: Path, members: list[Atoms], key: str) -> NDArray[np.float64] | None:
    values = [None if atoms.calc is None else atoms.calc.results.get(key) for atoms in members]
    return _stack(path, key, values)


def _stack(path: Path, key: str, values: Iterable[Any]) -> NDArray[np.float64] | None:
    values = list(values)
    missing = sum(value is None for value in values)
    if missing == len(values):
        return None
    if missing:
        raise InputError(
            f"{path}: {missing} of {len(values)} frames of one molecule have no {key}; "
            "remove them or label them"
        )
    return np.array(values, dtype=np.float64)


def _velocities(
    path: Path, members: list[Atoms], velocity_unit: VelocityUnit | None
) -> NDArray[np.float64] | None:
    """Velocities in Å/fs from ``momenta`` (always ASE units) or ``velocities`` (unit as stated)."""
    if any("momenta" in atoms.arrays for atoms in members):
        momenta = [atoms.arrays.get("momenta") for atoms in members]
        stacked = _stack(path, "momenta", momenta)
        return None if stacked is None else stacked / members[0].get_masses()[:, None] * units.FS
    stacked = _stack(path, "velocities", [atoms.arrays.get("velocities") for atoms in members])
    if stacked is None:
        return None
    if velocity_unit is None:
        warnings.warn(
            f"{path}: the column 'velocities' is left out because extxyz does not say its unit; "
            "pass velocity_unit='angstrom/fs' or 'ase' (Å per ASE time unit) to read it",
            stacklevel=5,
        )
        return None
    return stacked * VELOCITY_UNITS[velocity_unit]
