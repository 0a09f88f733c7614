"""Write recorded frames in the formats other programs read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.trajectory import Trajectory
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.biomolecules.pdb import format_structure
from mlmd_calc.biomolecules.structure import bonded_structure_from_ase
from mlmd_calc.io.files import naming
from mlmd_calc.io.growing import GrowingFile, mdtraj_formats
from mlmd_calc.md.record import Description, RunRecord
from mlmd_calc.options import one_of

_FRAMES_AT_ONCE: Final = 1000
"""How many are turned into text at a time, to bound the memory."""


class RunTrajectory(GrowingFile):
    """A file of the frames of a run that other programs read, while the run goes on as well.

    Parameters
    ----------
    path
        File to write; its suffix decides. ``.extxyz`` and ``.traj`` hold positions, velocities (as
        momenta) and, unless frames lie inside steps, energies and forces where known, ``.dcd``
        positions in single precision, ``.xtc`` positions to 0.01 Å.
    description
        What the run is. Of an exact ensemble the frames of the warm-up, which are no samples, are
        left out.

    Raises
    ------
    ConfigError
        If the suffix is none of these, or the format needs times and there are none.
    MissingDependencyError
        If mdtraj, which writes XTC, is not installed.
    """

    def __init__(self, path: Path, description: Description) -> None:
        check_format(path.suffix.removeprefix("."))
        super().__init__(path)
        self._description = description
        exact = description.settings.exact
        self._first_step = 0 if exact is None else exact.warmup + 1
        self._write_frames = _WRITERS[path.suffix.removeprefix(".")]
        if path.suffix == ".xtc":
            _ = description.settings.step_fs

    def append(self, frames: NDArray[np.void]) -> None:
        """Add frames, ``(f,)`` with the fields of :func:`frame_dtype`."""
        frames = frames[frames["step"] >= self._first_step]
        for begin in range(0, len(frames), _FRAMES_AT_ONCE):
            part = frames[begin : begin + _FRAMES_AT_ONCE]
            with naming(self.path):
                self._write_frames(self, RunRecord(self._description, part, failed=False))

    def go_back(self, frames: NDArray[np.void], size: int | None) -> None:
        """Cut off all but the first frames.

        Parameters
        ----------
        frames
            Those to keep, which are written again where the file cannot be cut.
        size
            Size of the file when it held these; None if that is not known.
        """
        if not size or self.size < size or self.path.suffix == ".traj":
            self.path.unlink(missing_ok=True)
            self.append(frames)
        else:
            self.cut(size)

    def _write_extxyz(self, record: RunRecord) -> None:
        self.write_extxyz(frame_atoms(record, index) for index in range(len(record)))

    def _write_traj(self, record: RunRecord) -> None:
        with Trajectory(str(self.path), "a") as trajectory:
            for index in range(len(record)):
                trajectory.write(frame_atoms(record, index))

    def _write_dcd(self, record: RunRecord) -> None:
        settings = record.description.settings
        self._write_topology(record)
        interval_ps = 0.0
        if settings.exact is None:
            interval_fs = settings.interval * settings.step_fs / settings.frames_per_jump
            interval_ps = interval_fs / units.FS_PER_PS
        self.write_dcd(record.frames["positions"], interval_ps)

    def _write_xtc(self, record: RunRecord) -> None:
        self._write_topology(record)
        self.write_xtc(record.frames["positions"], record.times_ps, record.frames["step"])

    def _write_topology(self, record: RunRecord) -> None:
        """Write names, elements and bonds, which such files do not hold, beside a new one."""
        if self.size == 0:
            structure = bonded_structure_from_ase(frame_atoms(record, 0))
            topology = self.path.with_suffix(".pdb")
            topology.write_text(format_structure(structure), encoding="utf-8")


def export_frames(record: RunRecord, path: Path) -> None:
    """Write the frames of a run into a file; raises as :class:`RunTrajectory`."""
    RunTrajectory(path, record.description).go_back(record.frames, None)


def check_format(name: str) -> None:
    """Refuse a format that cannot be written here; raises as :class:`RunTrajectory`."""
    one_of("format", name, _WRITERS)
    if name == "xtc":
        mdtraj_formats()


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


_WRITERS: Final[Mapping[str, Callable[[RunTrajectory, RunRecord], None]]] = MappingProxyType(
    {
        "extxyz": RunTrajectory._write_extxyz,
        "traj": RunTrajectory._write_traj,
        "dcd": RunTrajectory._write_dcd,
        "xtc": RunTrajectory._write_xtc,
    }
)
"""Writer of each trajectory format."""
