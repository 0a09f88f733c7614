"""Removal of the net force and the net torque of an isolated molecule."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def remove_net_force(forces: NDArray[np.float64]) -> NDArray[np.float64]:
    """Subtract the mean force from every atom.

    Parameters
    ----------
    forces
        ``(n, 3)``.
    """
    projected: NDArray[np.float64] = forces - forces.mean(axis=0)
    return projected


def remove_net_torque(
    forces: NDArray[np.float64], positions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Make the smallest change (least squares) to the forces that removes the net torque.

    With r relative to the centroid, the forces are torque-free when they are orthogonal to the
    displacement fields ``e_k × r`` of rotations about the three axes, so the part along these
    fields is removed. An orthonormal basis of the fields comes from their singular value
    decomposition: solving with the inertia tensor instead would square the ratio of length to bend
    of a nearly linear molecule. About the axis of a linear molecule there is nothing to remove.

    Parameters
    ----------
    forces
        ``(n, 3)``; their sum is not changed.
    positions
        ``(n, 3)``.
    """
    # Differences of nearby numbers are exact, so a molecule far from the origin loses nothing.
    r = positions - positions[0]
    r -= r.mean(axis=0)
    # e_k × r, written out: np.cross takes longer than the rest.
    turned = np.zeros((len(r), 3, 3))
    turned[:, 2, 1], turned[:, 1, 2] = -r[:, 0], r[:, 0]
    turned[:, 0, 2], turned[:, 2, 0] = -r[:, 1], r[:, 1]
    turned[:, 1, 0], turned[:, 0, 1] = -r[:, 2], r[:, 2]
    fields = turned.reshape(-1, 3)
    basis, sizes, _ = np.linalg.svd(fields, full_matrices=False)
    # Bends below the rounding of the coordinates are not there.
    basis = basis[:, sizes > 8 * np.finfo(float).eps * np.linalg.norm(positions)]
    projected: NDArray[np.float64] = forces - (basis @ (basis.T @ forces.ravel())).reshape(-1, 3)
    return projected
