"""How alike two ensembles of structures of one molecule are.

The measures and thresholds are those by which protein ensemble generators are compared (B. Jing
et al., arXiv 2402.04845; arXiv 2603.17633, appendix E). Frames are ``(f, a, 3)`` in Å; unless said
otherwise they must be superposed, see :func:`superpose`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from mlmd_calc.analysis.accuracy import spread_index
from mlmd_calc.errors import InputError
from mlmd_calc.geometry.superposition import superpose

Frames = NDArray[np.float64]

CONTACT: Final = 8.0
"""Å; α-carbons nearer than this are in contact."""
WEAK: Final = 0.9
"""Contacts of the start structure below this probability are weak."""
TRANSIENT: Final = 0.1
"""Other pairs above this probability of contact are transient contacts."""
_PAIRS: Final = 1000
"""Frames some time apart that are superposed at most, evenly spread."""
_ROUNDING: Final = 1e-9
"""Å; what varies less does not vary."""


def mean_pairwise_rmsd(first: Frames, second: Frames) -> float:
    """Mean over all pairs of frames of one and another ensemble of their RMSD, in Å.

    Parameters
    ----------
    first, second
        ``(f, a, 3)`` and ``(g, a, 3)``, superposed; the same twice for one ensemble by itself.
    """
    distances = cdist(first.reshape(len(first), -1), second.reshape(len(second), -1))
    return float(distances.mean() / np.sqrt(first.shape[1]))


def rmsf(frames: Frames) -> NDArray[np.float64]:
    """Root mean square fluctuation of each atom about its mean position: ``(a,)`` Å."""
    fluctuation = frames - frames.mean(axis=0)
    out: NDArray[np.float64] = np.sqrt((fluctuation**2).sum(axis=-1).mean(axis=0))
    return out


def correlation(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Pearson correlation of values in Å; not a number if one of them does not vary."""
    a, b = first - np.mean(first), second - np.mean(second)
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    return float(a @ b / np.prod(lengths)) if min(lengths) > _ROUNDING else float("nan")


def rmwd(first: Frames, second: Frames) -> float:
    """Root mean of the squared 2-Wasserstein distances of the atoms' Gaussians, in Å.

    Each atom's positions are described by their mean μ and covariance Σ (divided by the number of
    frames); W² = |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½).
    """
    (mean1, cov1), (mean2, cov2) = _gaussians(first), _gaussians(second)
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(values.clip(min=0.0))[:, None]) @ np.swapaxes(vectors, 1, 2)
    # Σ₁Σ₂ and the symmetric Σ₁^½ Σ₂ Σ₁^½ have the same eigenvalues.
    mixed = np.sqrt(np.linalg.eigvalsh(root @ cov2 @ root).clip(min=0.0)).sum(axis=-1)
    spread = np.trace(cov1 + cov2, axis1=1, axis2=2) - 2.0 * mixed
    squared = ((mean1 - mean2) ** 2).sum(axis=-1) + spread.clip(min=0.0)
    return float(np.sqrt(squared.mean()))


def _gaussians(frames: Frames) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mean = frames.mean(axis=0)
    deviations = frames - mean
    return mean, np.einsum("fai,faj->aij", deviations, deviations) / len(frames)


def principal_axes(frames: Frames, count: int) -> NDArray[np.float64]:
    """Directions of largest variance: ``(count, 3 a)``, orthonormal, largest first."""
    flat = frames.reshape(len(frames), -1)
    _, _, axes = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    out: NDArray[np.float64] = axes[:count]
    return out


def project(frames: Frames, basis: Frames) -> NDArray[np.float64]:
    """Coordinates ``(f, 2)`` in Å along two principal axes of other frames, from their mean."""
    mean = basis.mean(axis=0).ravel()
    coordinates: NDArray[np.float64] = (frames.reshape(len(frames), -1) - mean) @ principal_axes(
        basis, 2
    ).T
    return coordinates


def pca_w2(first: Frames, second: Frames, basis: Frames) -> float:
    """2-Wasserstein distance on the first two principal components, per root of atoms, in Å.

    Parameters
    ----------
    first, second
        ``(f, a, 3)`` each, superposed, with as many frames as each other.
    basis
        Frames whose principal components are taken: the reference ensemble ("MD PCA"), or `first`
        and `second` together ("joint PCA").

    Raises
    ------
    InputError
        If the numbers of frames differ.
    """
    if len(first) != len(second):
        raise InputError(
            f"{len(first)} frames cannot be assigned to {len(second)}; draw as many of one as of "
            "the other"
        )
    points = project(np.concatenate([first, second]), basis)
    cost = cdist(points[: len(first)], points[len(first) :], "sqeuclidean")
    best = cost[linear_sum_assignment(cost)].mean()
    return float(np.sqrt(best / first.shape[1]))


def pc_similarity(first: Frames, second: Frames) -> float:
    """Absolute cosine of the first principal axes; not a number if an ensemble does not move."""
    if any(np.ptp(frames, axis=0).max() < _ROUNDING for frames in (first, second)):
        return float("nan")
    return float(abs(principal_axes(first, 1)[0] @ principal_axes(second, 1)[0]))


def contact_probability(frames: Frames) -> NDArray[np.float64]:
    """Fraction of frames in which each pair of atoms is in contact: ``(a (a - 1) / 2,)``.

    Needs no superposition.
    """
    first, second = np.triu_indices(frames.shape[1], 1)
    near = np.zeros(len(first))
    for frame in frames:
        near += np.linalg.norm(frame[first] - frame[second], axis=-1) < CONTACT
    out: NDArray[np.float64] = near / len(frames)
    return out


def weak_contacts(frames: Frames, start: Frames) -> NDArray[np.bool_]:
    """Pairs of atoms in contact in the start structure ``(a, 3)`` but in < 90 % of the frames."""
    in_contact = contact_probability(start[None]) == 1.0
    out: NDArray[np.bool_] = in_contact & (contact_probability(frames) < WEAK)
    return out


def transient_contacts(frames: Frames, start: Frames) -> NDArray[np.bool_]:
    """Pairs of atoms not in contact in the start structure but in more than 10 % of the frames."""
    in_contact = contact_probability(start[None]) == 1.0
    out: NDArray[np.bool_] = ~in_contact & (contact_probability(frames) > TRANSIENT)
    return out


def jaccard(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Members of both sets over members of either; not a number if both are empty."""
    either = int((first | second).sum())
    return int((first & second).sum()) / either if either else float("nan")


def rmsd(frames: Frames, references: Frames) -> NDArray[np.float64]:
    """RMSD of each frame from a structure after superposition on it: ``(f,)`` Å.

    Parameters
    ----------
    frames
        ``(f, a, 3)``.
    references
        ``(a, 3)`` for all frames, or ``(f, a, 3)`` for one each.
    """
    difference = superpose(frames, references) - references
    out: NDArray[np.float64] = np.sqrt((difference**2).sum(axis=-1).mean(axis=-1))
    return out


def t_rmsd_error(generated: Frames, true: Frames) -> float:
    """Root mean square difference over time of the RMSD from the first frame, in Å.

    Parameters
    ----------
    generated, true
        Trajectories with frames at the same times, from their starts on; the longer one is cut.
    """
    length = min(len(generated), len(true))
    ours, theirs = (rmsd(frames[:length], frames[0]) for frames in (generated, true))
    return float(np.sqrt(np.mean((ours - theirs) ** 2)))


def lag_rmsd(frames: Frames, lags: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean RMSD of frames some time apart, after superposition: ``(k,)`` Å.

    Parameters
    ----------
    frames
        ``(f, a, 3)``.
    lags
        ``(k,)`` numbers of frames, each less than f.
    """
    means = []
    for lag in lags:
        first = spread_index(len(frames) - int(lag), _PAIRS)
        means.append(rmsd(frames[first + lag], frames[first]).mean())
    return np.array(means)


def lag_rmsd_error(generated: Sequence[Frames], true: Sequence[Frames]) -> float:
    """Root mean square difference of :func:`lag_rmsd` at lags of 1, 2, 4, 8, … frames, in Å.

    Tells how fast structures change, whatever two trajectories happen to do: it is zero for long
    trajectories of one dynamics, while :func:`t_rmsd_error` is not.

    Parameters
    ----------
    generated, true
        Trajectories with the same time between frames; their curves are averaged. Lags go up to
        half of the shortest trajectory.
    """
    shortest = min(len(frames) for frames in (*generated, *true))
    lags = 2 ** np.arange(int(np.log2(shortest)))
    ours, theirs = (
        np.mean([lag_rmsd(frames, lags) for frames in trajectories], axis=0)
        for trajectories in (generated, true)
    )
    return float(np.sqrt(np.mean((ours - theirs) ** 2)))
