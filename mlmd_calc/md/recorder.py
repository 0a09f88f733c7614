"""What a run writes: frames of every replica, and the geometry in which it failed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ase
import ase.io
import numpy as np

from mlmd_calc import units
from mlmd_calc.md.engine import Measured
from mlmd_calc.md.frames import FRAMES_FILE, FrameWriter, frame_dtype
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

    Attributes
    ----------
    bond_deviations
        Largest bond deviation in Å of each replica since the last frame.
    """

    def __init__(
        self, molecules: Sequence[ase.Atoms], folder: Path, description: Description
    ) -> None:
        self.molecules = list(molecules)
        self.folder = folder
        self.description = description
        self.bond_deviations = [0.0] * len(self.molecules)
        self._folders = replica_folders(folder, description.settings)
        self._timed = description.settings.frames_per_jump > 1
        self._layout = frame_dtype(len(description.numbers), timed=self._timed)
        self._writers: list[FrameWriter] = []
        self._ended_at: int | None = None
        """Number of frames before those that :meth:`record_end` has added."""

    @property
    def frames(self) -> int:
        """Number of frames recorded of each replica."""
        return self._writers[0].count

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

    def reopen(self, frames: int, bond_deviations: Sequence[float]) -> None:
        """Go on to record after a number of frames; newer ones are dropped."""
        self.bond_deviations = list(bond_deviations)
        for folder in self._folders:
            self._writers.append(FrameWriter(folder / FRAMES_FILE, self._layout, keep=frames))
            (folder / STOPPED_FILE).unlink(missing_ok=True)

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
        for writer, states in zip(self._writers, inside, strict=False):
            self._append_inside(writer, step, states)
        self._append(step, measured)
        self.bond_deviations = [0.0] * len(self.molecules)

    def record_end(self, step: int, measured: Sequence[Measured]) -> None:
        """Append the state at the end, as a frame that is dropped if the run goes on."""
        self._ended_at = self.frames
        self._append(step, measured)

    def forget_end(self) -> None:
        """Drop the frame of :meth:`record_end`."""
        if self._ended_at is not None:
            for writer in self._writers:
                writer.drop(self._ended_at)
            self._ended_at = None

    def _append(self, step: int, measured: Sequence[Measured]) -> None:
        for i, (potential, forces) in enumerate(measured):
            atoms = self.molecules[i]
            self._writers[i].append(
                (
                    step,
                    potential,
                    atoms.get_kinetic_energy(),
                    self.bond_deviations[i],
                    atoms.positions,
                    atoms.get_velocities() * units.FS,
                    np.full((len(atoms), 3), np.nan) if forces is None else forces,
                    *([step * self.description.settings.step_fs] if self._timed else []),
                )
            )

    def _append_inside(self, writer: FrameWriter, step: int, states: Sequence[State]) -> None:
        """Append frames inside the step that ends with a number."""
        settings, bonds = self.description.settings, self.description.bonds
        for k, state in enumerate(states, start=1):
            writer.append(
                (
                    step - 1,
                    np.nan,
                    state.kinetic_energy,
                    np.abs(bonds.deviations(state.positions)).max(initial=0.0),
                    state.positions,
                    state.velocities,
                    np.full((len(state), 3), np.nan),
                    (step - 1 + k / (len(states) + 1)) * settings.step_fs,
                )
            )

    def write_stopped(self) -> None:
        """Keep the geometry in which a run failed."""
        for folder, atoms in zip(self._folders, self.molecules, strict=True):
            # Without the calculator, whose results may belong to another geometry.
            ase.io.write(folder / STOPPED_FILE, atoms.copy())
        self.flush()

    def flush(self) -> None:
        """Make the frames recorded so far readable."""
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        """Close the files of frames."""
        for writer in self._writers:
            writer.close()
