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
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from mlmd_calc.geometry.bonds import neighbour_lists

_DECAYS: Final = np.array([1.0, 2.0, 3.0])
"""1/Å."""

_THREE: Final = 3


class _Shape(NamedTuple):
    """A geometry, as far as derivatives need it."""

    lengths: NDArray[np.float64]
    units: NDArray[np.float64]
    dots: NDArray[np.float64]
    apart: NDArray[np.float64]
    distances: NDArray[np.float64]
    decays: NDArray[np.float64]


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

        # Dots of bends, then those of the outer bonds of chains.
        outer = self.twist_bonds[:, [0, 2]]
        self._dots = np.concatenate([self.bend_bonds, outer]).T
        self._bend_signs = bend_signs.astype(np.float64)
        self._triples = np.concatenate([self.twist_bonds, arms[..., 0]]).T
        self._triple_signs = np.concatenate([steps, arms[..., 1]]).prod(axis=1).astype(np.float64)
        # Along a chain the bond that arrives points the other way than the arm of the bend.
        self._outer_signs = (steps[:, 0] * steps[:, 2]).astype(np.float64)

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
        self._to_units = _sum_over([*self._dots, *self._triples], len(self._bonds))
        pairs = np.concatenate([self._bonds, self._contacts])
        first, second = (_sum_over([pairs[:, end]], count) for end in (0, 1))
        self._to_atoms = csr_matrix(second - first)

    def __len__(self) -> int:
        return self._size

    def values(self, positions: NDArray[np.float64]) -> tuple[NDArray[np.float64], _Shape]:
        """Return the coordinates, and what :meth:`pull_back` needs of the geometry.

        Parameters
        ----------
        positions
            ``(n, 3)`` Å.
        """
        along = positions[self._bonds[:, 1]] - positions[self._bonds[:, 0]]
        lengths = _norms(along)
        units = along / lengths[:, None]
        dots = np.einsum("ij,ij->i", units[self._dots[0]], units[self._dots[1]])
        count = len(self.bend_bonds)
        bends = self._bend_signs * dots[:count]
        first, second = bends[self.twist_bends].T
        # An arriving bond is the negative arm: both bends change sign, and their product none.
        twists = first * second - self._outer_signs * dots[count:]
        one, two, three = (units[own] for own in self._triples)
        triples = self._triple_signs * np.einsum("ij,ij->i", one, _cross(two, three))
        apart = positions[self._contacts[:, 1]] - positions[self._contacts[:, 0]]
        distances = _norms(apart)
        decays = np.exp(-_DECAYS[:, None] * distances)
        values = np.concatenate([lengths, bends, twists, triples, decays.ravel()])
        return values, _Shape(lengths, units, bends, apart, distances, decays)

    def pull_back(self, shape: _Shape, slopes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Turn derivatives by the coordinates into derivatives by the positions.

        Parameters
        ----------
        shape
            Of the geometry, from :meth:`values`.
        slopes
            ``(coordinates, k)`` derivatives of ``k`` functions.

        Returns
        -------
        ndarray
            ``(n, 3, k)``.
        """
        k = slopes.shape[1]
        units = shape.units[:, :, None]
        twist = slopes[self.twists]
        by_bend = slopes[self.bends].copy()
        first, second = self.twist_bends.T
        np.add.at(by_bend, first, twist * shape.dots[second][:, None])
        np.add.at(by_bend, second, twist * shape.dots[first][:, None])
        by_dot = np.concatenate(
            [self._bend_signs[:, None] * by_bend, -self._outer_signs[:, None] * twist]
        )[:, None]
        by_triple = (self._triple_signs[:, None] * slopes[self.turns.start : self.pyramids.stop])[
            :, None
        ]
        left, right = (units[own] for own in self._dots)
        one, two, three = (shape.units[own] for own in self._triples)
        by_unit = self._to_units @ np.concatenate(
            [
                by_dot * right,
                by_dot * left,
                by_triple * _cross(two, three)[:, :, None],
                by_triple * _cross(three, one)[:, :, None],
                by_triple * _cross(one, two)[:, :, None],
            ]
        ).reshape(-1, 3 * k)
        by_unit = by_unit.reshape(-1, 3, k)
        across = by_unit - units * (units * by_unit).sum(axis=1, keepdims=True)
        by_bond = across / shape.lengths[:, None, None] + units * slopes[self.stretches][:, None]
        by_decay = slopes[self.contacts].reshape(len(_DECAYS), -1, k)
        by_distance = -(_DECAYS[:, None, None] * shape.decays[:, :, None] * by_decay).sum(axis=0)
        by_contact = by_distance[:, None] * (shape.apart / shape.distances[:, None])[:, :, None]
        result: NDArray[np.float64] = self._to_atoms @ np.concatenate(
            [by_bond, by_contact]
        ).reshape(-1, 3 * k)
        return result.reshape(self.count, 3, k)


def _pairs(rows: Sequence[tuple[tuple[int, int], ...]], width: int) -> NDArray[np.int64]:
    """Return bonds and their directions ``(rows, width, 2)``."""
    return np.array(rows, dtype=np.int64).reshape(-1, width, 2)


def _sum_over(indices: Sequence[NDArray[np.int64]], count: int) -> csr_matrix:
    """Return the matrix that adds rows to those of their index."""
    targets = np.concatenate(indices)
    rows = np.arange(len(targets))
    return csr_matrix((np.ones(len(targets)), (targets, rows)), shape=(count, len(targets)))


def _norms(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    norms: NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return norms


def _cross(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cross products ``(k, 3)``; numpy's own takes several times as long for few vectors."""
    forth, back = [1, 2, 0], [2, 0, 1]
    return a[:, forth] * b[:, back] - a[:, back] * b[:, forth]
