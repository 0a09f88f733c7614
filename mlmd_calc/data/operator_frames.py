"""The published ATOM's way with trajectories: velocities by differences, no hydrogens, splits.

These follow the public code, so that published numbers can be reproduced. Start frames of training,
validation and test lie between each other on one trajectory, and targets of one may be inputs of
another: the numbers say how well a model interpolates. For anything else see
:func:`~mlmd_calc.data.split_by_block`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.errors import ConfigError

SEED = 100
"""Seed of the splits in the first revision of the public code; 42 in the later one."""


def operator_frames(molecule: MoleculeFrames, *, explicit_hydrogen: bool = False) -> MoleculeFrames:
    """Frames as the published operator sees them.

    Velocities are differences to the next frame, in Å per frame, so the last frame of every segment
    is left out. Positions are not centred.

    Parameters
    ----------
    molecule
        Frames in the order of time.
    explicit_hydrogen
        Keep hydrogens.

    Raises
    ------
    ConfigError
        If nothing is left.
    """
    kept = np.ones(len(molecule.numbers), bool) if explicit_hydrogen else molecule.numbers > 1
    segment = np.zeros(len(molecule), np.int64) if molecule.segment is None else molecule.segment
    index = np.flatnonzero(np.diff(segment) == 0)
    if not kept.any() or not len(index):
        raise ConfigError(
            f"molecule {molecule.name!r} has no heavy atoms or no two frames in a row; the "
            "published operator needs both (explicit_hydrogen=True keeps hydrogens)"
        )
    positions = molecule.positions[:, kept]
    return MoleculeFrames(
        name=molecule.name,
        numbers=molecule.numbers[kept],
        positions=positions[index],
        velocities=positions[index + 1] - positions[index],
        charge=molecule.charge,
        multiplicity=molecule.multiplicity,
        dt_fs=molecule.dt_fs,
        segment=None if molecule.segment is None else molecule.segment[index],
        metadata=molecule.metadata,
    )


def operator_split(
    count: int,
    horizon: int,
    *,
    margin: int,
    fractions: Sequence[float] = (0.1, 0.05, 0.05),
    most: Sequence[int] = (500, 2000, 2000),
    seed: int = SEED,
) -> list[NDArray[np.int64]]:
    """Start frames of training, validation and test, as the public code draws them.

    Parameters
    ----------
    count
        Number of frames of :func:`operator_frames`.
    horizon
        Frames from a start to its last target.
    margin
        Frames that are not used at both ends (10,000 for MD17, 500 for TG80 and MD22).
    fractions
        Fraction of the possible starts for each part.
    most
        At most so many of each part, the first drawn.
    seed
        Seed of numpy's legacy generator.

    Raises
    ------
    ConfigError
        If no start frame is possible.
    """
    starts = np.arange(margin, count - margin - horizon + 1)
    if not len(starts):
        raise ConfigError(
            f"{count} frames leave no start between margins of {margin} frames and a horizon of "
            f"{horizon}; use a smaller margin or horizon"
        )
    generator = np.random.RandomState(seed)
    parts, left = [], starts
    for fraction, largest in zip(fractions, most, strict=True):
        drawn = generator.choice(left, size=int(fraction * len(starts)), replace=False)
        left = np.setdiff1d(left, drawn)
        parts.append(drawn[:largest])
    return parts


def operator_targets(starts: NDArray[np.int64], horizon: int, slots: int) -> NDArray[np.int64]:
    """Frames ``(starts, slots)`` to predict: start + ⌊horizon (p + 1) / slots⌋."""
    targets: NDArray[np.int64] = starts[:, None] + np.arange(1, slots + 1) * horizon // slots
    return targets
