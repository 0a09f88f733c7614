"""Springs between atoms: the motion that an integrator's network corrects.

Most of what a molecule does within a few femtoseconds is the vibration of its bonds and angles.
The network predicts how stiff every pair of atoms is, and velocity Verlet follows the motion in
short steps, from the exact accelerations a at t = 0 and the change of the springs' forces:

    m_i d²x_i/dt² = m_i a_i + sum over j of [F_ij(r_ij) u_ij - F_ij(r⁰_ij) u⁰_ij]
    F(r) = T + k [1 - exp(-β (r - r⁰))] / β

with tension T, stiffness k and softening β (1 to 8 per Å) of each pair, and u_ij the unit vector
from i to j. This motion conserves momentum, starts like the true one, keeps a molecule that rests
without forces where it is, and is linear where motion is small.

The stiffness is a learnt factor times that of a model Hessian, k = 0.45 exp[α (ρ² - r²)] in atomic
units (Lindh, Bernhardsson, Karlström, Malmqvist, Chem. Phys. Lett. 241, 423 (1995)), plus a learnt
correction, which angles need.
"""

from __future__ import annotations

import functools
from typing import Final, NamedTuple

import ase.units
import torch
from torch import Tensor

from mlmd_calc import units
from mlmd_calc.models.atom.spring_loops import LARGEST_EXPONENT, spring_motion
from mlmd_calc.models.loops import known

_STRETCH: Final = 0.45 * ase.units.Hartree / ase.units.Bohr**2
"""eV/Å², stiffness of a stretch in the model Hessian at its reference distance."""

_DECAY: Final = ((1.0, 0.3949, 0.3949), (0.3949, 0.28, 0.28), (0.3949, 0.28, 0.28))
_REFERENCE: Final = ((1.35, 2.10, 2.53), (2.10, 2.87, 3.40), (2.53, 3.40, 3.40))
"""α in 1/Bohr² and ρ in Bohr, by the rows of the periodic table of both elements."""

_LAST_OF_ROW: Final = (2, 10)
_SOFTENING: Final = 3.0
"""1/Å, β of an untrained network."""

_TENSION_UNIT: Final = 3.0
_STIFFNESS_UNIT: Final = 10.0
"""eV and eV/Å; coefficients of order one then mean forces and angles of usual size."""

NUM_COEFFICIENTS: Final = 4
"""What the network predicts for each pair of atoms."""


class Springs(NamedTuple):
    """Springs for the motion to each of the times, ``(b, t, n, n)`` each.

    Attributes
    ----------
    tension
        eV/Å at t = 0, positive where atoms pull each other.
    stiffness
        eV/Å².
    softening
        1/Å.
    """

    tension: Tensor
    stiffness: Tensor
    softening: Tensor

    @classmethod
    def from_coefficients(
        cls, coefficients: Tensor, numbers: Tensor, distances: Tensor, weight: Tensor
    ) -> Springs:
        """Make springs of a network's predictions, which are symmetrised.

        Parameters
        ----------
        coefficients
            ``(b, t, n, n, 4)``; zero for the model Hessian's stretches alone.
        numbers
            ``(b, n)`` atomic numbers.
        distances
            ``(b, n, n)`` Å.
        weight
            ``(b, n, n)`` weight of pairs, 0 where there is none.
        """
        both = coefficients + coefficients.transpose(2, 3)
        tension, factor, correction, softening = both.unbind(dim=-1)
        usual = (model_stiffness(numbers, distances) * (weight > 0.0))[:, None]
        weight = weight[:, None]
        return cls(
            _TENSION_UNIT * tension * weight,
            usual * (1.0 + factor) + _STIFFNESS_UNIT * correction * weight,
            # Bounded, as forces then are.
            _SOFTENING * torch.exp(torch.tanh(softening)),
        )

    def forces(self, distances: Tensor, start: Tensor) -> Tensor:
        """Return forces ``(b, t, n, n)`` in eV/Å, positive where atoms pull each other.

        Parameters
        ----------
        distances, start
            Å, now and at t = 0; any shapes that broadcast to ``(b, t, n, n)``.
        """
        exponent = (-self.softening * (distances - start)).clamp(max=LARGEST_EXPONENT)
        return self.tension - self.stiffness * torch.expm1(exponent) / self.softening


def model_stiffness(numbers: Tensor, distances: Tensor) -> Tensor:
    """Stiffness ``(b, n, n)`` in eV/Å² of the model Hessian's stretches.

    Parameters
    ----------
    numbers
        ``(b, n)`` atomic numbers.
    distances
        ``(b, n, n)`` Å.
    """
    first, second = _LAST_OF_ROW
    row = (numbers > first).long() + (numbers > second).long()
    decay, reference = (
        table[row[:, :, None], row[:, None]] for table in _tables(distances.dtype, distances.device)
    )
    return _STRETCH * torch.exp(decay * (reference**2 - (distances / ase.units.Bohr) ** 2))


@functools.cache
def _tables(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Decay and reference by rows of the periodic table; once, as a CUDA graph cannot copy them."""
    with torch.inference_mode(False):
        return (
            torch.tensor(_DECAY, dtype=dtype, device=device),
            torch.tensor(_REFERENCE, dtype=dtype, device=device),
        )


def follow(
    springs: Springs,
    vectors: Tensor,
    velocities: Tensor,
    accelerations: Tensor,
    masses: Tensor,
    times: Tensor,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Follow the motion of springs, on the CPU in one operation where no gradient is wanted.

    Parameters
    ----------
    springs
        Springs of ``b`` molecules at ``t`` times.
    vectors
        ``(b, n, n, 3)`` Å from atom i to atom j at t = 0.
    velocities, accelerations
        ``(b, n, 3)`` Å/fs and Å/fs² at t = 0.
    masses
        ``(b, n)`` amu.
    times
        ``(b, t)`` fs.
    steps
        Time steps to each of the times.

    Returns
    -------
    displacements, velocities
        ``(b, t, n, 3)`` Å and Å/fs at the times.
    """
    per_mass, step = units.FS**2 / masses, times / steps
    if known(vectors) and not torch.is_grad_enabled():
        state = (vectors, velocities, accelerations)
        found: tuple[Tensor, Tensor] = spring_motion(*springs, *state, per_mass, step, steps)
        return found
    per_mass, step = per_mass[:, None, :, None], step[:, :, None, None]
    start = vectors[:, None]
    lengths = _lengths(start)
    # The same operations as below, so that the change is zero to the last bit at the start.
    pull = springs.forces(lengths, lengths)[..., None] * start / lengths[..., None]
    v = velocities[:, None].expand(-1, times.shape[1], -1, -1)
    a = accelerations[:, None]
    x = torch.zeros_like(v)
    for _ in range(steps):
        v = v + 0.5 * step * a
        x = x + step * v
        way = start + (x[:, :, None] - x[:, :, :, None])
        r = _lengths(way)
        now = springs.forces(r, lengths)[..., None] * way / r[..., None]
        a = accelerations[:, None] + per_mass * (now - pull).sum(dim=3)
        v = v + 0.5 * step * a
    return x, v


def _lengths(vectors: Tensor) -> Tensor:
    """Lengths of vectors; 1 for zero vectors, whose length has no derivative."""
    squares = vectors.square().sum(dim=-1)
    return torch.where(squares > 0.0, squares, 1.0).sqrt()
