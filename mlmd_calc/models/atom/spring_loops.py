"""The motion of springs as loops for the processor, without a derivative.

One after the other, the operations of :func:`.springs.follow` on the few pairs of a small molecule
take a quarter of the time of a jump.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from torch import Tensor

from mlmd_calc.models.loops import arrays, compiled
from mlmd_calc.models.operations import single_operation

LARGEST_EXPONENT: Final = 4.0
"""Bounds the repulsion of atoms that come too close."""


@compiled
def _follow(
    steps: int,
    springs: Any,
    vectors: Any,
    velocities: Any,
    accelerations: Any,
    per_mass: Any,
    step: Any,
    way: Any,
    end: Any,
) -> None:
    batch, times, n, _ = way.shape
    tension, stiffness, softening = springs
    # In double precision whatever that of the network is.
    start, total, rest = np.empty((n, n)), np.empty((n, 3)), np.empty((n, 3))
    x, v, a = np.empty((n, 3)), np.empty((n, 3)), np.empty((n, 3))
    for row in range(batch * times):
        b, t = row // times, row % times
        x[:], v[:], a[:] = 0.0, velocities[b], accelerations[b]
        # Forces of the start are those of the round before the first step, by the same operations,
        # so that the change is zero to the last bit there.
        for round_ in range(steps + 1):
            if round_ > 0:
                for i in range(n):
                    for k in range(3):
                        v[i, k] += 0.5 * step[b, t] * a[i, k]
                        x[i, k] += step[b, t] * v[i, k]
            total[:] = 0.0
            for i in range(n):
                for j in range(n):
                    d0 = vectors[b, i, j, 0] + (x[j, 0] - x[i, 0])
                    d1 = vectors[b, i, j, 1] + (x[j, 1] - x[i, 1])
                    d2 = vectors[b, i, j, 2] + (x[j, 2] - x[i, 2])
                    square = d0 * d0 + d1 * d1 + d2 * d2
                    r = math.sqrt(square) if square > 0.0 else 1.0
                    if round_ == 0:
                        start[i, j] = r
                    soft = softening[b, t, i, j]
                    exponent = min(-soft * (r - start[i, j]), LARGEST_EXPONENT)
                    pull = tension[b, t, i, j] - stiffness[b, t, i, j] * math.expm1(exponent) / soft
                    total[i, 0] += pull / r * d0
                    total[i, 1] += pull / r * d1
                    total[i, 2] += pull / r * d2
            if round_ == 0:
                rest[:] = total
                continue
            for i in range(n):
                for k in range(3):
                    a[i, k] = accelerations[b, i, k] + per_mass[b, i] * (total[i, k] - rest[i, k])
                    v[i, k] += 0.5 * step[b, t] * a[i, k]
        way[b, t], end[b, t] = x, v


def _motion(
    tension: Tensor,
    stiffness: Tensor,
    softening: Tensor,
    vectors: Tensor,
    velocities: Tensor,
    accelerations: Tensor,
    per_mass: Tensor,
    step: Tensor,
    steps: int,
) -> tuple[Tensor, Tensor]:
    b, t, n, _ = tension.shape
    way, end = tension.new_empty(b, t, n, 3), tension.new_empty(b, t, n, 3)
    springs = tuple(arrays(tension, stiffness, softening))
    others = (vectors, velocities, accelerations, per_mass, step, way, end)
    _follow(steps, springs, *arrays(*others))
    return way, end


spring_motion: Final = single_operation(
    "spring_motion",
    "Tensor tension, Tensor stiffness, Tensor softening, Tensor vectors, Tensor velocities, "
    "Tensor accelerations, Tensor per_mass, Tensor step, int steps",
    "Tensor, Tensor",
    _motion,
)
"""Displacements and velocities at the end of the motion; see :func:`.springs.follow`."""
