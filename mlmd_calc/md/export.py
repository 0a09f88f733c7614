"""Write recorded frames in the formats other programs read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz
from ase.io.trajectory import Trajectory

from mlmd_calc import units
from mlmd_calc.biomolecules.pdb import format_structure
from mlmd_calc.biomolecules.structure import bonded_structure_from_ase
from mlmd_calc.md.record import RunRecord
from mlmd_calc.optional import require
from mlmd_calc.options import one_of


def export_frames(record: RunRecord, path: Path) -> None:
    """Write all frames of a run into a file.

    Parameters
    ----------
    record
        Recorded frames.
    path
        File to write; its suffix decides. ``.extxyz`` and ``.traj`` hold positions, velocities (as
        momenta) and, unless frames lie inside steps, energies and forces where known, ``.dcd``
        positions in single precision, ``.xtc`` positions to 0.01 Å.

    Raises
    ------
    ConfigError
        If the suffix is none of these.
    MissingDependencyError
        If mdtraj, which writes DCD and XTC, is not installed.
    """
    check_format(path.suffix.removeprefix("."))
    WRITERS[path.suffix.removeprefix(".")](record, path)


def check_format(name: str) -> None:
    """Refuse a format that cannot be written here; raises as :func:`export_frames`."""
    one_of("format", name, WRITERS)
    if name in ("dcd", "xtc"):
        _mdtraj_formats()


def frame_atoms(record: RunRecord, index: int) -> ase.Atoms:
    """One frame as ASE atoms with velocities and, if it is known, the energy."""
    frame, description = record.frames[index], record.description
    info = {**description.info, "step": int(frame["step"])}
    if description.settings.exact is None:
        step_fs = description.settings.step_fs
        info["time_fs"] = float(frame["time"] if record.timed else frame["step"] * step_fs)
    atoms = ase.Atoms(description.numbers, np.array(frame["positions"]), info=info)
    if (atoms.get_masses() != description.masses).any():
        atoms.set_masses(description.masses)
    atoms.set_velocities(frame["velocities"] / units.FS)
    results: dict[str, Any] = {}
    # Frames inside steps have none, and files with labels in some frames only cannot be read.
    if np.isfinite(frame["potential"]) and not record.timed:
        results["energy"] = float(frame["potential"])
    if np.isfinite(frame["forces"]).all() and not record.timed:
        results["forces"] = np.array(frame["forces"])
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def _all_atoms(record: RunRecord) -> Iterator[ase.Atoms]:
    return (frame_atoms(record, index) for index in range(len(record)))


def _write_extxyz(record: RunRecord, path: Path) -> None:
    with path.open("w") as file:
        for atoms in _all_atoms(record):
            write_extxyz(file, [atoms])


def _write_traj(record: RunRecord, path: Path) -> None:
    with Trajectory(str(path), "w") as trajectory:
        for atoms in _all_atoms(record):
            trajectory.write(atoms)


def _write_topology(record: RunRecord, path: Path) -> None:
    """Names, elements and bonds for formats that hold positions alone, beside the trajectory."""
    structure = bonded_structure_from_ase(frame_atoms(record, 0))
    path.with_suffix(".pdb").write_text(format_structure(structure), encoding="utf-8")


def _mdtraj_formats() -> Any:
    return require("mdtraj.formats", extra="dcd", why="write DCD and XTC files")


def _write_dcd(record: RunRecord, path: Path) -> None:
    with _mdtraj_formats().DCDTrajectoryFile(str(path), "w", force_overwrite=True) as file:
        file.write(record.frames["positions"].astype(np.float32))
    _write_topology(record, path)


def _write_xtc(record: RunRecord, path: Path) -> None:
    positions = (record.frames["positions"] / units.NM).astype(np.float32)
    times = record.times_ps.astype(np.float32)
    steps = record.frames["step"].astype(np.int32)
    with _mdtraj_formats().XTCTrajectoryFile(str(path), "w", force_overwrite=True) as file:
        file.write(positions, times, steps)
    _write_topology(record, path)


WRITERS: Final[Mapping[str, Callable[[RunRecord, Path], None]]] = MappingProxyType(
    {"extxyz": _write_extxyz, "traj": _write_traj, "dcd": _write_dcd, "xtc": _write_xtc}
)
"""Writer of each trajectory format."""
