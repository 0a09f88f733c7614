"""The HDF5 layouts of published collections: SPICE, QM7-X, ANI-1x and ANI-2x.

========  =======================================================  ================================
layout    keys of a group                                          units in the file
========  =======================================================  ================================
SPICE     atomic_numbers, conformations, dft_total_energy,         Bohr, Hartree, Hartree/Bohr
          dft_total_gradient (and smiles)
QM7-X     of a group in the group: atNUM, atXYZ, ePBE0+MBD,        Å, eV, eV/Å
          totFOR
ANI-1x    atomic_numbers, coordinates, wb97x_dz.energy,            Å, Hartree, Hartree/Å
          wb97x_dz.forces
ANI-2x    species, coordinates, energies, forces                   Å, Hartree, Hartree/Å
========  =======================================================  ================================

SPICE has charged molecules, whose charge is that of their SMILES; the others are neutral closed
shells. Frames of ANI-1x that were not calculated (NaN) are left out. A collection names what has
one composition, as in ANI, not always one molecule.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.data.biomolecules.hdf5 import open_hdf5, read_array
from mlmd_calc.data.frames import Float64Array, MoleculeFrames
from mlmd_calc.errors import InputError, ModelFileError

_FORMAL_CHARGE: Final = re.compile(r"([+-])(\d+|\1*)(?::\d+)?\]")
"""End of a bracket atom of a SMILES with a charge: +, -, ++, +2, each with or without atom map."""

_ISOMER: Final = re.compile(r"Geom-m\d+-i\d+")
"""What frames of one constitution have in common in the names of QM7-X."""


def read_hdf5(path: Path) -> list[MoleculeFrames]:
    """Read all molecules of a file in any of the layouts of this module.

    Parameters
    ----------
    path
        The file, which is read into memory as a whole.

    Raises
    ------
    ModelFileError
        If the file is damaged or has an unknown layout.
    InputError
        If it has no frames.
    MissingDependencyError
        If h5py is not installed.
    """
    with open_hdf5(path) as file:
        if not len(file):
            raise ModelFileError(f"{path} has no groups; download it again")
        first = next(iter(file.values()))
        inner = next(iter(first.values()), first) if hasattr(first, "values") else first
        for required, parse in _LAYOUTS:
            if any(required <= set(getattr(group, "keys", tuple)()) for group in (first, inner)):
                molecules = list(parse(path, file))
                if not molecules:
                    raise InputError(f"{path} holds no frame that was calculated; leave it out")
                return molecules
        found = sorted(first) if hasattr(first, "keys") else [first.name]
    known = "; ".join(", ".join(sorted(required)) for required, _ in _LAYOUTS)
    raise ModelFileError(
        f"{path}: its first group has {found[:8]}, which is no known layout; one of these sets of "
        f"keys is needed: {known}"
    )


def formal_charge(smiles: str) -> int:
    """Sum of the formal charges of a SMILES."""
    charge = 0
    for sign, size in _FORMAL_CHARGE.findall(smiles):
        count = int(size) if size.isdecimal() else 1 + len(size)
        charge += count if sign == "+" else -count
    return charge


def _spice(path: Path, file: Any) -> Iterator[MoleculeFrames]:
    for name, group in file.items():
        numbers = read_array(group, "atomic_numbers", np.int64, (None,))
        shape = (None, len(numbers), 3)
        gradients = read_array(group, "dft_total_gradient", np.float64, shape)
        energies = read_array(group, "dft_total_energy", np.float64, (None,))
        smiles = _text(group, "smiles") if "smiles" in group else ""
        metadata = {"source": path.name}
        if smiles:
            metadata["smiles"] = smiles
        if "subset" in group:
            metadata["subset"] = _text(group, "subset")
        yield MoleculeFrames(
            name=name,
            numbers=numbers,
            positions=read_array(group, "conformations", np.float64, shape) * units.BOHR,
            forces=-gradients * units.HARTREE / units.BOHR,
            energies=energies * units.HARTREE,
            charge=formal_charge(smiles),
            metadata=metadata,
        )


def _text(group: Any, key: str) -> str:
    """Text of a data set of one string, which may be a scalar or an array of length one."""
    found = np.ravel(group[key][()])
    if len(found) != 1 or not isinstance(found[0], str | bytes):
        raise ModelFileError(f"{group.file.filename}: {group.name}/{key} is no single text")
    item = found[0]
    return item.decode("utf-8") if isinstance(item, bytes) else str(item)


def _qm7x(path: Path, file: Any) -> Iterator[MoleculeFrames]:
    for molecule, conformations in file.items():
        if not hasattr(conformations, "items"):
            raise ModelFileError(f"{path}: /{molecule} is an array, not a group of conformations")
        groups: dict[tuple[str, bytes], list[Any]] = defaultdict(list)
        for name, group in conformations.items():
            numbers = read_array(group, "atNUM", np.int64, (None,))
            found = _ISOMER.match(name)
            groups[found[0] if found else molecule, numbers.tobytes()].append(group)
        for (name, atoms), members in groups.items():
            numbers = np.frombuffer(atoms, np.int64)
            shape = (len(numbers), 3)
            yield MoleculeFrames(
                name=name,
                numbers=numbers,
                positions=np.array([read_array(g, "atXYZ", np.float64, shape) for g in members]),
                forces=np.array([read_array(g, "totFOR", np.float64, shape) for g in members]),
                energies=np.array([_number(g, "ePBE0+MBD") for g in members]),
                metadata={"source": path.name},
            )


def _number(group: Any, key: str) -> float:
    if key not in group or group[key].size != 1 or group[key].dtype.kind not in "iuf":
        raise ModelFileError(f"{group.file.filename}: {group.name} has no number {key!r}")
    return float(np.ravel(group[key][()])[0])


def _ani1x(path: Path, file: Any) -> Iterator[MoleculeFrames]:
    for name, group in file.items():
        numbers = read_array(group, "atomic_numbers", np.int64, (None,))
        shape = (None, len(numbers), 3)
        energies = read_array(group, "wb97x_dz.energy", np.float64, (None,))
        forces = read_array(group, "wb97x_dz.forces", np.float64, shape)
        positions = read_array(group, "coordinates", np.float64, shape)
        if not len(energies) == len(forces) == len(positions):
            raise InputError(
                f"{path}: {name} has {len(positions)} coordinates, {len(energies)} energies and "
                f"{len(forces)} forces; download it again"
            )
        done = np.isfinite(energies) & np.isfinite(forces).all(axis=(1, 2))
        if done.any():
            yield _hartree(path, name, numbers, positions[done], energies[done], forces[done])


def _ani2x(path: Path, file: Any) -> Iterator[MoleculeFrames]:
    for name, group in file.items():
        species = read_array(group, "species", np.int64, (None, None))
        shape = (*species.shape, 3)
        positions = read_array(group, "coordinates", np.float64, shape)
        forces = read_array(group, "forces", np.float64, shape)
        energies = read_array(group, "energies", np.float64, shape[:1])
        kinds, which = np.unique(species, axis=0, return_inverse=True)
        for kind, numbers in enumerate(kinds):
            own = which.ravel() == kind
            full = name if len(kinds) == 1 else f"{name}_{kind}"
            yield _hartree(path, full, numbers, positions[own], energies[own], forces[own])


def _hartree(
    path: Path,
    name: str,
    numbers: NDArray[np.int64],
    positions: Float64Array,
    energies: Float64Array,
    forces: Float64Array,
) -> MoleculeFrames:
    """Frames with positions in Å, energies in Hartree and forces in Hartree/Å."""
    return MoleculeFrames(
        name=name,
        numbers=numbers,
        positions=positions,
        forces=forces * units.HARTREE,
        energies=energies * units.HARTREE,
        metadata={"source": path.name},
    )


_LAYOUTS: Final[
    tuple[tuple[frozenset[str], Callable[[Path, Any], Iterator[MoleculeFrames]]], ...]
] = (
    (
        frozenset({"atomic_numbers", "conformations", "dft_total_energy", "dft_total_gradient"}),
        _spice,
    ),
    (frozenset({"atNUM", "atXYZ", "ePBE0+MBD", "totFOR"}), _qm7x),
    (frozenset({"atomic_numbers", "coordinates", "wb97x_dz.energy", "wb97x_dz.forces"}), _ani1x),
    (frozenset({"species", "coordinates", "energies", "forces"}), _ani2x),
)
