"""What a run writes: frames of every replica, and the geometry in which it failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np

from mlmd_calc import units
from mlmd_calc.md.engine import Measured
from mlmd_calc.md.export import RunTrajectory
from mlmd_calc.md.frames import FRAMES_FILE, FrameWriter, frame_dtype, read_frames
from mlmd_calc.md.record import STOPPED_FILE, Description, replica_folders
from mlmd_calc.propagation import State


class Recorder:
    """Records and watches the molecules of a run.

    Parameters
    ----------
    molecules
        Replicas, which the engine keeps up to date; most runs have one.
    folder
        Folder of the run.
    description
        What the run is.
    trajectory
        Format of the files beside the frames that other programs read; None: no such files.

    Attributes
    ----------
    bond_deviations
        Largest bond deviation in Å of each replica since the last frame.
    """

    def __init__(
        self,
        molecules: Sequence[ase.Atoms],
        folder: Path,
        description: Description,
        trajectory: str | None = None,
    ) -> None:
        self.molecules = list(molecules)
        self.folder = folder
        self.description = description
        self.bond_deviations = [0.0] * len(self.molecules)
        self._folders = replica_folders(folder, description.settings)
        self._timed = description.settings.frames_per_jump > 1
        self._layout = frame_dtype(len(description.numbers), timed=self._timed)
        self._writers: list[FrameWriter] = []
        self._format = trajectory
        self._trajectories = (
            [
                RunTrajectory(path / f"trajectory.{trajectory}", description)
                for path in self._folders
            ]
            if trajectory is not None
            else []
        )
        self._before_end: tuple[int, list[int]] | None = None
        """Frames, and sizes of trajectories, before what :meth:`record_end` has added."""

    @property
    def frames(self) -> int:
        """Number of frames recorded of each replica."""
        return self._writers[0].count

    @property
    def trajectory(self) -> dict[str, Any] | None:
        """Format and present sizes of the trajectories, for :meth:`reopen`."""
        if self._format is None:
            return None
        return {"format": self._format, "sizes": [file.size for file in self._trajectories]}

    @property
    def finite(self) -> bool:
        """Whether all positions and momenta are finite."""
        return all(
            bool(np.isfinite([atoms.positions, atoms.get_momenta()]).all())
            for atoms in self.molecules
        )

    def create(self) -> None:
        """Begin to record, in folders that are made."""
        for folder in self._folders:
            folder.mkdir(parents=True, exist_ok=True)
            self.description.write(folder)
            self._writers.append(FrameWriter(folder / FRAMES_FILE, self._layout))
        for file in self._trajectories:
            # Of a run that was killed before its first checkpoint.
            file.path.unlink(missing_ok=True)

    def reopen(
        self,
        frames: int,
        bond_deviations: Sequence[float],
        trajectory: Mapping[str, Any] | None = None,
    ) -> None:
        """Go on to record after a number of frames; newer ones are dropped.

        Parameters
        ----------
        frames
            Number of frames to keep.
        bond_deviations
            Largest bond deviation in Å of each replica since the last of these.
        trajectory
            What the property of that name was then. Trajectories in another format begin anew.
        """
        self.bond_deviations = list(bond_deviations)
        for folder in self._folders:
            self._writers.append(FrameWriter(folder / FRAMES_FILE, self._layout, keep=frames))
            (folder / STOPPED_FILE).unlink(missing_ok=True)
        known = trajectory is not None and trajectory["format"] == self._format
        self._go_back(frames, trajectory["sizes"] if trajectory is not None and known else None)

    def _go_back(self, frames: int, sizes: Sequence[int] | None) -> None:
        """Cut trajectories back to a number of frames, which took so many bytes if it is known."""
        for i, (folder, file) in enumerate(zip(self._folders, self._trajectories, strict=False)):
            kept = read_frames(folder / FRAMES_FILE)[:frames]
            file.go_back(kept, None if sizes is None else sizes[i])

    def watch_bonds(self) -> str | None:
        """Note the largest deviation of bonds in each replica; say so if one is too large."""
        problems = [self._watch_bonds(index) for index in range(len(self.molecules))]
        return next((problem for problem in problems if problem is not None), None)

    def _watch_bonds(self, index: int) -> str | None:
        bonds, atoms = self.description.bonds, self.molecules[index]
        if len(bonds) == 0:
            return None
        deviations = bonds.deviations(atoms.positions)
        worst = int(np.abs(deviations).argmax())
        largest = float(abs(deviations[worst]))
        self.bond_deviations[index] = max(self.bond_deviations[index], largest)
        if largest <= self.description.settings.bond_stop:
            return None
        length = bonds.lengths[worst]
        which = f"replica {index}: " if len(self.molecules) > 1 else ""
        return (
            f"{which}bond {bonds.label(worst, atoms.numbers)} is {length + deviations[worst]:.2f} "
            f"Å long instead of {length:.2f} Å: the molecule has come apart; take a shorter time "
            "step, a lower temperature or a model that knows such structures"
        )

    def record(
        self,
        step: int,
        measured: Sequence[Measured],
        inside: Sequence[Sequence[State]] = (),
    ) -> None:
        """Append the present state to the recorded frames.

        Parameters
        ----------
        step
            Steps done.
        measured
            What the engine has measured of each molecule.
        inside
            Frames inside the step that has led here, of each molecule; empty without them.
        """
        for replica, states in enumerate(inside):
            self._append_inside(replica, step, states)
        self._append(step, measured)
        self.bond_deviations = [0.0] * len(self.molecules)

    def record_end(self, step: int, measured: Sequence[Measured]) -> None:
        """Append the state at the end, as a frame that is dropped if the run goes on."""
        self._before_end = self.frames, [file.size for file in self._trajectories]
        self._append(step, measured)

    def forget_end(self) -> None:
        """Drop the frame of :meth:`record_end`."""
        if self._before_end is not None:
            frames, sizes = self._before_end
            for writer in self._writers:
                writer.drop(frames)
            self._go_back(frames, sizes)
            self._before_end = None

    def _append(self, step: int, measured: Sequence[Measured]) -> None:
        for replica, (potential, forces) in enumerate(measured):
            atoms = self.molecules[replica]
            self._write(
                replica,
                step,
                potential,
                atoms.get_kinetic_energy(),
                self.bond_deviations[replica],
                atoms.positions,
                atoms.get_velocities() * units.FS,
                np.full((len(atoms), 3), np.nan) if forces is None else forces,
                *([step * self.description.settings.step_fs] if self._timed else []),
            )

    def _append_inside(self, replica: int, step: int, states: Sequence[State]) -> None:
        """Append frames inside the step that ends with a number."""
        settings, bonds = self.description.settings, self.description.bonds
        for k, state in enumerate(states, start=1):
            self._write(
                replica,
                step - 1,
                np.nan,
                state.kinetic_energy,
                np.abs(bonds.deviations(state.positions)).max(initial=0.0),
                state.positions,
                state.velocities,
                np.full((len(state), 3), np.nan),
                (step - 1 + k / (len(states) + 1)) * settings.step_fs,
            )

    def _write(self, replica: int, *values: Any) -> None:
        """Append a frame of a replica: the fields of :func:`frame_dtype` in their order."""
        frames = np.array([values], dtype=self._layout)
        self._writers[replica].append(frames)
        if self._trajectories:
            self._trajectories[replica].append(frames)

    def write_stopped(self) -> None:
        """Keep the geometry in which a run failed."""
        for folder, atoms in zip(self._folders, self.molecules, strict=True):
            # Without the calculator, whose results may belong to another geometry.
            ase.io.write(folder / STOPPED_FILE, atoms.copy())
        self.sync()

    def sync(self) -> None:
        """Bring the frames recorded so far to the disk."""
        for writer in self._writers:
            writer.sync()
        for trajectory in self._trajectories:
            trajectory.sync()

    def close(self) -> None:
        """Close the files of frames."""
        for writer in self._writers:
            writer.close()
