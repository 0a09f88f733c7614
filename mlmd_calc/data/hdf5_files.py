"""The HDF5 layouts of published collections: SPICE, QM7-X, ANI-1x, ANI-2x and Transition1x.

============  =======================================================  ===========================
layout        keys of a group                                          units in the file
============  =======================================================  ===========================
SPICE         atomic_numbers, conformations, dft_total_energy,         Bohr, Hartree, Hartree/Bohr
              dft_total_gradient (and smiles)
QM7-X         of a group in the group: atNUM, atXYZ, ePBE0+MBD,        Å, eV, eV/Å
              totFOR
ANI-1x        atomic_numbers, coordinates, wb97x_dz.energy,            Å, Hartree, Hartree/Å
              wb97x_dz.forces
ANI-2x        species, coordinates, energies, forces                   Å, Hartree, Hartree/Å
Transition1x  of a reaction in a formula in the group: positions,      Å, eV, eV/Å
              atomic_numbers, wB97x_6-31G(d).energy and .forces
============  =======================================================  ===========================

Where an attribute ``units`` of an array states another unit, the numbers are converted from that.

SPICE has charged molecules, whose charge is that of their SMILES; the others are neutral closed
shells, unless numbers or attributes of a group state charge or multiplicity by the rule of
`mlmd_calc.electrons`. Frames of ANI-1x that were not calculated (NaN) are left out, and so are
molecules without frames. The group ``data`` of Transition1x holds the frames of its other groups.
A collection names what has one composition, as in ANI, not always one
molecule.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.data.frames import (
    READ_IN,
    Float64Array,
    MoleculeFrames,
    refuse_half_precision,
    stated_state,
)
from mlmd_calc.data.hdf5 import open_hdf5, read_array
from mlmd_calc.data.stated_units import Quantity, text_of, unit_of
from mlmd_calc.electrons import ElectronicState, is_electronic
from mlmd_calc.errors import InputError, ModelFileError

Groups: TypeAlias = Mapping[str, Any]
"""``h5py.Group`` by name."""

_FORMAL_CHARGE: Final = re.compile(r"([+-])(\d+|\1*)(?::\d+)?\]")
"""End of a bracket atom of a SMILES with a charge: +, -, ++, +2, each with or without atom map."""

_ISOMER: Final = re.compile(r"Geom-m\d+-i\d+")
"""What frames of one constitution have in common in the names of QM7-X."""

_DEEPEST: Final = 3
"""Levels of groups at which a layout has its arrays."""


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
        for name, item in file.items():
            if item is None:
                raise ModelFileError(f"{path}: /{name} is a link that leads nowhere; remove it")
        groups = {name: item for name, item in file.items() if not _says_nothing(item)}
        first = next(iter((groups or file).values()))
        levels = [first]
        while hasattr(levels[-1], "values") and len(levels[-1]) and len(levels) < _DEEPEST:
            levels.append(next(iter(levels[-1].values())))
        for required, parse in _LAYOUTS:
            if any(required <= set(getattr(group, "keys", tuple)()) for group in levels):
                molecules = [molecule for molecule in parse(path, groups) if len(molecule)]
                if not molecules:
                    raise InputError(f"{path} holds no frame that was calculated; leave it out")
                return molecules
        found = sorted(first) if hasattr(first, "keys") else [first.name]
    known = "; ".join(", ".join(sorted(required)) for required, _ in _LAYOUTS)
    raise ModelFileError(
        f"{path}: its first group has {found[:8]}, which is not a known layout; one of these sets "
        f"of keys is needed: {known}"
    )


def _inside(path: Path, group: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name and content of what is in a group; an array has nothing in it."""
    if not hasattr(group, "items"):
        what = "a link that leads nowhere" if group is None else f"{group.name} is an array"
        raise ModelFileError(f"{path}: {what}, not a group; the file is of another kind")
    yield from group.items()


def _says_nothing(item: Any) -> bool:
    """Tell whether something beside the groups of molecules is an empty group or a text."""
    return len(item) == 0 if hasattr(item, "keys") else item.dtype.kind not in "iufc"


def formal_charge(smiles: str) -> int:
    """Sum of the formal charges of a SMILES."""
    charge = 0
    for sign, size in _FORMAL_CHARGE.findall(smiles):
        count = int(size) if size.isdecimal() else 1 + len(size)
        charge += count if sign == "+" else -count
    return charge


def _spice(path: Path, groups: Groups) -> Iterator[MoleculeFrames]:
    for name, group in groups.items():
        numbers = read_array(group, "atomic_numbers", np.int64, (None,))
        shape = (None, len(numbers), 3)
        gradients = _read(group, "dft_total_gradient", shape, "force", units.HARTREE / units.BOHR)
        energies = _read(group, "dft_total_energy", (None,), "energy", units.HARTREE)
        smiles = _text(group, "smiles") if "smiles" in group else ""
        metadata = _origin(path, group["dft_total_gradient"], "Hartree, Hartree/Bohr")
        if smiles:
            metadata["smiles"] = smiles
        if "subset" in group:
            metadata["subset"] = _text(group, "subset")
        state = _state(group, len(energies), formal_charge(smiles) if smiles else None)
        yield MoleculeFrames(
            name=name,
            numbers=numbers,
            positions=_read(group, "conformations", shape, "length", units.BOHR),
            forces=-gradients,
            energies=energies,
            charge=state.charge,
            multiplicity=state.multiplicity,
            metadata=metadata,
        )


def _read(
    group: Any, key: str, shape: tuple[int | None, ...], quantity: Quantity, unit: float
) -> Float64Array:
    """Read numbers, in Å, eV or eV/Å: in the unit that they state, else in that of the layout."""
    values: Float64Array = read_array(group, key, np.float64, shape)
    refuse_half_precision(f"{group.file.filename}: {group.name}/{key}", group[key])
    stated = _stated_unit(group[key])
    if stated is None:
        return values * unit
    name, text = stated
    size = unit_of(quantity, text)
    if size is None:
        raise ModelFileError(
            f"{group.file.filename}: {group.name}/{key} has {name} {text!r}, which is not a "
            f"unit of {quantity} known here; write the numbers in Å, eV or eV/Å, and say so"
        )
    return values * size


def _stated_unit(array: Any) -> tuple[str, str] | None:
    """Name and text of the attribute that states the unit of an array, if one does."""
    for name in ("units", "unit"):
        text = text_of(array.attrs.get(name))
        if text is not None and text.strip():
            return name, text
    return None


def _state(group: Any, frames: int, charge: int | None = None) -> ElectronicState:
    """Charge and multiplicity by what a group states."""
    # Opening every item takes long in files of many small groups.
    items = {key: group[key] for key in group if is_electronic(key)}
    stated = {
        key: item[()]
        for key, item in items.items()
        if getattr(item, "dtype", np.dtype(object)).kind in "iuf"
    }
    where = f"{group.file.filename}: {group.name}"
    return stated_state(where, {**dict(group.attrs), **stated}, frames, charge=charge)


def _text(group: Any, key: str) -> str:
    """Text of a data set of one string, which may be a scalar or an array of length one."""
    found = np.ravel(group[key][()])
    if len(found) != 1 or not isinstance(found[0], str | bytes):
        raise ModelFileError(f"{group.file.filename}: {group.name}/{key} is not a single text")
    item = found[0]
    return item.decode("utf-8") if isinstance(item, bytes) else str(item)


def _qm7x(path: Path, groups: Groups) -> Iterator[MoleculeFrames]:
    for molecule, conformations in groups.items():
        members: dict[tuple[str, bytes, ElectronicState], list[Any]] = defaultdict(list)
        for name, group in _inside(path, conformations):
            numbers = read_array(group, "atNUM", np.int64, (None,))
            found = _ISOMER.match(name)
            isomer = found[0] if found else molecule
            members[isomer, numbers.tobytes(), _state(group, 1)].append(group)
        for (name, atoms, state), own in members.items():
            numbers = np.frombuffer(atoms, np.int64)
            shape = (len(numbers), 3)
            positions = np.array([_read(g, "atXYZ", shape, "length", 1.0) for g in own])
            forces = np.array([_read(g, "totFOR", shape, "force", 1.0) for g in own])
            energies = np.array([_number(g, "ePBE0+MBD") for g in own])
            yield _frames({"source": path.name}, name, numbers, positions, forces, energies, state)


def _number(group: Any, key: str) -> float:
    """Energy of a conformation, in an array of one number or none of a shape."""
    if key not in group or group[key].size != 1 or group[key].dtype.kind not in "iuf":
        raise ModelFileError(f"{group.file.filename}: {group.name} has no number {key!r}")
    return float(np.ravel(_read(group, key, group[key].shape, "energy", 1.0))[0])


def _ani1x(path: Path, groups: Groups) -> Iterator[MoleculeFrames]:
    for name, group in groups.items():
        numbers = read_array(group, "atomic_numbers", np.int64, (None,))
        shape = (None, len(numbers), 3)
        energies = _read(group, "wb97x_dz.energy", (None,), "energy", units.HARTREE)
        forces = _read(group, "wb97x_dz.forces", shape, "force", units.HARTREE)
        positions = _read(group, "coordinates", shape, "length", 1.0)
        if not len(energies) == len(forces) == len(positions):
            raise InputError(
                f"{path}: {name} has {len(positions)} coordinates, {len(energies)} energies and "
                f"{len(forces)} forces; download it again"
            )
        done = np.isfinite(energies) & np.isfinite(forces).all(axis=(1, 2))
        state = _state(group, len(energies))
        labels = (positions[done], forces[done], energies[done])
        origin = _origin(path, group["wb97x_dz.forces"], "Hartree, Hartree/Å")
        yield _frames(origin, name, numbers, *labels, state)


def _ani2x(path: Path, groups: Groups) -> Iterator[MoleculeFrames]:
    for name, group in groups.items():
        species = read_array(group, "species", np.int64, (None, None))
        shape = (*species.shape, 3)
        positions = _read(group, "coordinates", shape, "length", 1.0)
        forces = _read(group, "forces", shape, "force", units.HARTREE)
        energies = _read(group, "energies", shape[:1], "energy", units.HARTREE)
        state = _state(group, len(species))
        kinds, which = np.unique(species, axis=0, return_inverse=True)
        for kind, numbers in enumerate(kinds):
            own = which.ravel() == kind
            full = name if len(kinds) == 1 else f"{name}_{kind}"
            labels = (positions[own], forces[own], energies[own])
            origin = _origin(path, group["forces"], "Hartree, Hartree/Å")
            yield _frames(origin, full, numbers, *labels, state)


def _transition1x(path: Path, groups: Groups) -> Iterator[MoleculeFrames]:
    method = "wB97x_6-31G(d)"
    for split in [groups["data"]] if "data" in groups else groups.values():
        for _, reactions in _inside(path, split):
            for name, group in _inside(path, reactions):
                numbers = read_array(group, "atomic_numbers", np.int64, (None,))
                shape = (None, len(numbers), 3)
                positions = _read(group, "positions", shape, "length", 1.0)
                energies = _read(group, f"{method}.energy", (None,), "energy", 1.0)
                forces = _read(group, f"{method}.forces", shape, "force", 1.0)
                state = _state(group, len(energies))
                yield _frames(
                    {"source": path.name}, name, numbers, positions, forces, energies, state
                )


def _origin(path: Path, forces: Any, read_in: str) -> dict[str, str]:
    """Metadata of frames: the file, and the units of its layout where the forces state none."""
    is_stated = _stated_unit(forces) is not None
    return {"source": path.name} | ({} if is_stated else {READ_IN: read_in})


def _frames(
    metadata: dict[str, str],
    name: str,
    numbers: NDArray[np.int64],
    positions: Float64Array,
    forces: Float64Array,
    energies: Float64Array,
    state: ElectronicState,
) -> MoleculeFrames:
    """Frames of a molecule of which a file states nothing else."""
    return MoleculeFrames(
        name=name,
        numbers=numbers,
        positions=positions,
        forces=forces,
        energies=energies,
        charge=state.charge,
        multiplicity=state.multiplicity,
        metadata=metadata,
    )


_LAYOUTS: Final[
    tuple[tuple[frozenset[str], Callable[[Path, Groups], Iterator[MoleculeFrames]]], ...]
] = (
    (
        frozenset({"atomic_numbers", "conformations", "dft_total_energy", "dft_total_gradient"}),
        _spice,
    ),
    (frozenset({"atNUM", "atXYZ", "ePBE0+MBD", "totFOR"}), _qm7x),
    (frozenset({"atomic_numbers", "coordinates", "wb97x_dz.energy", "wb97x_dz.forces"}), _ani1x),
    (frozenset({"species", "coordinates", "energies", "forces"}), _ani2x),
    (
        frozenset(
            {"atomic_numbers", "positions", "wB97x_6-31G(d).energy", "wB97x_6-31G(d).forces"}
        ),
        _transition1x,
    ),
)
