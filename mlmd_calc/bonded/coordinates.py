"""Internal coordinates of a molecule and their derivatives.

All are made of bond lengths r and unit vectors e along bonds, and smooth wherever no atoms
coincide, straight angles included:

=============  ===================================================================================
stretches      r of every bond
bends          e · e' of every two bonds at an atom, the cosine of their angle
twists         (e₁ × e₂) · (e₂ × e₃) of every chain of three bonds, which is cos φ times both sines
               of the angles between them
turns          e₁ · (e₂ × e₃) of the same, which is sin φ times them
pyramids       e₁ · (e₂ × e₃) of the bonds of every atom that has three
contacts       exp(-κ d) of two atoms that are near but further than two bonds apart, κ 1, 2 and 3
               per Å
=============  ===================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.bonded.kernels import Topology, add_pulled_back, coordinate_values
from mlmd_calc.geometry.bonds import neighbour_lists

_DECAYS: Final = np.array([1.0, 2.0, 3.0])
"""1/Å."""

_THREE: Final = 3


class InternalCoordinates:
    """Internal coordinates of one molecule.

    Parameters
    ----------
    count
        Number of atoms.
    bonds
        ``(b, 2)`` indices of bonded atoms.
    contacts
        ``(c, 2)`` indices of atoms whose contact is a coordinate.

    Attributes
    ----------
    stretches, bends, twists, turns, pyramids, contacts
        Which coordinates are of each kind, as slices.
    bend_bonds
        ``(a, 2)`` stretches along both sides of each bend.
    bend_atoms
        ``(a,)`` atom in its middle.
    twist_bonds
        ``(d, 3)`` stretches along each twist.
    twist_bends
        ``(d, 2)`` bends along it, as indices among bends.
    """

    def __init__(
        self, count: int, bonds: NDArray[np.integer], contacts: NDArray[np.integer]
    ) -> None:
        self.count = count
        self._bonds = np.asarray(bonds, dtype=np.int64).reshape(-1, 2)
        self._contacts = np.asarray(contacts, dtype=np.int64).reshape(-1, 2)
        neighbours = [sorted(own) for own in neighbour_lists(count, self._bonds.tolist())]
        bond = {tuple(pair): k for k, pair in enumerate(self._bonds.tolist())}

        def along(first: int, second: int) -> tuple[int, int]:
            """Bond from one atom to another, and 1 or -1 as it is stored or the other way."""
            forth = bond.get((first, second))
            return (bond[second, first], -1) if forth is None else (forth, 1)

        angles = [(i, j, k) for j in range(count) for i, k in combinations(neighbours[j], 2)]
        chains = [
            (i, j, k, l)
            for j, k in self._bonds.tolist()
            for i in neighbours[j]
            for l in neighbours[k]  # noqa: E741
            if i != k and l not in (i, j)
        ]
        stars = [(j, *own) for j, own in enumerate(neighbours) if len(own) == _THREE]
        sides = _pairs([(along(j, i), along(j, k)) for i, j, k in angles], 2)
        self.bend_bonds, bend_signs = sides[..., 0], sides[..., 1].prod(axis=1)
        self.bend_atoms = np.array([j for _, j, _ in angles], dtype=np.int64)
        ways = _pairs([tuple(map(along, c[:-1], c[1:])) for c in chains], _THREE)
        self.twist_bonds, steps = ways[..., 0], ways[..., 1]
        place = {(frozenset((i, k)), j): a for a, (i, j, k) in enumerate(angles)}
        self.twist_bends = np.array(
            [[place[frozenset((a, c)), b] for a, b, c in (q[:3], q[1:])] for q in chains],
            dtype=np.int64,
        ).reshape(-1, 2)
        arms = _pairs([tuple(along(j, i) for i in own) for j, *own in stars], _THREE)

        signs = np.concatenate([steps, arms[..., 1]]).prod(axis=1)
        fields = {
            "bonds": self._bonds,
            "bends": self.bend_bonds,
            "bend_signs": bend_signs.astype(np.float64),
            "twists": self.twist_bonds,
            "twist_bends": self.twist_bends,
            # Along a chain the bond that arrives points the other way than the arm of the bend.
            "outer_signs": (steps[:, 0] * steps[:, 2]).astype(np.float64),
            "triples": np.concatenate([self.twist_bonds, arms[..., 0]]),
            "triple_signs": signs.astype(np.float64),
            "contacts": self._contacts,
            "decays": _DECAYS,
        }
        # Loops are compiled for arrays without gaps.
        self.topology = Topology(**{name: np.ascontiguousarray(v) for name, v in fields.items()})

        sizes = [len(self._bonds), len(angles), len(chains), len(chains), len(stars)]
        ends: list[int] = np.cumsum([*sizes, len(_DECAYS) * len(self._contacts)]).tolist()
        starts = [0, *ends]
        (
            self.stretches,
            self.bends,
            self.twists,
            self.turns,
            self.pyramids,
            self.contacts,
        ) = (slice(a, b) for a, b in zip(starts, ends, strict=False))
        self._size = ends[-1]

    def __len__(self) -> int:
        return self._size

    def values(
        self, positions: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the coordinates, and the unit vectors ``(b, 3)`` along bonds.

        Parameters
        ----------
        positions
            ``(n, 3)`` Å.
        """
        values = np.empty(self._size)
        units = np.empty((len(self._bonds), 3))
        coordinate_values(self.topology, np.ascontiguousarray(positions), values, units)
        return values, units

    def linearised(
        self, positions: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the coordinates, and their derivatives ``(coordinates, 3 n)`` by the positions.

        Parameters
        ----------
        positions
            ``(n, 3)`` Å.
        """
        values, units = self.values(positions)
        result = np.zeros((self._size, self.count, 3))
        for slopes, gradient in zip(np.eye(self._size), result, strict=True):
            add_pulled_back(self.topology, positions, values, units, slopes, gradient)
        return values, result.reshape(self._size, -1)


def _pairs(rows: Sequence[tuple[tuple[int, int], ...]], width: int) -> NDArray[np.int64]:
    """Return bonds and their directions ``(rows, width, 2)``."""
    return np.array(rows, dtype=np.int64).reshape(-1, width, 2)
