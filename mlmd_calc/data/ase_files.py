"""Frames from the files ASE reads: extxyz, ASE's trajectories and its databases.

Energies and forces are ASE's results of these names, unless the caller names others. Charge and
multiplicity follow the rule of `mlmd_calc.electrons`; in a database ``info`` are its key-value
pairs. ``name`` comes from there too, else it is made of file and formula. Velocities come from
``momenta`` or, if the caller knows its unit, from a column ``velocities``, or without either from
the positions, if the caller says that the frames are a trajectory of this spacing; times from
``time_fs``, ``time_ps`` or ``time`` (fs). Frames are grouped into molecules by name, order of the
atoms, charge and multiplicity, and by ``smiles`` and ``torsion`` (indices of the four atoms of a
scanned torsion, counted from 0), which metadata keep. Frames of a single atom are reference
energies and left out.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from ase import Atoms
from ase.data import atomic_masses
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.data.differences import with_velocities
from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.data.stated_units import OURS, check_stated
from mlmd_calc.electrons import ElectronicState, electronic_state, words_of_comment
from mlmd_calc.errors import ConfigError, InputError, MLMDError, ModelFileError
from mlmd_calc.io.files import refuse_byte_order_mark, refuse_capital_ending
from mlmd_calc.io.xyz import (
    refuse_columns_without_names,
    refuse_frames_behind_blank_lines,
    refuse_odd_columns,
)
from mlmd_calc.options import shown

VelocityUnit: TypeAlias = Literal["angstrom/fs", "ase"]

VELOCITY_UNITS: Final[dict[VelocityUnit, float]] = {"angstrom/fs": 1.0, "ase": units.FS}
"""Å/fs per unit of velocity."""

_TIME_KEYS: Final = {"time_fs": 1.0, "time_ps": units.FS_PER_PS, "time": 1.0}
"""fs per unit of the times in ``info``."""

_SAME_MASS: Final = 0.01
"""Relative difference of masses that means nothing, as between tables of them."""

_LOOKS_LIKE: Final = {
    "energy": re.compile(r"ener|e_?tot|tot_?e|e_?pot|^[eu](_|$)", re.IGNORECASE),
    "forces": re.compile(r"force|grad|^f(_|$)|^de_?d", re.IGNORECASE),
}

_IS_REFERENCE: Final = re.compile(r"(^|_)(ref|reference|dft)(_|$)", re.IGNORECASE)
"""Names of labels beside which ASE's own may be those of another method."""

_LIST: Final = re.compile(r"\[[\[\s]*[+-]?\d+\.\d")
"""Numbers in brackets, of which ASE makes words."""

_SAME_LABEL: Final = 1e-4
"""eV or eV/Å; labels that were written with fewer digits are the same."""


@dataclass(frozen=True)
class ReadOptions:
    """What the files ASE reads do not say themselves.

    Attributes
    ----------
    velocity_unit
        Unit of a column ``velocities``: "angstrom/fs" or "ase" (Å per ASE time unit). With None
        such a column is left out with a warning.
    energy_key, forces_key
        Names of the energies (eV) and of the column of forces (eV/Å); None: ASE's own.
    frame_spacing_fs
        Time between the frames of a trajectory that does not say it, in fs.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    velocity_unit: VelocityUnit | None = None
    energy_key: str | None = None
    forces_key: str | None = None
    frame_spacing_fs: float | None = None

    def __post_init__(self) -> None:
        if self.velocity_unit not in (None, *VELOCITY_UNITS):
            raise ConfigError(
                f"velocity_unit is {self.velocity_unit!r}; allowed are "
                f"{', '.join(VELOCITY_UNITS)} and None"
            )
        if self.frame_spacing_fs is not None and not 0 < self.frame_spacing_fs < np.inf:
            raise ConfigError(f"frame_spacing_fs is {self.frame_spacing_fs}; it must be above 0")


def is_ase_file(path: Path) -> bool:
    """Tell by its suffix whether `read_ase_file` may know a file."""
    return _reader(path) is not None


def read_ase_file(path: Path, options: ReadOptions) -> list[MoleculeFrames]:
    """Read the molecules of a file.

    Parameters
    ----------
    path
        Ends in .extxyz, .xyz (both may be compressed, .gz), .traj, .db or .json; the latter two
        are ASE databases.
    options
        What the file does not say itself.

    Raises
    ------
    ModelFileError
        If ASE cannot read the file.
    InputError
        If frames of one molecule carry different properties, labels have names that were not
        asked for, or a molecule crosses the boundary of its periodic cell.
    """
    read = _reader(path)
    if read is None:
        raise ModelFileError(f"{path} ends in none of {', '.join(ASE_SUFFIXES)}")
    refuse_capital_ending(path)
    refuse_byte_order_mark(path)
    try:
        frames = list(read(path))
        if _is_xyz(path):
            refuse_frames_behind_blank_lines(path)
            refuse_columns_without_names(path)
    except MLMDError:
        raise
    except Exception as error:  # ASE raises whatever its parsers stumble over
        raise ModelFileError(
            f"ASE cannot read {path}: {_reason(error)}, or leave the file out"
        ) from error
    if not frames:
        raise InputError(f"{path} holds no frames; leave the file out")
    return _molecules(path, frames, options)


def _reason(error: Exception) -> str:
    """Say what ASE stumbled over, and what to do."""
    if isinstance(error, KeyError) and error.args:
        return f"{error.args[0]!r} is not a chemical symbol or key that it knows; correct it"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not text in UTF-8 ({error}); save it as UTF-8"
    return f"{error or type(error).__name__}; copy or write it again"


def _iread(path: Path, kind: str) -> Iterator[Atoms]:
    import ase.io

    return ase.io.iread(path, index=":", format=kind, do_not_split_by_at_sign=True)


def _rows(path: Path) -> Iterator[Atoms]:
    import ase.db

    database = ase.db.connect(path)
    _check_units(path, database.metadata)
    for row in database.select():
        atoms = row.toatoms()
        # Not the values of key_value_pairs: for "charge" ASE returns the sum of the initial
        # charges there, whatever was written.
        pairs = {key: vars(row)[key] for key in row.key_value_pairs}
        atoms.info = {**row.data, **pairs}
        yield atoms


def _check_units(path: Path, metadata: Mapping[str, Any]) -> None:
    """Refuse databases of SchNetPack whose units are not ours."""
    stated = metadata.get("_property_unit_dict")
    named = stated if isinstance(stated, dict) else {}
    keys = {**{f"{name} unit": unit for name, unit in named.items()}, **metadata}
    check_stated(f"{path}", keys, OURS)


_READERS: Final[dict[str, Callable[[Path], Iterator[Atoms]]]] = {
    ".extxyz": lambda path: _iread(path, "extxyz"),
    ".xyz": lambda path: _iread(path, "extxyz"),
    ".traj": lambda path: _iread(path, "traj"),
    ".db": _rows,
    ".json": _rows,
}

ASE_SUFFIXES: Final = tuple(_READERS)
"""Suffixes of the files that `read_ase_file` knows, in small letters and without .gz."""


def _is_xyz(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith("xyz")


def _reader(path: Path) -> Callable[[Path], Iterator[Atoms]] | None:
    name = path.name.lower()
    packed = name.endswith(".gz")
    suffix = Path(name.removesuffix(".gz")).suffix
    return None if packed and suffix not in (".extxyz", ".xyz") else _READERS.get(suffix)


def _molecules(path: Path, frames: list[Atoms], options: ReadOptions) -> list[MoleculeFrames]:
    groups: dict[tuple[Any, ...], list[Atoms]] = defaultdict(list)
    for index, atoms in enumerate(frames):
        if len(atoms) == 1:
            continue
        where = f"{path}, frame {index}"
        _refuse_wrapped(where, atoms)
        refuse_odd_columns(where, atoms)
        check_stated(where, atoms.info, OURS)
        try:
            state = electronic_state(atoms, results=_results(atoms))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        about = tuple(_about(atoms).items())
        name = None if atoms.info.get("name") is None else str(atoms.info["name"])
        groups[name, atoms.numbers.tobytes(), state, about].append(atoms)
    _report_atoms(path, [atoms for atoms in frames if len(atoms) == 1], bool(groups))
    return [
        _molecule(path, name, state, members, len(groups) == 1, options)
        for (name, _, state, _), members in groups.items()
    ]


def _about(atoms: Atoms) -> dict[str, str]:
    """Return what a frame says about its molecule: SMILES, and the torsion that is scanned."""
    found = {key: atoms.info[key] for key in ("smiles", "torsion") if key in atoms.info}
    return {key: " ".join(map(str, np.ravel(value))) for key, value in found.items()}


def _report_atoms(path: Path, single: list[Atoms], others: bool) -> None:
    """Say that frames of single atoms are left out, which some files carry as references."""
    if not single:
        return
    symbols = ", ".join(sorted({atoms.get_chemical_formula() for atoms in single}))
    if not others:
        raise InputError(f"{path} holds nothing but single atoms ({symbols}); molecules are needed")
    warnings.warn(
        f"{path}: {len(single)} frames of single atoms ({symbols}) are left out; the energies of "
        "the elements are fitted to the molecules",
        stacklevel=6,
    )


def _molecule(
    path: Path,
    name: str | None,
    state: ElectronicState,
    members: list[Atoms],
    alone: bool,
    options: ReadOptions,
) -> MoleculeFrames:
    if name is None:
        # Isomers and differently ordered copies share the name of their formula, so that a
        # split by name never puts the same molecule on both sides.
        stem = Path(path.name.removesuffix(".gz")).stem
        name = stem if alone else f"{stem}_{members[0].get_chemical_formula()}"
    energies = _labels(path, members, "energy", options.energy_key)
    forces = _labels(path, members, "forces", options.forces_key)
    if forces is None:
        _refuse_lists(path, members)
    metadata = {"source": path.name, **_about(members[0])}
    if others := _left_out(path, members, {"energy": energies is None, "forces": forces is None}):
        metadata["left_out"] = others
    spacing, segment = _times(path, members, options.frame_spacing_fs)
    moving = any({"momenta", "velocities"} & atoms.arrays.keys() for atoms in members)
    wanted = moving or options.frame_spacing_fs is not None
    foreign = wanted and _has_foreign_masses(path, members)
    frames = MoleculeFrames(
        name=name,
        numbers=members[0].numbers.astype(np.int64),
        positions=np.array([atoms.positions for atoms in members]),
        forces=forces,
        energies=energies,
        velocities=None if foreign else _velocities(path, members, options.velocity_unit),
        charge=state.charge,
        multiplicity=state.multiplicity,
        dt_fs=spacing,
        segment=segment,
        metadata=metadata,
    )
    # A column of velocities that was left out is no reason to make other ones.
    if options.frame_spacing_fs is None or moving or foreign:
        return frames
    return with_velocities(frames, options.frame_spacing_fs)


def _has_foreign_masses(path: Path, members: list[Atoms]) -> bool:
    """Tell whether atoms move as isotopes or made-up masses do, and say what is left out."""
    usual = atomic_masses[members[0].numbers]
    found = [atoms.get_masses() for atoms in members if atoms.has("masses")]
    if all(np.abs(masses / usual - 1.0).max() < _SAME_MASS for masses in found):
        return False
    warnings.warn(
        f"{path}: velocities are left out, because masses are not the natural ones, with which "
        "propagators move molecules",
        stacklevel=6,
    )
    return True


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


def _results(atoms: Atoms) -> dict[str, Any]:
    return {} if atoms.calc is None else dict(atoms.calc.results)


def _labels(
    path: Path, members: list[Atoms], kind: str, key: str | None
) -> NDArray[np.float64] | None:
    """Labels under ASE's name, or under the key that was asked for."""
    if key is None:
        labels = _stack(path, kind, [_results(atoms).get(kind) for atoms in members])
        if labels is not None:
            _refuse_others(path, members, kind, labels)
        return labels
    stacked = _stack(path, key, [{**_results(atoms), **_own(atoms)}.get(key) for atoms in members])
    if stacked is None:
        found = [*_alike(members, kind), *({kind} & _results(members[0]).keys())]
        raise InputError(f"{path} has no {key!r}; {kind} may be {', '.join(found) or 'missing'}")
    # SchNetPack keeps an energy in an array of one number.
    return stacked[:, 0] if kind == "energy" and stacked.shape[1:] == (1,) else stacked


def _refuse_others(
    path: Path, members: list[Atoms], kind: str, labels: NDArray[np.float64]
) -> None:
    """Refuse labels under ASE's name beside others that are called those of a reference."""
    for key in filter(_IS_REFERENCE.search, _alike(members, kind)):
        others = [_own(atoms).get(key, np.nan) for atoms in members]
        if any(
            not np.allclose(other, label, rtol=0.0, atol=_SAME_LABEL)
            for other, label in zip(others, labels, strict=True)
        ):
            raise InputError(
                f"{path} has {kind} and {key}, which differ; choose one with --{kind}-key "
                f"({kind}_key={key!r} or {kind!r}), or remove the other"
            )


def _refuse_lists(path: Path, members: list[Atoms]) -> None:
    """Refuse comments that hold what may be forces, as the first files of MD17 do."""
    for atoms in members:
        comment = " ".join(words_of_comment(atoms))
        if _LIST.search(comment):
            raise InputError(
                f"{path}: numbers in the comment, {shown(comment)}, would be passed over; if these "
                "are energies and forces, as in the first files of MD17, take the npz file of that "
                "molecule, or write energy=... (eV) and a column of forces (eV/Å, "
                "Properties=species:S:1:pos:R:3:forces:R:3); if not, take them out"
            )


def _left_out(path: Path, members: list[Atoms], missing: dict[str, bool]) -> str:
    """Name what looks like missing labels, and how to choose it."""
    found = {kind: _alike(members, kind) for kind, is_missing in missing.items() if is_missing}
    texts = [f"{', '.join(keys)} (--{kind}-key)" for kind, keys in found.items() if keys]
    if texts:
        warnings.warn(
            f"{path}: left out are {' and '.join(texts)}, which may be {' and '.join(found)} under "
            "another name; choose them with energy_key and forces_key",
            stacklevel=6,
        )
    return " and ".join(texts)


def _own(atoms: Atoms) -> dict[str, Any]:
    return {**atoms.info, **atoms.arrays}


def _alike(members: list[Atoms], kind: str) -> list[str]:
    """Names of numbers that look like energies, or of columns of three that look like forces."""
    shapes = ((), (1,)) if kind == "energy" else ((len(members[0]), 3),)
    # ASE has a place of its own for the energy that the forces are the slope of.
    free = {"free_energy"} if kind == "energy" and "free_energy" in _results(members[0]) else set()
    return sorted(
        free
        | {
            key
            for atoms in members
            for key, value in _own(atoms).items()
            if _LOOKS_LIKE[kind].search(key)
            and np.shape(value) in shapes
            and np.issubdtype(np.asarray(value).dtype, np.number)
        }
    )


def _times(
    path: Path, members: list[Atoms], given: float | None
) -> tuple[float | None, NDArray[np.int64] | None]:
    """Time between frames in fs, and the number of the uninterrupted run of each frame."""
    key = next((key for key in _TIME_KEYS if all(key in m.info for m in members)), None)
    steps = np.zeros(0)
    if key is not None:
        stated = [atoms.info[key] for atoms in members]
        times = _numbers(path, key, stated)
        if times.ndim > 1 or not np.isfinite(times).all():
            raise InputError(
                f"{path}: {key} has {shown(times.tolist())}; give one time of each frame"
            )
        steps = np.diff(times) * _TIME_KEYS[key]
    if given is None and not (steps > 0).any():
        return None, None
    spacing = float(np.median(steps[steps > 0])) if given is None else given
    together = np.isclose(steps, spacing, rtol=1e-3) if len(steps) else np.ones(len(members) - 1)
    segment = np.concatenate([[0], np.cumsum(1 - together.astype(np.int64))])
    return spacing, segment


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
    return _numbers(path, key, values)


def _numbers(path: Path, key: str, values: list[Any]) -> NDArray[np.float64]:
    try:
        # A word of a comment is a flag to ASE.
        if any(np.asarray(value).dtype.kind == "b" for value in values):
            raise TypeError("a flag")
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path}: {key}={shown(values[0])} is not a number; give numbers, or rename it"
        ) from error


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
