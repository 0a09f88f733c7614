"""Loops over internal coordinates, compiled by numba.

All are in one file, because what numba keeps on disk is known to be old only if the file itself has
changed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.models.loops import compiled, inlined

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Topology(NamedTuple):
    """Which bonds internal coordinates are made of.

    Attributes
    ----------
    bonds
        ``(b, 2)`` atoms; a bond's unit vector points from the first to the second.
    bends
        ``(a, 2)`` bonds.
    bend_signs
        ``(a,)`` 1 or -1, by which the product of their unit vectors is the cosine of the angle.
    twists
        ``(d, 3)`` bonds of chains.
    twist_bends
        ``(d, 2)`` bends along them.
    outer_signs
        ``(d,)`` for the product of the outer two unit vectors.
    triples
        ``(d + s, 3)`` bonds of chains, then of atoms with three bonds.
    triple_signs
        ``(d + s,)`` for the triple products of their unit vectors.
    contacts
        ``(c, 2)`` atoms.
    decays
        ``(k,)`` 1/Å.
    """

    bonds: Integers
    bends: Integers
    bend_signs: Floats
    twists: Integers
    twist_bends: Integers
    outer_signs: Floats
    triples: Integers
    triple_signs: Floats
    contacts: Integers
    decays: Floats


@inlined
def _dot(a: Floats, b: Floats) -> float:
    product: float = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    return product


@inlined
def _add_cross(out: Floats, factor: float, a: Floats, b: Floats) -> None:
    """Add ``factor`` times the cross product of two vectors."""
    out[0] += factor * (a[1] * b[2] - a[2] * b[1])
    out[1] += factor * (a[2] * b[0] - a[0] * b[2])
    out[2] += factor * (a[0] * b[1] - a[1] * b[0])


@compiled
def number_anew(atoms: Integers, middles: Floats, positions: Floats, order: Integers) -> bool:
    """Write which atom takes the place of each; tell whether any does.

    The first of three is the one whose dihedral angle is nearest to the middle of its range; see
    :mod:`mlmd_calc.bonded.rotors`.
    """
    axis, across, along = np.zeros(3), np.zeros(3), np.zeros(3)
    changed = False
    for k in range(len(atoms)):
        centre, other, fixed = atoms[k, 0], atoms[k, 1], atoms[k, 2]
        for i in range(3):
            axis[i] = positions[other, i] - positions[centre, i]
            # Until it is known what is across.
            along[i] = positions[fixed, i] - positions[other, i]
            across[i] = 0.0
        length = math.sqrt(_dot(axis, axis))
        for i in range(3):
            axis[i] /= length
        _add_cross(across, 1.0, axis, along)
        along[:] = 0.0
        _add_cross(along, 1.0, across, axis)
        cosine, sine = math.cos(middles[k]), math.sin(middles[k])
        nearest, largest = 0, -math.inf
        for which in range(3):
            end = atoms[k, 3 + which]
            found = 0.0
            for i in range(3):
                arm = positions[end, i] - positions[centre, i]
                found += arm * (cosine * along[i] - sine * across[i])
            if found > largest:
                nearest, largest = which, found
        if nearest:
            changed = True
            for which in range(3):
                order[atoms[k, 3 + which]] = atoms[k, 3 + (nearest + which) % 3]
    return changed


@compiled
def coordinate_values(topology: Topology, positions: Floats, values: Floats, units: Floats) -> None:
    """Write the coordinates, and the unit vectors ``(b, 3)`` along bonds."""
    place = 0
    for k in range(len(topology.bonds)):
        i, j = topology.bonds[k]
        for axis in range(3):
            units[k, axis] = positions[j, axis] - positions[i, axis]
        length = math.sqrt(_dot(units[k], units[k]))
        for axis in range(3):
            units[k, axis] /= length
        values[place + k] = length
    place += len(topology.bonds)
    first_bend = place
    for k in range(len(topology.bends)):
        left, right = topology.bends[k]
        values[place + k] = topology.bend_signs[k] * _dot(units[left], units[right])
    place += len(topology.bends)
    for k in range(len(topology.twists)):
        first, _, third = topology.twists[k]
        one, two = topology.twist_bends[k]
        # An arriving bond is the negative arm: both bends change sign, and their product none.
        across = topology.outer_signs[k] * _dot(units[first], units[third])
        values[place + k] = values[first_bend + one] * values[first_bend + two] - across
    place += len(topology.twists)
    normal = np.zeros(3)
    for k in range(len(topology.triples)):
        first, second, third = topology.triples[k]
        normal[:] = 0.0
        _add_cross(normal, topology.triple_signs[k], units[second], units[third])
        values[place + k] = _dot(units[first], normal)
    place += len(topology.triples)
    for k in range(len(topology.contacts)):
        i, j = topology.contacts[k]
        square = 0.0
        for axis in range(3):
            square += (positions[j, axis] - positions[i, axis]) ** 2
        distance = math.sqrt(square)
        for n in range(len(topology.decays)):
            where = place + n * len(topology.contacts) + k
            values[where] = math.exp(-topology.decays[n] * distance)


@compiled
def add_pulled_back(
    topology: Topology,
    positions: Floats,
    values: Floats,
    units: Floats,
    slopes: Floats,
    gradient: Floats,
) -> None:
    """Add derivatives by positions ``(n, 3)`` to those by coordinates, `slopes`."""
    by_unit = np.zeros_like(units)
    first_bend = len(topology.bonds)
    place = first_bend + len(topology.bends)
    by_bend = slopes[first_bend:place].copy()
    for k in range(len(topology.twists)):
        slope = slopes[place + k]
        one, two = topology.twist_bends[k]
        by_bend[one] += slope * values[first_bend + two]
        by_bend[two] += slope * values[first_bend + one]
        first, _, third = topology.twists[k]
        across = -slope * topology.outer_signs[k]
        for axis in range(3):
            by_unit[first, axis] += across * units[third, axis]
            by_unit[third, axis] += across * units[first, axis]
    place += len(topology.twists)
    for k in range(len(topology.triples)):
        slope = slopes[place + k] * topology.triple_signs[k]
        first, second, third = topology.triples[k]
        _add_cross(by_unit[first], slope, units[second], units[third])
        _add_cross(by_unit[second], slope, units[third], units[first])
        _add_cross(by_unit[third], slope, units[first], units[second])
    place += len(topology.triples)
    for k in range(len(topology.bends)):
        slope = by_bend[k] * topology.bend_signs[k]
        left, right = topology.bends[k]
        for axis in range(3):
            by_unit[left, axis] += slope * units[right, axis]
            by_unit[right, axis] += slope * units[left, axis]
    for k in range(len(topology.bonds)):
        i, j = topology.bonds[k]
        along = _dot(by_unit[k], units[k])
        for axis in range(3):
            across = by_unit[k, axis] - along * units[k, axis]
            pull = across / values[k] + slopes[k] * units[k, axis]
            gradient[i, axis] -= pull
            gradient[j, axis] += pull
    apart = np.empty(3)
    for k in range(len(topology.contacts)):
        i, j = topology.contacts[k]
        for axis in range(3):
            apart[axis] = positions[j, axis] - positions[i, axis]
        factor = 0.0
        for n in range(len(topology.decays)):
            where = place + n * len(topology.contacts) + k
            factor -= topology.decays[n] * values[where] * slopes[where]
        factor /= math.sqrt(_dot(apart, apart))
        for axis in range(3):
            gradient[i, axis] -= factor * apart[axis]
            gradient[j, axis] += factor * apart[axis]


@compiled
def add_polynomial(terms: Integers, weights: Floats, factors: Floats, slopes: Floats) -> float:
    """Add derivatives of a sum of products of four factors, and return the sum."""
    energy = 0.0
    for k in range(len(terms)):
        i, j, m, n = terms[k]
        left, right = factors[i] * factors[j], factors[m] * factors[n]
        energy += weights[k] * left * right
        left, right = weights[k] * left, weights[k] * right
        slopes[i] += factors[j] * right
        slopes[j] += factors[i] * right
        slopes[m] += factors[n] * left
        slopes[n] += factors[m] * left
    return energy


@compiled
def add_network(
    first: Floats,
    first_bias: Floats,
    second: Floats,
    second_bias: Floats,
    last: Floats,
    inputs: Floats,
    slopes: Floats,
) -> float:
    """Add derivatives of ``last · tanh(second tanh(first v + bias) + bias)``, and return it."""
    below = np.tanh(np.dot(first, inputs) + first_bias)
    above = np.tanh(np.dot(second, below) + second_bias)
    by_above = last * (1.0 - above * above)
    by_below = np.dot(by_above, second) * (1.0 - below * below)
    slopes += np.dot(by_below, first)
    return float(np.dot(last, above))
