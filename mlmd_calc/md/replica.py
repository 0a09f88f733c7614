"""One molecule of a run: its atoms, its bonds, and its recorded frames."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import ase
import ase.io
import numpy as np
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.md.record import FRAMES_FILE, STOPPED_FILE, Description, FrameWriter


class Measured(NamedTuple):
    """What an engine measures of a molecule.

    Attributes
    ----------
    potential
        Potential energy in eV; NaN if the model has none.
    forces
        ``(n, 3)`` eV/Å, or None if the engine does not tell them.
    """

    potential: float
    forces: NDArray[np.float64] | None = None


class Replica:
    """One molecule of a run; most runs have one.

    Parameters
    ----------
    atoms
        The molecule, kept up to date by the run.
    folder
        Where its frames go.
    description
        What it is.
    bond_deviation
        Largest bond deviation in Å since the last frame.
    """

    _writer: FrameWriter
    _ended_at: int | None = None
    """Number of frames before the one that :meth:`record_end` has added."""

    def __init__(
        self, atoms: ase.Atoms, folder: Path, description: Description, bond_deviation: float
    ) -> None:
        self.atoms = atoms
        self.folder = folder
        self.bond_deviation = bond_deviation
        self._description = description

    @property
    def frames(self) -> int:
        """Number of frames recorded."""
        return self._writer.count

    @property
    def finite(self) -> bool:
        """Whether all positions and momenta are finite."""
        return bool(np.isfinite([self.atoms.positions, self.atoms.get_momenta()]).all())

    def create(self) -> None:
        """Begin to record, in a folder that is made."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._description.write(self.folder)
        self._writer = FrameWriter(self.folder / FRAMES_FILE, len(self.atoms))

    def reopen(self, frames: int) -> None:
        """Go on to record after a number of frames; newer ones are dropped."""
        self._writer = FrameWriter(self.folder / FRAMES_FILE, len(self.atoms), keep=frames)
        (self.folder / STOPPED_FILE).unlink(missing_ok=True)

    def watch_bonds(self) -> str | None:
        """Note the largest deviation of a bond; say so if it is too large."""
        bonds = self._description.bonds
        if len(bonds) == 0:
            return None
        deviations = bonds.deviations(self.atoms.positions)
        worst = int(np.abs(deviations).argmax())
        largest = float(abs(deviations[worst]))
        self.bond_deviation = max(self.bond_deviation, largest)
        if largest <= self._description.settings.bond_stop:
            return None
        length = bonds.lengths[worst]
        return (
            f"bond {bonds.label(worst, self.atoms.numbers)} is {length + deviations[worst]:.2f} Å "
            f"long instead of {length:.2f} Å: the molecule has come apart"
        )

    def record(self, step: int, measured: Measured) -> None:
        """Append the present state to the recorded frames."""
        self._append(step, measured)
        self.bond_deviation = 0.0

    def record_end(self, step: int, measured: Measured) -> None:
        """Append the state at the end, as a frame that is dropped if the run goes on."""
        self._ended_at = self.frames
        self._append(step, measured)

    def forget_end(self) -> None:
        """Drop the frame of :meth:`record_end`."""
        if self._ended_at is not None:
            self._writer.drop(self._ended_at)
            self._ended_at = None

    def _append(self, step: int, measured: Measured) -> None:
        unknown = np.full((len(self.atoms), 3), np.nan)
        self._writer.append(
            (
                step,
                measured.potential,
                self.atoms.get_kinetic_energy(),
                self.bond_deviation,
                self.atoms.positions,
                self.atoms.get_velocities() * units.FS,
                unknown if measured.forces is None else measured.forces,
            )
        )

    def write_stopped(self) -> None:
        """Keep the geometry in which a run failed."""
        # Without the calculator, whose results may belong to another geometry.
        ase.io.write(self.folder / STOPPED_FILE, self.atoms.copy())
        self._writer.flush()

    def flush(self) -> None:
        """Make the frames recorded so far readable."""
        self._writer.flush()

    def close(self) -> None:
        """Close the file of frames."""
        self._writer.close()
