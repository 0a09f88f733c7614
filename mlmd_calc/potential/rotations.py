"""Uniform random rotations and fixed rotation sets.

A rotation is a ``(3, 3)`` matrix R applied to row vectors from the right: ``x' = x @ R``.
"""

from __future__ import annotations

import itertools
import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def matrices_from_quaternions(quaternions: Tensor) -> Tensor:
    """Rotation matrices ``(..., 3, 3)`` of unit quaternions ``(..., 4)`` in the order w, x, y, z."""
    w, x, y, z = quaternions.unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def random_rotations(count: int, generator: torch.Generator) -> Tensor:
    """Draw rotations uniformly from SO(3) (a normalised Gaussian 4-vector is a uniform quaternion).

    Parameters
    ----------
    count
        Number of rotations.
    generator
        Source of randomness; its state can be saved and restored.

    Returns
    -------
    Tensor
        ``(count, 3, 3)`` float64.
    """
    quaternions = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return matrices_from_quaternions(quaternions / quaternions.norm(dim=-1, keepdim=True))


def random_reflections(count: int, generator: torch.Generator) -> Tensor:
    """Draw Householder reflections ``I - 2 n nᵀ`` with n uniform on the sphere.

    Returns
    -------
    Tensor
        ``(count, 3, 3)`` float64.
    """
    normal = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    normal = normal / normal.norm(dim=-1, keepdim=True)
    identity = torch.eye(3, dtype=torch.float64)
    return identity - 2.0 * normal[:, :, None] * normal[:, None, :]


_GOLDEN: Final = (1.0 + math.sqrt(5.0)) / 2.0


def icosahedral_rotations() -> NDArray[np.float64]:
    """The 60 rotations of the 600-cell: its 120 unit quaternions up to sign.

    Returns
    -------
    ndarray
        ``(60, 3, 3)``, the identity first.
    """
    quaternions = [np.eye(4)[axis] for axis in range(4)]
    quaternions += [0.5 * np.array([1.0, *signs]) for signs in itertools.product((1, -1), repeat=3)]
    even = [p for p in itertools.permutations(range(4)) if _is_even(p)]
    for signs in itertools.product((1, -1), repeat=3):
        base = 0.5 * np.array([signs[0] * _GOLDEN, signs[1], signs[2] / _GOLDEN, 0.0])
        quaternions += [base[list(p)] for p in even]
    unique: list[NDArray[np.float64]] = []
    for quaternion in quaternions:
        if all(abs(abs(quaternion @ other) - 1.0) > 1e-9 for other in unique):
            unique.append(quaternion)
    return matrices_from_quaternions(torch.tensor(np.array(unique))).numpy()


def _is_even(permutation: tuple[int, ...]) -> bool:
    inversions = sum(a > b for a, b in itertools.combinations(permutation, 2))
    return inversions % 2 == 0
