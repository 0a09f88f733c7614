"""Distances between atoms that a model can be asked about.

A learned potential has no wall at short distances and no zero at long ones where its training data
had neither, and answers nonsense there with numbers that look like any others.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import NDArray

from mlmd_calc.errors import InputError
from mlmd_calc.zoo.card import ModelCard

_MARGIN: Final = 0.1
"""How far beyond the distances of the training data a model is asked."""


class Coverage(NamedTuple):
    """Limits on the distances in a structure; the defaults are for models that state none.

    Attributes
    ----------
    closest
        Smallest distance of two atoms, as a fraction of the sum of their covalent radii.
    gap
        Largest distance in Å from a part of the structure to the rest.
    """

    closest: float = 0.3
    gap: float = 6.0

    @classmethod
    def of(cls, card: ModelCard) -> Coverage:
        """Limits for a model, a tenth beyond what its card says of the training data."""
        closest, gap = cls()
        if card.closest_contact is not None:
            closest = (1.0 - _MARGIN) * card.closest_contact
        if card.largest_gap_A is not None:
            gap = (1.0 + _MARGIN) * card.largest_gap_A
        return cls(closest, gap)

    def shortest(self, numbers: NDArray[np.integer]) -> NDArray[np.float64]:
        """Smallest allowed distance of each pair of atoms, ``(n, n)`` Å; 0 on the diagonal."""
        return _shortest(self.closest, numbers.astype(np.int64).tobytes())

    def check(self, numbers: NDArray[np.integer], positions: NDArray[np.float64]) -> None:
        """Refuse atoms that are too close and parts that are too far from each other.

        Parameters
        ----------
        numbers
            Atomic numbers, ``(n,)``.
        positions
            ``(n, 3)`` Å, finite.

        Raises
        ------
        InputError
            With the offending atoms and their distance.
        """
        difference = positions[:, None] - positions
        # Distances that overflow are far, too.
        with np.errstate(over="ignore"):
            square = np.einsum("ijk,ijk->ij", difference, difference)
        limits = self.shortest(numbers)
        close = square < limits * limits
        if close.any():
            i, j = np.argwhere(close)[0]
            raise InputError(
                f"atoms {i} and {j} are {np.sqrt(square[i, j]):.2g} Å apart; the model knows "
                f"nothing of {chemical_symbols[numbers[i]]} and {chemical_symbols[numbers[j]]} "
                f"closer than {limits[i, j]:.2f} Å. Check the unit (Å, neither nm nor Bohr) and "
                f"remove duplicates; {_EXPLODED}"
            )
        part = _part(square <= self.gap**2)
        if not part.all():
            between = square[part][:, ~part]
            i, j = np.unravel_index(int(between.argmin()), between.shape)
            i, j = np.flatnonzero(part)[i], np.flatnonzero(~part)[j]
            raise InputError(
                f"the structure is in two parts {np.sqrt(square[i, j]):.3g} Å apart (atoms {i} and "
                f"{j} are nearest); the model knows gaps of up to {self.gap:.1f} Å. Check the unit "
                f"(Å, neither nm nor Bohr) and evaluate separate molecules one by one; {_EXPLODED}"
            )


@functools.lru_cache(maxsize=256)
def _shortest(closest: float, numbers: bytes) -> NDArray[np.float64]:
    """Limits for atomic numbers as bytes; the same molecule comes at every step of a run."""
    radii = covalent_radii[np.frombuffer(numbers, dtype=np.int64)]
    limits: NDArray[np.float64] = closest * (radii[:, None] + radii)
    np.fill_diagonal(limits, 0.0)
    limits.flags.writeable = False
    return limits


_EXPLODED: Final = (
    "in a running simulation this means that the molecule has broken: restart from an earlier "
    "frame with a shorter time step"
)


def _part(near: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Atoms that are connected to the first one, ``(n,)``, by steps between near atoms."""
    part: NDArray[np.bool_] = np.asarray(near[0])
    while not part.all():
        grown = np.logical_or.reduce(near[part])
        if (grown == part).all():
            break
        part = grown
    return part


def measure(
    frames: Iterable[tuple[NDArray[np.integer], NDArray[np.floating]]],
) -> tuple[float, float] | None:
    """Smallest contact and largest gap in structures.

    Parameters
    ----------
    frames
        Atomic numbers ``(n,)`` and positions ``(f, n, 3)`` Å of each molecule.

    Returns
    -------
    tuple of float or None
        Smallest distance as a fraction of the sum of the covalent radii, and largest distance in Å
        from a part of a structure to the rest; None if there are no two atoms in one structure.
    """
    closest, gap = np.inf, 0.0
    for numbers, positions in frames:
        if len(numbers) > 1 and len(positions):
            radii = covalent_radii[numbers]
            for block in np.array_split(positions, 1 + len(positions) // 256):
                distances = np.linalg.norm(block[:, :, None] - block[:, None], axis=-1)
                gap = max(gap, _largest_gap(distances))
                distances[:, range(len(numbers)), range(len(numbers))] = np.inf
                closest = min(closest, float((distances / (radii[:, None] + radii)).min()))
    return None if gap == 0.0 else (closest, gap)


def _largest_gap(distances: NDArray[np.floating]) -> float:
    """Longest edge of the shortest trees that connect all atoms, for ``(f, n, n)`` distances."""
    frames = np.arange(len(distances))
    joined = np.zeros(distances.shape[:2], dtype=bool)
    joined[:, 0] = True
    nearest, gap = distances[:, 0].copy(), 0.0
    for _ in range(distances.shape[1] - 1):
        open_ends = np.where(joined, np.inf, nearest)
        atoms = open_ends.argmin(axis=1)
        gap = max(gap, float(open_ends[frames, atoms].max()))
        joined[frames, atoms] = True
        nearest = np.minimum(nearest, distances[frames, atoms])
    return gap
