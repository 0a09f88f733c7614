"""Angles, handedness and clashes of structures.

Frames are ``(f, a, 3)`` in Å.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree
from scipy.special import rel_entr

_BINS: Final = 50
"""Of each angle in histograms of (φ, ψ)."""

CLASH: Final = 1.1
"""Å; heavy atoms nearer than this clash. Shorter than any bond between them."""


def bond_angles(frames: NDArray[np.float64], atoms: NDArray[np.int64]) -> NDArray[np.float64]:
    """Angles ``(f, k)`` in degrees at the middle ones of atoms ``(k, 3)``."""
    first, second = (frames[:, atoms[:, end]] - frames[:, atoms[:, 1]] for end in (0, 2))
    cosine = (first * second).sum(-1)
    sine = np.linalg.norm(np.cross(first, second), axis=-1)
    angles: NDArray[np.float64] = np.degrees(np.arctan2(sine, cosine))
    return angles


def dihedrals(frames: NDArray[np.float64], atoms: NDArray[np.int64]) -> NDArray[np.float64]:
    """Dihedral angles, positive clockwise along the middle bond (IUPAC).

    Parameters
    ----------
    frames
        ``(f, a, 3)``.
    atoms
        ``(..., 4)`` indices.

    Returns
    -------
    ndarray
        ``(f, ...)`` in radians, between -π and π.
    """
    a, b, c, d = (frames[:, atoms[..., k]] for k in range(4))
    axis = c - b
    left, right = np.cross(b - a, axis), np.cross(axis, d - c)
    sine = (np.cross(left, right) * axis).sum(-1) / np.linalg.norm(axis, axis=-1)
    angles: NDArray[np.float64] = np.arctan2(sine, (left * right).sum(-1))
    return angles


def angle_histogram(angles: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Count angles ``(f, d)`` in radians in ``bins`` bins from -π to π along each of d axes."""
    edges = [np.linspace(-np.pi, np.pi, bins + 1)] * angles.shape[-1]
    # Rounding may leave an angle a bit outside.
    counts: NDArray[np.float64] = np.histogramdd(angles.clip(-np.pi, np.pi), edges)[0]
    return counts


def jensen_shannon_divergence(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Jensen-Shannon divergence of two histograms in nats: 0 if alike, ln 2 if disjoint.

    Some authors report its square root, the Jensen-Shannon distance, under this name.
    """
    p, q = first.ravel() / first.sum(), second.ravel() / second.sum()
    middle = (p + q) / 2.0
    # Rounding may leave less than nothing.
    return max(0.0, float(rel_entr(p, middle).sum() + rel_entr(q, middle).sum()) / 2.0)


def ramachandran_divergence(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Mean over residues of the Jensen-Shannon divergence of their (φ, ψ) histograms, in nats.

    The value depends on the number of frames, because sparse histograms differ by chance: compare
    it with that of two parts of one simulation.

    Parameters
    ----------
    first, second
        ``(f, r, 2)`` and ``(g, r, 2)`` radians: φ and ψ of each residue.
    """
    pairs = zip(np.swapaxes(first, 0, 1), np.swapaxes(second, 0, 1), strict=True)
    divergences = [
        jensen_shannon_divergence(*(angle_histogram(angles, _BINS) for angles in pair))
        for pair in pairs
    ]
    return float(np.mean(divergences)) if divergences else float("nan")


def handedness(frames: NDArray[np.floating], centres: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sign ``(f, k)`` of the triple product of the vectors from a centre to three neighbours.

    Parameters
    ----------
    frames
        ``(f, a, 3)``.
    centres
        ``(k, 4)`` indices: the centre, then the neighbours.
    """
    arms = frames[:, centres[:, 1:]] - frames[:, centres[:, :1]]
    signs: NDArray[np.float64] = np.sign(np.linalg.det(arms))
    return signs


def chirality_flips(
    frames: NDArray[np.float64], start: NDArray[np.float64], centres: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Count centres ``(f,)`` of each frame whose handedness is not that of ``start`` ``(a, 3)``."""
    flipped: NDArray[np.int64] = (
        handedness(frames, centres) != handedness(start[None], centres)
    ).sum(axis=1)
    return flipped


def clashes(
    frames: NDArray[np.float64], others: NDArray[np.float64] | None = None
) -> NDArray[np.int64]:
    """Count pairs of atoms of each frame nearer than 1.1 Å, bonded or not: ``(f,)``.

    Parameters
    ----------
    frames
        ``(f, a, 3)`` heavy atoms.
    others
        ``(f, b, 3)``: count pairs between the two sets of atoms. None: within the first.
    """
    trees = [KDTree(frame) for frame in frames]
    if others is None:
        # Every pair is counted twice, and every atom with itself.
        counts = [(tree.count_neighbors(tree, CLASH) - frames.shape[1]) // 2 for tree in trees]
    else:
        counts = [
            tree.count_neighbors(KDTree(frame), CLASH)
            for tree, frame in zip(trees, others, strict=True)
        ]
    return np.array(counts, dtype=np.int64)
