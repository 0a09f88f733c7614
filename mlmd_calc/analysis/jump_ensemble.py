"""What runs of one small molecule sampled, with jumps or without, and how alike two of them are.

Temperatures are kinetic and count all 3 n velocities, which is right for runs whose thermostat acts
on all of them (Langevin). Distributions are those of internal coordinates, so frames need no
superposition, and coordinates that exchange of like atoms mixes are taken together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import ase
import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.analysis.statistics import FEWEST_BLOCKS, Mean, block_average
from mlmd_calc.errors import InputError
from mlmd_calc.geometry.bonds import Bonds, find_bonds, neighbour_lists
from mlmd_calc.geometry.stereochemistry import dihedrals, jensen_shannon_divergence

if TYPE_CHECKING:
    from mlmd_calc.propagation import State

ALL_ATOMS: Final = "all atoms"
BINS: Final = 50
"""Bins over the range of a bond in the reference, or over the full turn of a torsion."""
_STRAIGHT: Final = 0.17
"""Sine of an angle (10° from straight) below which torsions about its arms have no meaning."""

Distributions = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Sample:
    """Frames of one molecule, or of replicas of it that moved side by side.

    Attributes
    ----------
    numbers
        Atomic numbers, ``(n,)``.
    masses
        ``(n,)`` amu.
    times_fs
        ``(f,)`` fs, equidistant.
    positions, velocities
        ``(f, r, n, 3)`` Å and Å/fs of r replicas.

    Raises
    ------
    InputError
        If shapes do not fit together or there is no frame.
    """

    numbers: NDArray[np.int64]
    masses: NDArray[np.float64]
    times_fs: NDArray[np.float64]
    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]

    def __post_init__(self) -> None:
        shape, n = self.positions.shape, len(self.numbers)
        fits = len(shape) == 4 and shape[0] == len(self.times_fs) and shape[2:] == (n, 3)
        if not fits or self.velocities.shape != shape or len(self.masses) != n or 0 in shape:
            raise InputError(
                f"{n} atoms with {len(self.masses)} masses at {len(self.times_fs)} times have "
                f"positions of shape {shape} and velocities of shape {self.velocities.shape}; "
                "both must be (frames, replicas, atoms, 3), none of them zero"
            )

    @classmethod
    def from_states(cls, frames: Sequence[Sequence[State]]) -> Sample:
        """Take frames of states, of the same replicas in each."""
        first = frames[0][0]
        return cls(
            numbers=np.array(first.numbers),
            masses=np.array(first.masses),
            times_fs=np.array([states[0].time for states in frames]),
            positions=np.array([[state.positions for state in states] for states in frames]),
            velocities=np.array([[state.velocities for state in states] for states in frames]),
        )

    def __len__(self) -> int:
        return len(self.times_fs)

    def part(self, frames: slice) -> Sample:
        """Return some of the frames."""
        return Sample(
            self.numbers,
            self.masses,
            self.times_fs[frames],
            self.positions[frames],
            self.velocities[frames],
        )

    def without_first(self, fraction: float) -> Sample:
        """Leave out the first part, a number from 0 to 1, but never the last frame."""
        return self.part(slice(min(int(fraction * len(self)), len(self) - 1), None))


def kinetic_temperatures(
    sample: Sample, atoms: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Kinetic temperature of each frame and replica, ``(f, r)`` K.

    Parameters
    ----------
    sample
        Frames.
    atoms
        ``(n,)`` which atoms count; None for all.
    """
    chosen = np.ones(len(sample.numbers), dtype=bool) if atoms is None else atoms
    squares = np.square(sample.velocities[:, :, chosen] / units.FS).sum(axis=-1)
    twice: NDArray[np.float64] = squares @ sample.masses[chosen]
    return twice / (3 * int(chosen.sum()) * units.KB)


def mean_temperatures(sample: Sample) -> dict[str, Mean]:
    """Mean kinetic temperature in K of :data:`ALL_ATOMS` and of each element.

    The standard error is that of the block average over the frames of one molecule, or of the
    scatter among replicas; not a number where there are too few of them.
    """
    groups = {ALL_ATOMS: np.ones(len(sample.numbers), dtype=bool)}
    for z in np.unique(sample.numbers):
        groups[chemical_symbols[z]] = sample.numbers == z
    return {name: _mean(kinetic_temperatures(sample, atoms)) for name, atoms in groups.items()}


def _mean(values: NDArray[np.float64]) -> Mean:
    replicas = values.shape[1]
    independent = len(values) if replicas == 1 else replicas
    if independent < FEWEST_BLOCKS:
        return Mean(float(values.mean()), float("nan"), resolved=False)
    if replicas == 1:
        return block_average(values[:, 0])
    each = values.mean(axis=0)
    return Mean(float(each.mean()), float(each.std(ddof=1) / np.sqrt(replicas)), resolved=True)


@dataclass(frozen=True, eq=False)
class InternalCoordinates:
    """Bonds and torsions of a molecule.

    Attributes
    ----------
    numbers
        Atomic numbers, ``(n,)``.
    bonds
        Bonds with their reference lengths.
    torsions
        Name, e.g. ``"C-C1-O2-H"``, to indices ``(k, 4)``: the torsions about one bond between atoms
        of the same elements.
    """

    numbers: NDArray[np.int64]
    bonds: Bonds
    torsions: Mapping[str, NDArray[np.int64]]

    @classmethod
    def of(cls, atoms: ase.Atoms) -> InternalCoordinates:
        """Find the bonds and torsions of a structure near equilibrium.

        Torsions about a bond with a straight angle at one of its ends are left out.
        """
        bonds = find_bonds(atoms)
        return cls(atoms.numbers.astype(np.int64), bonds, _torsions(atoms, bonds))

    def bond_lengths(self, sample: Sample) -> Distributions:
        """Lengths in Å of all bonds of each pair of elements, e.g. ``"C-H"``, over all frames."""
        lengths = self.bonds.deviations(sample.positions) + self.bonds.lengths
        pairs = self.numbers[self.bonds.pairs].tolist()
        kinds = np.array(["-".join(sorted(chemical_symbols[z] for z in pair)) for pair in pairs])
        return {str(kind): lengths[..., kinds == kind].ravel() for kind in np.unique(kinds)}

    def torsion_angles(self, sample: Sample) -> Distributions:
        """Angles in radians of the torsions over all frames, by their names."""
        frames = sample.positions.reshape(-1, len(self.numbers), 3)
        return {name: dihedrals(frames, atoms).ravel() for name, atoms in self.torsions.items()}


def _torsions(atoms: ase.Atoms, bonds: Bonds) -> dict[str, NDArray[np.int64]]:
    neighbours = neighbour_lists(len(atoms), bonds.pairs.tolist())

    def ends(centre: int, other: int) -> list[int]:
        """Neighbours of an atom of the middle bond, none of them in line with it."""
        near = [i for i in neighbours[centre] if i != other]
        angles = [np.deg2rad(atoms.get_angle(i, centre, other)) for i in near]
        return near if all(np.sin(angle) > _STRAIGHT for angle in angles) else []

    found: dict[str, list[list[int]]] = {}
    for bond, (b, c) in enumerate(bonds.pairs.tolist()):
        middle = bonds.label(bond, atoms.numbers)
        for a in ends(b, c):
            for d in ends(c, b):
                if a != d:
                    name = f"{atoms[a].symbol}-{middle}-{atoms[d].symbol}"
                    found.setdefault(name, []).append([a, b, c, d])
    return {name: np.array(indices, dtype=np.int64) for name, indices in found.items()}


@dataclass(frozen=True)
class Divergences:
    """Jensen-Shannon divergences in bits: 0 for distributions that are alike, 1 for disjoint ones.

    Attributes
    ----------
    bonds
        By pair of elements.
    torsions
        By name.
    """

    bonds: dict[str, float]
    torsions: dict[str, float]


def divergences(
    coordinates: InternalCoordinates,
    reference: Sample,
    sample: Sample,
    *,
    binned: Sample | None = None,
) -> Divergences:
    """Compare distributions of bonds and torsions with those of a reference.

    Few frames differ by chance, as the halves of a reference do.

    Parameters
    ----------
    coordinates
        What to compare.
    reference, sample
        Frames to compare.
    binned
        Frames whose range of bond lengths is cut into bins; None: the reference. What lies beyond
        it on either side has one bin more, so that a few atoms gone astray do not make all bins
        coarse.
    """
    lengths, a, b = (
        coordinates.bond_lengths(frames)
        for frames in (reference if binned is None else binned, reference, sample)
    )
    bonds = {name: _divergence(a[name], b[name], _edges(lengths[name])) for name in lengths}
    turn = np.linspace(-np.pi, np.pi, BINS + 1)
    a, b = (coordinates.torsion_angles(frames) for frames in (reference, sample))
    return Divergences(bonds, {name: _divergence(a[name], b[name], turn) for name in a})


def _edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    # The largest value is inside.
    return np.linspace(values.min(), np.nextafter(values.max(), np.inf), BINS + 1)


def _divergence(
    first: NDArray[np.float64], second: NDArray[np.float64], edges: NDArray[np.float64]
) -> float:
    counts = (
        np.bincount(np.digitize(values, edges), minlength=len(edges) + 1).astype(np.float64)
        for values in (first, second)
    )
    return jensen_shannon_divergence(*counts) / math.log(2.0)
