"""Trajectories: frames of one molecule at equal spacing, with velocities."""

from __future__ import annotations

from typing import NamedTuple

import ase.data
import numpy as np
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.data.frames import Float64Array, MoleculeFrames
from mlmd_calc.errors import InputError


class Trajectory(NamedTuple):
    """One molecule's frames in the frame of its centre of mass.

    Attributes
    ----------
    numbers
        ``(n,)``.
    positions, velocities
        ``(f, n, 3)`` Å and Å/fs.
    run
        ``(f,)`` number of the uninterrupted run of frames that a frame belongs to.
    dt_fs
        Time between the frames of a run in fs.
    forces
        ``(f, n, 3)`` eV/Å, or None.
    """

    numbers: NDArray[np.int64]
    positions: Float64Array
    velocities: Float64Array
    run: NDArray[np.int64]
    dt_fs: float
    forces: Float64Array | None

    @classmethod
    def of(cls, molecule: MoleculeFrames) -> Trajectory:
        """Take the trajectory out of labelled frames.

        Raises
        ------
        InputError
            If velocities or the frame spacing are missing.
        """
        if molecule.velocities is None or molecule.dt_fs is None:
            raise InputError(
                f"molecule {molecule.name!r} has no velocities or no frame spacing; trajectories "
                "are needed here, such as mlmd data generate --mode nve writes. For extxyz and ASE "
                "trajectories give --velocity-unit and --frame-spacing"
            )
        masses = ase.data.atomic_masses[molecule.numbers]

        def centred(vectors: NDArray[np.floating]) -> Float64Array:
            wide = vectors.astype(np.float64)
            return wide - np.average(wide, axis=1, weights=masses)[:, None]

        label = molecule.segment
        run = np.zeros(len(molecule), np.int64)
        if label is not None:
            # A label that comes back after another one is a new run.
            run[1:] = np.cumsum(np.diff(label) != 0)
        return cls(
            numbers=molecule.numbers,
            positions=centred(molecule.positions),
            velocities=centred(molecule.velocities),
            run=run,
            dt_fs=molecule.dt_fs,
            forces=None if molecule.forces is None else molecule.forces.astype(np.float64),
        )

    def starts(self, stride: int, before: int = 0) -> NDArray[np.int64]:
        """Frames with ``stride`` frames after and ``before`` frames before them in their run."""
        index = np.arange(before, len(self.run) - stride)
        inside: NDArray[np.bool_] = self.run[index - before] == self.run[index + stride]
        return index[inside]

    def accelerations(self, index: NDArray[np.int64]) -> Float64Array:
        """Accelerations ``(len(index), n, 3)`` in Å/fs².

        Those of the forces if there are any. Else from the frames on both sides, which must belong
        to the same run: with spacing h, a = 2 (x₊ − 2 x + x₋)/h² − (v₊ − v₋)/(2 h) + O(h⁴). For a
        bond that vibrates with a period of 11 fs, frames 2 fs apart leave an error of half a
        percent.
        """
        if self.forces is not None:
            masses = ase.data.atomic_masses[self.numbers][:, None]
            given: Float64Array = self.forces[index] / masses * units.FS**2
            return given
        x, v, h = self.positions, self.velocities, self.dt_fs
        second = (x[index + 1] - 2.0 * x[index] + x[index - 1]) / h**2
        found: Float64Array = 2.0 * second - (v[index + 1] - v[index - 1]) / (2.0 * h)
        return found
