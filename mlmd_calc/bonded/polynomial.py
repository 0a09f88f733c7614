"""Terms of a polynomial in internal coordinates, and their weights by least squares."""

from __future__ import annotations

from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.bonded.coordinates import InternalCoordinates

_DEGREE: Final = 4
"""Largest degree of a term."""

_RIDGE: Final = 1e-6
"""Share of the identity in the equations of a fit, whose unknowns are scaled to one."""


def terms_of(coordinates: InternalCoordinates) -> NDArray[np.int64]:
    """Coordinates ``(terms, 4)`` whose product each term is; the number of all of them for 1."""
    bends = np.arange(coordinates.bends.start, coordinates.bends.stop)
    twists = np.arange(coordinates.twists.start, coordinates.twists.stop)
    turns = np.arange(coordinates.turns.start, coordinates.turns.stop)
    first_bend, second_bend = bends[coordinates.twist_bends].T
    at_same_atom = [
        pair
        for pair in combinations(range(len(bends)), 2)
        if len(set(coordinates.bend_atoms[list(pair)])) == 1
    ]
    one, two = bends[np.array(at_same_atom, dtype=np.int64).reshape(-1, 2)].T
    left, right = coordinates.bend_bonds.T
    terms: list[tuple[NDArray[np.int64], ...]] = [(left, right), (left, bends), (right, bends)]
    terms += [(one, two), (first_bend, second_bend), (twists, turns)]
    terms += [(twists, first_bend), (twists, second_bend), (twists, first_bend, second_bend)]
    terms += [(twists, bond) for bond in coordinates.twist_bonds.T]
    for kind, degree in (
        (coordinates.stretches, 4),
        (coordinates.bends, 3),
        (coordinates.twists, 3),
        (coordinates.turns, 1),
        (coordinates.pyramids, 2),
        (coordinates.contacts, 1),
    ):
        own = np.arange(kind.start, kind.stop)
        terms += [(own,) * power for power in range(1, degree + 1)]
    padded = []
    for factors in terms:
        one_each = np.full((len(factors[0]), _DEGREE), len(coordinates), dtype=np.int64)
        one_each[:, : len(factors)] = np.stack(factors, axis=1)
        padded.append(one_each)
    return np.concatenate(padded)


def reference_of(
    coordinates: InternalCoordinates, values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean stretches and bends, about which the polynomial is; zero for the others."""
    reference = np.zeros(len(coordinates))
    for kind in (coordinates.stretches, coordinates.bends):
        reference[kind] = values[:, kind].mean(axis=0)
    return reference


def fit_weights(
    terms: NDArray[np.int64],
    factors: NDArray[np.float64],
    derivatives: NDArray[np.float64],
    forces: NDArray[np.float64],
    importance: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Solve for the weights of terms, given structures and the forces there.

    Parameters
    ----------
    terms
        Those of :func:`terms_of`.
    factors
        ``(f, coordinates + 1)``: the coordinates less the reference, and 1.
    derivatives
        ``(f, coordinates, 3 n)``, of the coordinates by the positions.
    forces
        ``(f, n, 3)`` eV/Å.
    importance
        ``(3 n,)``, what errors are multiplied by.
    """
    count = len(terms)
    normal, target = np.zeros((count, count)), np.zeros(count)
    rows = np.arange(count)
    for own, jacobian, force in zip(factors, derivatives, forces, strict=True):
        by_term = own[terms]
        by_coordinate = np.zeros((count, len(own)))
        for slot in range(_DEGREE):
            others = np.delete(by_term, slot, axis=1).prod(axis=1)
            np.add.at(by_coordinate, (rows, terms[:, slot]), others)
        design = -(by_coordinate[:, :-1] @ jacobian) * importance
        normal += design @ design.T
        target += design @ (importance * force.ravel())
    # Terms that no structure moves keep the weight zero.
    scale = np.sqrt(np.where(np.diag(normal) > 0.0, np.diag(normal), 1.0))
    scaled = normal / np.outer(scale, scale) + _RIDGE * np.eye(count)
    return np.linalg.solve(scaled, target / scale) / scale
