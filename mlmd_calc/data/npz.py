"""The npz layouts of labelled frames: our own two, and those of MD17, rMD17, MD22 and TG80.

==============  ===========================================  ======================================
layout          required keys                                units in the file
==============  ===========================================  ======================================
labels          numbers, R, F, E                             Å, eV/Å, eV
trajectory      numbers, x, v, E, segment, dt_fs             Å, Å/fs, eV, fs
rMD17           nuclear_charges, coords, energies, forces    Å, kcal/mol, kcal/mol/Å
MD17, MD22      z, R, E, F                                   Å, kcal/mol, kcal/mol/Å
TG80            nuclear_charges, coords, energy              Å, Hartree
==============  ===========================================  ======================================

Charge and multiplicity follow the rule of `mlmd_calc.electrons`, with the names of single numbers,
or of equal ones for each frame, as keys. Keys such as ``energy_unit`` must not state other units,
except in files of the layouts of MD17 and rMD17, which sGDML writes in any: there they are
believed. Its ``lattice`` is refused.
Our layouts may also hold ``smiles`` and ``metadata`` (a JSON object of strings, of which ``name``
names the molecule); labels may hold ``T`` (K), ``kind`` (0 minimum, 1 sampled frame, 2 distorted
copy) and ``segment``; trajectories may hold ``F`` (eV/Å).

The published sets are trajectories without velocities. Who gives the time between their frames
(MD17 0.5 fs, MD22 and TG80 1 fs) gets velocities by differences, see `mlmd_calc.data.differences`.
The frames of rMD17 are some of those of MD17 in another order, and are put in order by
``old_indices``. The forces of TG80 are zeros that stand for no forces, and are left out.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.data.differences import with_velocities
from mlmd_calc.data.frames import READ_IN, MoleculeFrames, refuse_half_precision, stated_state
from mlmd_calc.data.plausibility import are_totals, total_energy
from mlmd_calc.data.stated_units import OURS, check_stated, is_unit, stated_sizes
from mlmd_calc.electrons import is_electronic
from mlmd_calc.errors import InputError
from mlmd_calc.io.npz import Arrays, Layouts, load_layout, reading, write_npz
from mlmd_calc.options import shown


def read_npz(path: Path, frame_spacing_fs: float | None = None) -> MoleculeFrames:
    """Read one npz file in any of the layouts of this module.

    Parameters
    ----------
    path
        The file; its stem names the molecule if nothing in it does.
    frame_spacing_fs
        Time between frames of the published sets, which are read as trajectories then. It means
        nothing for our own layouts, which know theirs.

    Raises
    ------
    ModelFileError
        If the file is damaged or has an unknown layout.
    InputError
        If the arrays contradict each other.
    """
    with reading(path):
        parse, arrays = load_layout(path, _LAYOUTS, _is_optional, "known layout")
        molecule = parse(path, arrays)
        if frame_spacing_fs is None or parse in (_labels, _trajectory):
            return molecule
        times = _times_of_rmd17(path, arrays) if parse is _rmd17 else None
        return with_velocities(molecule, frame_spacing_fs, times)


def _is_optional(key: str) -> bool:
    return key in _OPTIONAL or is_electronic(key) or is_unit(key)


def _whole(name: str, values: NDArray[Any]) -> NDArray[np.int64]:
    if values.dtype.kind not in "iuf" or (values != np.round(values)).any():
        raise InputError(
            f"{name} {values.ravel()[:5].tolist()} ... are not whole numbers; correct the file"
        )
    return values.astype(np.int64)


def _real(name: str, values: NDArray[Any]) -> NDArray[np.float64]:
    if values.dtype.kind not in "iuf":
        raise InputError(f"{name} are of type {values.dtype}; give real numbers")
    refuse_half_precision(name, values)
    return values.astype(np.float64)


def _labels(path: Path, arrays: Arrays) -> MoleculeFrames:
    metadata, state = _metadata(path, arrays), stated_state(f"{path}", arrays, len(arrays["R"]))
    check_stated(f"{path}", arrays, OURS)
    segment = _whole("segment", arrays["segment"]) if "segment" in arrays else None
    if segment is None and "T" in arrays:
        # Files without segments list their sampling runs one after the other, so a new run starts
        # where the temperature changes (0 K is a minimum).
        segment = np.cumsum(np.diff(arrays["T"], prepend=arrays["T"][:1]) != 0).astype(np.int64)
    return MoleculeFrames(
        name=metadata.get("name", path.stem),
        numbers=_whole("atomic numbers", arrays["numbers"]),
        positions=arrays["R"],
        forces=arrays["F"],
        energies=arrays["E"],
        charge=state.charge,
        multiplicity=state.multiplicity,
        segment=segment,
        metadata=metadata,
    )


def _trajectory(path: Path, arrays: Arrays) -> MoleculeFrames:
    metadata, state = _metadata(path, arrays), stated_state(f"{path}", arrays, len(arrays["x"]))
    check_stated(f"{path}", arrays, OURS)
    spacing = np.squeeze(_real("times between frames", arrays["dt_fs"]))
    if spacing.ndim:
        raise InputError(
            f"{path}: dt_fs has shape {spacing.shape}; give one time between all frames, in fs"
        )
    return MoleculeFrames(
        name=metadata.get("name", path.stem),
        numbers=_whole("atomic numbers", arrays["numbers"]),
        positions=arrays["x"],
        velocities=arrays["v"],
        forces=arrays.get("F"),
        energies=arrays["E"],
        charge=state.charge,
        multiplicity=state.multiplicity,
        dt_fs=float(spacing),
        segment=_whole("segment", arrays["segment"]),
        metadata=metadata,
    )


def _rmd17(path: Path, arrays: Arrays) -> MoleculeFrames:
    return _kcal_frames(path, arrays, ("nuclear_charges", "coords", "forces", "energies"))


def _times_of_rmd17(path: Path, arrays: Arrays) -> NDArray[np.int64]:
    """Place of the frames in MD17."""
    if "old_indices" not in arrays:
        raise InputError(
            f"{path}: frames of rMD17 are in no order of time unless old_indices says so, which "
            "this file does not have; leave out the frame spacing, or take the MD17 file"
        )
    return _whole("old_indices", arrays["old_indices"])


def _tg80(path: Path, arrays: Arrays) -> MoleculeFrames:
    numbers = _whole("atomic numbers", arrays["nuclear_charges"])
    energies = _real("energies", arrays["energy"]).reshape(-1)
    if len(energies) and not are_totals(numbers, energies):
        raise InputError(
            f"{path}: the energies, {np.median(energies):.6g} in the median, cannot be total "
            f"energies in Hartree like those of TG80 ({total_energy(numbers):.0f} for these "
            "elements); convert the file to our label layout in Å and eV"
        )
    forces = arrays.get("forces")
    if forces is not None and forces.any():
        raise InputError(
            f"{path}: it has the keys of TG80, but also forces, which TG80 has not, in a unit that "
            "is not known here; convert the file to our label layout in Å and eV"
        )
    check_stated(f"{path}", arrays, {**OURS, "energy": units.HARTREE})
    others = {key: value for key, value in arrays.items() if key != "nuclear_charges"}
    state = stated_state(f"{path}", others, len(energies))
    return MoleculeFrames(
        name=path.stem,
        numbers=numbers,
        positions=_real("positions", arrays["coords"]),
        energies=energies * units.HARTREE,
        charge=state.charge,
        multiplicity=state.multiplicity,
        metadata={"source": path.name},
    )


def _md17(path: Path, arrays: Arrays) -> MoleculeFrames:
    return _kcal_frames(path, arrays, ("z", "R", "F", "E"))


def _kcal_frames(path: Path, arrays: Arrays, keys: tuple[str, ...]) -> MoleculeFrames:
    """Frames in kcal/mol unless another unit is stated, as files of sGDML do.

    The arrays are those of numbers, positions, forces and energies.
    """
    numbers, positions, forces, energies = (arrays[key] for key in keys)
    others = {key: value for key, value in arrays.items() if key not in keys}
    if "lattice" in others:
        raise InputError(
            f"{path}: its labels are those of a periodic lattice, but models know isolated "
            "molecules only; leave the file out, or the lattice if the molecule is whole and alone"
        )
    sizes = stated_sizes(f"{path}", others, {"length": 1.0, "energy": _KCAL})
    metadata = {"source": path.name}
    if not any(map(is_unit, others)):
        metadata[READ_IN] = "kcal/mol, kcal/mol/Å"
    state = stated_state(f"{path}", others, len(positions))
    return MoleculeFrames(
        name=path.stem,
        numbers=_whole("atomic numbers", numbers),
        positions=_real("positions", positions) * sizes["length"],
        forces=_real("forces", forces) * sizes["force"],
        # MD17 stores energies as a column.
        energies=_real("energies", energies).reshape(-1) * sizes["energy"],
        charge=state.charge,
        multiplicity=state.multiplicity,
        metadata=metadata,
    )


_KCAL: Final = units.KCAL_PER_MOL
_LAYOUTS: Layouts[MoleculeFrames] = (
    (frozenset({"numbers", "x", "v", "E", "segment", "dt_fs"}), _trajectory),
    (frozenset({"numbers", "R", "F", "E"}), _labels),
    (frozenset({"nuclear_charges", "coords", "energies", "forces"}), _rmd17),
    (frozenset({"z", "R", "E", "F"}), _md17),
    (frozenset({"nuclear_charges", "coords", "energy"}), _tg80),
)
_OPTIONAL = frozenset(
    {"F", "T", "segment", "smiles", "metadata", "old_indices", "forces", "lattice"}
)


def _metadata(path: Path, arrays: Arrays) -> dict[str, str]:
    metadata = {"source": path.name}
    if "metadata" in arrays:
        text = str(arrays["metadata"])
        try:
            metadata |= {key: str(value) for key, value in json.loads(text).items()}
        except (ValueError, AttributeError) as error:
            raise InputError(
                f"{path}: metadata is {shown(text)}, which is not a JSON object; write one, or "
                "leave it out"
            ) from error
    if "smiles" in arrays:
        metadata["smiles"] = str(arrays["smiles"])
    return metadata


def write_labels(
    path: str | os.PathLike[str],
    frames: MoleculeFrames,
    *,
    temperatures: NDArray[Any] | None = None,
    kind: NDArray[Any] | None = None,
) -> None:
    """Write forces and energies of one molecule in our label layout.

    The file appears complete or not at all. Positions and forces are stored in single precision.

    Parameters
    ----------
    path
        Ends in ``.npz``; its stem becomes the name of the molecule when it is read, unless
        ``metadata`` has a ``name``.
    frames
        Frames with forces and energies.
    temperatures
        ``(f,)`` K of the run each frame comes from, or None.
    kind
        ``(f,)`` 0 minimum, 1 sampled frame, 2 distorted copy, or None.

    Raises
    ------
    InputError
        If forces or energies are missing, an array has the wrong length, or the path does not end
        in ``.npz``.
    """
    if frames.forces is None or frames.energies is None:
        raise InputError(f"molecule {frames.name!r} has no forces or no energies: no labels")
    arrays: dict[str, Any] = {
        "R": frames.positions.astype(np.float32),
        "F": frames.forces.astype(np.float32),
        "E": frames.energies.astype(np.float64),
    }
    for key, value, dtype in (("T", temperatures, np.float32), ("kind", kind, np.uint8)):
        if value is not None:
            if value.shape != (len(frames),):
                raise InputError(f"{key} has shape {value.shape}, expected ({len(frames)},)")
            arrays[key] = value.astype(dtype)
    if frames.segment is not None:
        arrays["segment"] = frames.segment
    _write(Path(path), frames, arrays)


def check_trajectory(frames: MoleculeFrames) -> None:
    """Refuse frames that are no trajectory.

    Raises
    ------
    InputError
        If velocities, energies, ``segment`` or ``dt_fs`` are missing.
    """
    needed = ("velocities", "energies", "segment", "dt_fs")
    missing = [name for name in needed if getattr(frames, name) is None]
    if missing:
        raise InputError(
            f"molecule {frames.name!r} has no {', '.join(missing)}, which a trajectory needs; give "
            "the time between its frames (--frame-spacing), and energies"
        )


def write_trajectory(path: str | os.PathLike[str], frames: MoleculeFrames) -> None:
    """Write positions and velocities of one molecule in our trajectory layout.

    The file appears complete or not at all. Positions and velocities are stored in single
    precision.

    Parameters
    ----------
    path
        Ends in ``.npz``; its stem becomes the name of the molecule when it is read, unless
        ``metadata`` has a ``name``.
    frames
        Frames with velocities, energies, ``segment`` and ``dt_fs``, and forces if there are any.

    Raises
    ------
    InputError
        If one of these is missing or the path does not end in ``.npz``.
    """
    check_trajectory(frames)
    assert frames.velocities is not None
    assert frames.energies is not None
    assert frames.dt_fs is not None
    arrays = {
        "x": frames.positions.astype(np.float32),
        "v": frames.velocities.astype(np.float32),
        "E": frames.energies.astype(np.float64),
        "segment": frames.segment,
        "dt_fs": np.float64(frames.dt_fs),
    }
    if frames.forces is not None:
        arrays["F"] = frames.forces.astype(np.float32)
    _write(Path(path), frames, arrays)


def _write(path: Path, frames: MoleculeFrames, arrays: dict[str, Any]) -> None:
    # What is written is in our units, whatever it was read in.
    others = ("smiles", READ_IN)
    metadata = {key: value for key, value in frames.metadata.items() if key not in others}
    arrays |= {
        "numbers": frames.numbers.astype(np.uint8),
        "charge": np.int64(frames.charge),
        "multiplicity": np.int64(frames.multiplicity),
        "smiles": np.str_(frames.metadata.get("smiles", "")),
        "metadata": np.str_(json.dumps(metadata, sort_keys=True)),
    }
    write_npz(path, arrays)
