"""Removal of the net force and the net torque of an isolated molecule."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_LINEAR: Final = 1e-14
"""Eigenvalues of the inertia tensor below this fraction of the largest belong to a line."""


def remove_net_force(forces: NDArray[np.float64]) -> NDArray[np.float64]:
    """Subtract the mean force from every atom.

    Parameters
    ----------
    forces
        ``(n, 3)``.
    """
    return forces - forces.mean(axis=0)


def remove_net_torque(
    forces: NDArray[np.float64], positions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Make the smallest change (least squares) to the forces that removes the net torque.

    With positions r relative to the centroid and torque τ = Σ r × f, the change is
    ``f_i ← f_i + r_i × μ`` with ``(s·1 − S) μ = τ``, ``S = Σ r rᵀ``, ``s = tr S``. Along the axis of
    a linear molecule no rotation exists, and the equation is solved without that direction; a
    nearly linear one is an ordinary case in double precision.

    Parameters
    ----------
    forces
        ``(n, 3)``; their sum is not changed.
    positions
        ``(n, 3)``.
    """
    r = positions - positions.mean(axis=0)
    torque = np.cross(r, forces).sum(axis=0)
    inertia = np.eye(3) * (r * r).sum() - r.T @ r
    values, axes = np.linalg.eigh(inertia)
    turning = values > _LINEAR * max(float(values[-1]), np.finfo(float).tiny)
    inverse = np.where(turning, 1.0 / np.where(turning, values, 1.0), 0.0)
    mu = axes @ (inverse * (axes.T @ torque))
    return forces + np.cross(r, mu)
