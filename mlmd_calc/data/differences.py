"""Velocities of trajectories that were published without them, from the positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.errors import InputError


def with_velocities(
    molecule: MoleculeFrames, spacing_fs: float, times: NDArray[np.integer[Any]] | None = None
) -> MoleculeFrames:
    """Take frames for a trajectory and add velocities by central differences.

    With spacing h the velocity at frame i is (x[i+1] − x[i−1]) / 2h. Where every step of velocity
    Verlet was stored these are the velocities of the run; else a vibration of period T is slowed
    down by the factor sin(2πh/T) / (2πh/T), for C–H bonds 0.95 at 1 fs. Frames without a neighbour
    on both sides are left out, which parts the trajectory into segments.

    Parameters
    ----------
    molecule
        Frames, in the order of time within each segment unless ``times`` are given.
    spacing_fs
        h in fs.
    times
        ``(f,)`` integer times of the frames in units of the spacing, in any order.

    Raises
    ------
    InputError
        If no frame has neighbours on both sides.
    """
    segment = np.zeros(len(molecule), np.int64) if molecule.segment is None else molecule.segment
    if times is not None:
        order = np.argsort(times, kind="stable")
        molecule = molecule.select(order)
        segment = np.cumsum(np.diff(times[order], prepend=times[order][:1]) != 1)
    middle = 1 + np.flatnonzero((np.diff(segment)[:-1] == 0) & (np.diff(segment)[1:] == 0))
    if not len(middle):
        raise InputError(
            f"molecule {molecule.name!r}: none of {len(molecule)} frames has the frames before and "
            f"after it {spacing_fs:g} fs away, which velocities are taken from"
        )
    positions = molecule.positions.astype(np.float64)
    steps = (positions[middle + 1] - positions[middle - 1]) / (2.0 * spacing_fs)
    metadata = {**molecule.metadata, "velocities": "central differences of positions"}
    return replace(
        molecule.select(middle),
        velocities=steps,
        dt_fs=spacing_fs,
        segment=segment[middle],
        metadata=metadata,
    )
