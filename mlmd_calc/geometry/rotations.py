"""Uniform random rotations and fixed rotation sets.

A rotation is a ``(3, 3)`` matrix R applied to row vectors from the right: ``x' = x @ R``.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor


def matrices_from_quaternions(quaternions: Tensor) -> Tensor:
    """Turn unit quaternions ``(..., 4)``, order w, x, y, z, into matrices ``(..., 3, 3)``."""
    w, x, y, z = quaternions.unbind(-1)
    rows = torch.stack(
        [
            1 - 2 * (y * y + z * z),
            2 * (x * y - w * z),
            2 * (x * z + w * y),
            2 * (x * y + w * z),
            1 - 2 * (x * x + z * z),
            2 * (y * z - w * x),
            2 * (x * z - w * y),
            2 * (y * z + w * x),
            1 - 2 * (x * x + y * y),
        ],
        dim=-1,
    )
    matrices: Tensor = rows.unflatten(-1, [3, 3])
    return matrices


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
    options: Any = {"dtype": torch.float64, "device": generator.device}
    quaternions = torch.randn(count, 4, generator=generator, **options)
    return matrices_from_quaternions(quaternions / quaternions.norm(dim=-1, keepdim=True))


def counted_rotations(seed: Tensor, calls: Tensor) -> Tensor:
    """Uniform random rotations, each a function of a seed and the number of a call.

    Three numbers of the SplitMix64 generator (Steele, Lea and Flood, OOPSLA 2014) give a quaternion
    (Shoemake, Graphics Gems III, 1992). No operation mixes calls, so that a rotation is the same
    bit by bit whichever others are asked for with it. TorchScript can read this as well.

    Parameters
    ----------
    seed
        int64 scalar.
    calls
        ``(m,)`` int64.

    Returns
    -------
    Tensor
        ``(m, 3, 3)`` float64.
    """
    # Products and sums are meant to overflow. The shifts are arithmetic, so that the sign bits they
    # bring in have to be removed.
    state = 3 * calls[:, None] + torch.arange(3, dtype=torch.int64, device=seed.device)
    z = seed + state * -7046029254386353131
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    z = z ^ ((z >> 31) & 0x1FFFFFFFF)
    uniform = ((z >> 11) & 0x1FFFFFFFFFFFFF).to(torch.float64) * 2.0**-53
    first, second = 2.0 * math.pi * uniform[:, 1], 2.0 * math.pi * uniform[:, 2]
    inner, outer = uniform[:, 0].sqrt(), (1.0 - uniform[:, 0]).sqrt()
    quaternions = [outer * first.sin(), outer * first.cos()]
    quaternions += [inner * second.sin(), inner * second.cos()]
    return matrices_from_quaternions(torch.stack(quaternions, dim=-1))


def random_reflections(count: int, generator: torch.Generator) -> Tensor:
    """Draw Householder reflections ``I - 2 n nᵀ`` with n uniform on the sphere.

    Returns
    -------
    Tensor
        ``(count, 3, 3)`` float64.
    """
    options: Any = {"dtype": torch.float64, "device": generator.device}
    normal = torch.randn(count, 3, generator=generator, **options)
    normal = normal / normal.norm(dim=-1, keepdim=True)
    identity = torch.eye(3, **options)
    reflections: Tensor = identity - 2.0 * normal[:, :, None] * normal[:, None, :]
    return reflections


MOST_ROTATIONS: Final = 10_000
"""More would only fill the memory: the error of the mean is far below that of the model."""

_GROUPS: Final = {1: "C1", 2: "C2", 4: "D2", 12: "T", 24: "O", 60: "I"}
"""Rotation groups in Schoenflies notation by their order."""


def icosahedral_rotations() -> NDArray[np.float64]:
    """Return the 60 rotations of the icosahedron, ``(60, 3, 3)``, the identity first."""
    # Of the two icosahedra around a cube the one that has always been used here.
    return np.ascontiguousarray(_group(60)[:, [1, 0, 2]][:, :, [1, 0, 2]])


def _group(order: int) -> NDArray[np.float64]:
    """Rotations of a group, the identity first."""
    matrices: NDArray[np.float64] = Rotation.create_group(_GROUPS[order]).as_matrix()
    return matrices[np.argsort(-np.trace(matrices, axis1=1, axis2=2), kind="stable")]


def fixed_rotations(count: int) -> Tensor:
    """Return a deterministic set of rotations that covers SO(3) as evenly as its size allows.

    For 1, 2, 4, 12, 24 and 60 rotations it is a group (identity, half turn, and the rotation groups
    of rectangle, tetrahedron, cube and icosahedron). The average over the last four removes angular
    frequencies up to 1, 2, 3 and 5 exactly. For other counts it is a super-Fibonacci spiral (Alexa,
    CVPR 2022), which is even from about 15 rotations on.

    Parameters
    ----------
    count
        Number of rotations, at least 1.

    Returns
    -------
    Tensor
        ``(count, 3, 3)`` float64.
    """
    if count == 60:
        return torch.from_numpy(icosahedral_rotations())
    if count in _GROUPS:
        # Signed permutations of the axes, here without rounding errors.
        return torch.from_numpy(_group(count).round())
    index = torch.arange(count, dtype=torch.float64, device="cpu") + 0.5
    inner, outer = torch.sqrt(index / count), torch.sqrt(1.0 - index / count)
    alpha = 2.0 * math.pi * index / math.sqrt(2.0)
    beta = 2.0 * math.pi * index / _SUPER_FIBONACCI
    columns = [inner * alpha.sin(), inner * alpha.cos(), outer * beta.sin(), outer * beta.cos()]
    return matrices_from_quaternions(torch.stack(columns, dim=-1))


# Positive root of psi^4 = psi + 4.
_SUPER_FIBONACCI: Final = 1.533751168755204288118041
