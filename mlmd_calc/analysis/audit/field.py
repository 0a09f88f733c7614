"""What the forces and energies of one structure after the other say about a force field.

Every function takes structures as a run meets them and compares what it finds with what physics
demands of any force field: forces are the slope of one smooth energy, which does not depend on
where the molecule is nor on how it lies in space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import ase
import numpy as np
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.analysis.accuracy import turned_back, turned_copies
from mlmd_calc.analysis.audit.measurement import (
    PERCENT,
    Estimate,
    jackknife,
    relative_size,
)
from mlmd_calc.analysis.statistics import root_mean_square
from mlmd_calc.errors import ConfigError
from mlmd_calc.geometry.bonds import find_bonds, fragments_of
from mlmd_calc.potential import Structure
from mlmd_calc.propagation import ForceModel
from mlmd_calc.propagation.other_forces import evaluated_forces
from mlmd_calc.propagation.state import FloatArray

_SIZE_A: Final = 0.05
"""Root mean square way of an atom along paths: the size of thermal vibrations."""

_NODES: Final = 8
"""Of Gauss's quadrature along a straight path."""

_LOOP_POINTS: Final = 24
"""Equidistant points of a loop, for which the trapezoidal rule converges exponentially."""

_SHIFT_A: Final = (103.1, -57.3, 81.7)
"""Far enough that single precision loses what matters."""

_STRETCH_A: Final = (-0.15, 0.25)
_SPACING_A: Final = 0.01
_ORDER: Final = 6
"""Of the difference that leaves of a smooth curve almost nothing."""

_DISPLACEMENT_A: Final = 1e-3
"""Of central differences of forces."""


def evaluated(
    forces: ForceModel, structures: Sequence[Structure]
) -> tuple[NDArray[np.float64], FloatArray]:
    """Evaluate energies ``(k,)`` eV and forces ``(k, n, 3)`` eV/Å of structures of one molecule.

    Raises
    ------
    ConfigError
        If the force model lacks one of them.
    """
    results = forces.evaluate(structures, ("energy", "forces"))
    energies = [result.energy for result in results if result.energy is not None]
    found = [result.forces for result in results if result.forces is not None]
    if not len(energies) == len(found) == len(structures):
        raise ConfigError(f"{type(forces).__qualname__} gives no energies with its forces")
    return np.array(energies, dtype=np.float64), np.array(found, dtype=np.float64)


def _at(structure: Structure, positions: FloatArray) -> list[Structure]:
    """Copy a structure to positions ``(..., n, 3)``."""
    flat = positions.reshape(-1, len(structure), 3)
    return [replace(structure, positions=x) for x in flat]


def displaced(structure: Structure, count: int, rng: np.random.Generator) -> list[Structure]:
    """Move all atoms at random by the size of thermal vibrations."""
    return _at(structure, structure.positions + _random_ways(count, len(structure), rng))


def _random_ways(count: int, atoms: int, rng: np.random.Generator) -> FloatArray:
    """Draw displacements ``(count, n, 3)`` Å of the size of thermal vibrations."""
    ways = rng.standard_normal((count, atoms, 3))
    lengths = np.sqrt(np.mean(np.square(ways).sum(axis=-1), axis=-1))
    return np.asarray(_SIZE_A * ways / lengths[:, None, None])


# ---- energies against forces -----------------------------------------------------------------


@dataclass(frozen=True)
class EnergyBalance:
    """Changes of the energy along straight paths, and what the forces account for.

    Attributes
    ----------
    changes
        ``(k,)`` eV, energy at the end less that at the start.
    works
        ``(k,)`` eV, minus the work of the forces on the way, which should be the same.
    """

    changes: NDArray[np.float64]
    works: NDArray[np.float64]

    @property
    def discrepancy_percent(self) -> Estimate:
        """Root mean square difference, in percent of the root mean square change."""
        return jackknife(relative_size, self.changes - self.works, self.changes, factor=PERCENT)


def energy_balance(
    forces: ForceModel, structures: Sequence[Structure], rng: np.random.Generator
) -> EnergyBalance:
    """Compare energies with the work of forces, along a path through each structure.

    Parameters
    ----------
    forces
        Force model with energies.
    structures
        Structures of one molecule; each is the middle of a path in a random direction.
    rng
        Draws the directions.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    changes, works = [], []
    for structure, way in zip(
        structures, _random_ways(len(structures), len(structures[0]), rng), strict=True
    ):
        ends = np.array([-1.0, 1.0])[:, None, None] * way
        along = nodes[:, None, None] * way
        (first, last), _ = evaluated(forces, _at(structure, structure.positions + ends))
        _, found = evaluated(forces, _at(structure, structure.positions + along))
        changes.append(last - first)
        works.append(-weights @ np.einsum("knx,nx->k", found, way))
    return EnergyBalance(np.array(changes), np.array(works))


@dataclass(frozen=True)
class LoopWork:
    """Work of forces around closed loops.

    Attributes
    ----------
    works
        ``(k,)`` eV around each loop, 0 for forces that are the slope of an energy.
    ways
        ``(k,)`` eV, the same without regard to sign: the work done on and by the molecule.
    """

    works: NDArray[np.float64]
    ways: NDArray[np.float64]

    @property
    def share_percent(self) -> Estimate:
        """Root mean square work, in percent of the work without regard to sign."""
        return jackknife(relative_size, self.works, self.ways, factor=PERCENT)


def loop_work(
    forces: ForceModel, structures: Sequence[Structure], rng: np.random.Generator
) -> LoopWork:
    """Go around a loop through the surroundings of each structure.

    Parameters
    ----------
    forces
        Force model.
    structures
        Structures of one molecule; each is the centre of a circle in a random plane.
    rng
        Draws the planes.
    """
    angles = 2.0 * np.pi * np.arange(_LOOP_POINTS) / _LOOP_POINTS
    cos, sin = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    works, ways = [], []
    for structure in structures:
        first, second = _random_ways(2, len(structure), rng)
        positions = structure.positions + cos * first + sin * second
        found = np.array(evaluated_forces(forces, _at(structure, positions)))
        powers = np.einsum("knx,knx->k", found, cos * second - sin * first)
        step = 2.0 * np.pi / _LOOP_POINTS
        works.append(step * powers.sum())
        ways.append(step * np.abs(powers).sum())
    return LoopWork(np.array(works), np.array(ways))


def force_derivatives(forces: ForceModel, structure: Structure) -> NDArray[np.float64]:
    """Differentiate the forces, ``(3 n, 3 n)`` eV/Å², row: force, column: coordinate."""
    size = 3 * len(structure)
    shifts = _DISPLACEMENT_A * np.eye(size).reshape(size, -1, 3)
    found = [
        np.array(evaluated_forces(forces, _at(structure, structure.positions + sign * shifts)))
        for sign in (1.0, -1.0)
    ]
    columns = (found[0] - found[1]).reshape(size, size) / (2.0 * _DISPLACEMENT_A)
    return np.asarray(columns.T)


def antisymmetry(forces: ForceModel, structures: Sequence[Structure]) -> Estimate:
    """Antisymmetric part λ = ‖(J − Jᵀ)/2‖ / ‖J‖ of the derivatives J of the forces.

    0 for the slope of an energy, 0.7 for a random matrix.
    """
    derivatives = np.array([force_derivatives(forces, structure) for structure in structures])
    odd = 0.5 * (derivatives - derivatives.transpose(0, 2, 1))
    return jackknife(relative_size, odd, derivatives)


# ---- symmetries ------------------------------------------------------------------------------


def net_force(forces: ForceModel, structures: Sequence[Structure]) -> Estimate:
    """Sum of the forces on all atoms, in percent of √(Σ F²), root mean square."""
    found = np.array(evaluated_forces(forces, structures))
    sizes = np.sqrt(np.square(found).sum(axis=(1, 2)))
    sums = np.linalg.norm(found.sum(axis=1), axis=-1)
    return jackknife(relative_size, sums, sizes, factor=PERCENT)


def net_torque(forces: ForceModel, structures: Sequence[Structure]) -> Estimate:
    """Sum of the torques about the centre, in percent of √(Σ (r F)²), root mean square."""
    found = np.array(evaluated_forces(forces, structures))
    positions = np.array([structure.positions for structure in structures])
    arms = positions - positions.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(arms, axis=-1) * np.linalg.norm(found, axis=-1)
    sums = np.linalg.norm(np.cross(arms, found).sum(axis=1), axis=-1)
    return jackknife(relative_size, sums, np.sqrt(np.square(lengths).sum(axis=1)), factor=PERCENT)


def translation_defect(forces: ForceModel, structures: Sequence[Structure]) -> Estimate:
    """Change of the forces 140 Å from where the molecule is, in percent of the forces."""
    here = np.array(evaluated_forces(forces, structures))
    away = [replace(one, positions=one.positions + np.array(_SHIFT_A)) for one in structures]
    there = np.array(evaluated_forces(forces, away))
    return jackknife(relative_size, there - here, here, factor=PERCENT)


@dataclass(frozen=True)
class Turned:
    """Forces and energies of turned copies of structures.

    Attributes
    ----------
    forces
        ``(k, 60, n, 3)`` eV/Å, turned back.
    energies
        ``(k, 60)`` eV; NaN for a force model without.
    """

    forces: FloatArray
    energies: NDArray[np.float64]

    @property
    def deviations(self) -> FloatArray:
        """Forces less their mean over the rotations, ``(k, 60, n, 3)`` eV/Å."""
        return np.asarray(self.forces - self.forces.mean(axis=1, keepdims=True))

    @property
    def force_percent(self) -> Estimate:
        """Root mean square deviation of the forces from their mean, in percent of the forces."""
        return jackknife(relative_size, self.deviations, self.forces, factor=PERCENT)

    @property
    def energy_meV(self) -> Estimate:  # noqa: N802
        """Root mean square deviation of the energies from their mean in meV."""
        spreads = self.energies - self.energies.mean(axis=1, keepdims=True)
        return jackknife(root_mean_square, spreads, factor=1.0 / units.MEV)


def turned(forces: ForceModel, structures: Sequence[Structure], *, energies: bool) -> Turned:
    """Evaluate structures in the 60 orientations of the 600-cell."""
    properties = ("energy", "forces") if energies else ("forces",)
    results = [forces.evaluate(turned_copies(one), properties) for one in structures]
    return Turned(
        np.array([turned_back(each) for each in results]),
        np.array([[math.nan if r.energy is None else r.energy for r in each] for each in results]),
    )


# ---- smoothness ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stretch:
    """The force along one bond that is stretched.

    Attributes
    ----------
    name
        Name of the bond.
    lengths
        ``(m,)`` Å, equidistant.
    pulls
        ``(m,)`` eV/Å, what the forces do per Å of stretch: positive where they lengthen the bond.
    """

    name: str
    lengths: NDArray[np.float64]
    pulls: NDArray[np.float64]

    @property
    def roughness_meV_per_A(self) -> float:  # noqa: N802
        """Largest sixth difference of the force, scaled such that it is the size of noise.

        A smooth force has next to none; a step of height s has 0.33 s, noise of standard deviation
        s has s on average.
        """
        differences = np.diff(self.pulls, _ORDER) / math.sqrt(math.comb(2 * _ORDER, _ORDER))
        return float(np.abs(differences).max()) / units.MEV

    @property
    def extra_minima(self) -> int:
        """Minima of the energy beyond the first, by the signs of the force."""
        signs = np.sign(self.pulls)
        return max(0, int(np.count_nonzero((signs[:-1] > 0) & (signs[1:] <= 0))) - 1)


def stretches(forces: ForceModel, structure: Structure) -> list[Stretch]:
    """Stretch one bond of each kind, from 0.15 Å shorter to 0.25 Å longer in steps of 0.01 Å.

    The parts of the molecule on both sides of the bond move as they are; if it belongs to a ring,
    its two atoms move alone.

    Parameters
    ----------
    forces
        Force model.
    structure
        A minimum of the energy.
    """
    bonds = find_bonds(ase.Atoms(structure.numbers, structure.positions))
    kinds: dict[tuple[int, ...], int] = {}
    for bond, pair in enumerate(bonds.pairs):
        kinds.setdefault(tuple(sorted(structure.numbers[pair].tolist())), bond)
    steps = np.arange(round((_STRETCH_A[1] - _STRETCH_A[0]) / _SPACING_A) + 1)
    changes = _STRETCH_A[0] + _SPACING_A * steps
    found = []
    for bond in kinds.values():
        way = _stretch_way(structure, bonds.pairs, bond)
        positions = structure.positions + changes[:, None, None] * way
        values = np.array(evaluated_forces(forces, _at(structure, positions)))
        pulls = np.einsum("knx,nx->k", values, way)
        name = bonds.label(bond, structure.numbers)
        found.append(Stretch(name, bonds.lengths[bond] + changes, pulls))
    return found


def _stretch_way(structure: Structure, pairs: NDArray[np.int64], bond: int) -> FloatArray:
    """Displacements ``(n, 3)`` per Å of a bond."""
    first, second = pairs[bond].tolist()
    parts = fragments_of(len(structure), np.delete(pairs, bond, axis=0).tolist())
    side = parts == parts[first]
    other = ~side
    if side[second]:
        side, other = (np.arange(len(structure)) == end for end in (first, second))
    arm = structure.positions[second] - structure.positions[first]
    way = np.zeros((len(structure), 3))
    way[side] = -0.5 * arm / np.linalg.norm(arm)
    way[other] = 0.5 * arm / np.linalg.norm(arm)
    return way
