"""Distributions of interatomic distances, by which the literature judges runs with learned forces.

The faithfulness h(r) of X. Fu et al. (arXiv 2210.07237), which the MD-ET paper reports for MD17.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.errors import InputError

WIDTH_A: Final = 0.05
"""Å, of a bin: half of what a bond of hydrogen swings at room temperature."""

_AT_ONCE: Final = 4096
"""Frames whose distances are held in memory."""

Counts = NDArray[np.float64]


def distance_counts(positions: NDArray[np.floating]) -> Counts:
    """Count the distances of all pairs of atoms by their length.

    Parameters
    ----------
    positions
        ``(..., n, 3)`` Å of frames of one molecule; all frames count together.

    Returns
    -------
    ndarray
        ``(bins,)``, bins of `WIDTH_A` from 0 to the longest distance.

    Raises
    ------
    InputError
        If there is no pair of atoms, or a position is not finite.
    """
    frames = np.asarray(positions, dtype=np.float64)
    frames = frames.reshape(-1, *frames.shape[-2:])
    i, j = np.triu_indices(frames.shape[1], 1)
    if not len(frames) or not len(i):
        raise InputError(
            f"{len(frames)} frames of {frames.shape[1]} atoms have no distances; at least one "
            "frame of two atoms is needed"
        )
    if not np.isfinite(frames).all():
        raise InputError("positions that are not finite have no distances; leave these frames out")
    total = np.zeros(0)
    for first in range(0, len(frames), _AT_ONCE):
        part = frames[first : first + _AT_ONCE]
        lengths = np.linalg.norm(part[:, i] - part[:, j], axis=-1)
        counts = np.bincount((lengths.ravel() / WIDTH_A).astype(np.int64))
        total = _sum(total, counts.astype(np.float64))
    return total


def distance_difference(first: Counts, second: Counts) -> float:
    """Difference of two distributions of distances, ∫ |h₁(r) − h₂(r)| dr.

    h(r) is normalised, so that the difference is 0 for runs that are alike and 2 for those that
    have no distance in common. Few frames differ by chance: compare with the halves of a run.
    """
    return float(np.abs(_sum(first / first.sum(), -second / second.sum())).sum())


def half_difference(positions: NDArray[np.floating]) -> float:
    """Difference between the first and the second half of a run: what chance accounts for.

    Parameters
    ----------
    positions
        ``(f, ..., n, 3)`` Å, at least two frames in the order of time.

    Raises
    ------
    InputError
        If there is only one frame.
    """
    middle = len(positions) // 2
    if middle == 0:
        raise InputError("a single frame has no halves to compare; give a longer run")
    halves = (distance_counts(part) for part in (positions[:middle], positions[middle:]))
    return distance_difference(*halves)


@dataclass(frozen=True)
class DistanceFaithfulness:
    """Distances of a run beside those of its reference.

    Attributes
    ----------
    difference
        Of run and reference, see :func:`distance_difference`.
    reference_halves
        Of the halves of the reference, see :func:`half_difference`.
    """

    difference: float
    reference_halves: float

    @classmethod
    def of(cls, run: NDArray[np.floating], reference: NDArray[np.floating]) -> DistanceFaithfulness:
        """Compare frames ``(..., n, 3)`` with those of a reference ``(f, ..., n, 3)`` in Å."""
        return cls(
            distance_difference(distance_counts(run), distance_counts(reference)),
            half_difference(reference),
        )


def _sum(first: Counts, second: Counts) -> Counts:
    """Add counts that end at different lengths."""
    count = max(len(first), len(second))
    padded = (np.pad(part, (0, count - len(part))) for part in (first, second))
    total: Counts = np.add(*padded)
    return total
