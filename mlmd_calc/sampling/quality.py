"""What is wrong with sampled frames: bonds, angles, mirror images, peptide bonds, contacts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from ase.data import vdw_radii
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.spatial import KDTree
from torch import Tensor

from mlmd_calc.biomolecules import BondedStructure, MolecularSystem
from mlmd_calc.geometry.bonds import Bonds, bond_lengths, neighbour_lists
from mlmd_calc.geometry.stereochemistry import bond_angles, chirality_flips, dihedrals

BOND_LIMIT: Final = 0.2
"""Å; largest change of a bond between heavy atoms from the start. Between frames of molecular
dynamics of peptides at 300 K it is 0.17 Å."""

ANGLE_LIMIT: Final = 25.0
"""Degrees; largest change of an angle between heavy atoms from the start. Between frames of
molecular dynamics of peptides at 300 K it is 19°."""

CONTACT_LIMITS: Final = (0.7, 0.65)
"""Smallest distance of atoms three bonds apart or more over the sum of their van der Waals radii:
of heavy atoms, and with hydrogens. In molecular dynamics of peptides at 300 K, with hydrogens that
are placed as here, it is 0.78 and, in one frame of 1,000, 0.62."""

FAULTS: Final = ("flipped", "bonds", "angles", "isomerised", "contacts")
"""Names of what may be wrong with a frame."""

_MISSING_RADIUS: Final = 1.7
"""Å; van der Waals radius of elements that have none in ASE's table."""


class FrameFaults:
    """Finds what no simulation would visit.

    Parameters
    ----------
    system
        The molecule; its reference structure is right by definition.
    structure
        The structure that the system was built from; hydrogens are placed as in it.
    hydrogens
        Look at the contacts of hydrogens. Those of relaxed frames have moved to where forces want
        them, as near as in hydrogen bonds.
    """

    def __init__(
        self, system: MolecularSystem, structure: BondedStructure, *, hydrogens: bool = True
    ) -> None:
        self._system = system
        self._structure = structure
        self._bonds = Bonds(system.bonds, bond_lengths(system.reference, system.bonds))
        self._angles = _angles(len(system.atoms), system.bonds)
        self._reference_angles = bond_angles(system.reference[None], self._angles)
        self._reference_omega = dihedrals(system.reference[None], system.omega)
        self._inside = np.setdiff1d(np.arange(system.size), system.left_out)
        if not hydrogens:
            self._inside = self._inside[structure.numbers[self._inside] > 1]
        self._radii = _radii(structure.numbers)
        self._near_pairs = _near_pairs(system)

    def __call__(self, frames: NDArray[np.float64]) -> dict[str, NDArray[np.bool_]]:
        """Tell of frames ``(f, a, 3)`` Å which are wrong, ``(f,)`` bool each.

        Returns
        -------
        dict
            By `FAULTS`: a tetrahedral carbon atom is its mirror image; a bond, an angle, a peptide
            bond (cis or trans) is not that of the reference; atoms are too near.
        """
        system = self._system
        angles = np.abs(bond_angles(frames, self._angles) - self._reference_angles)
        turned = np.cos(dihedrals(frames, system.omega) - self._reference_omega) < 0.0
        return {
            "flipped": chirality_flips(frames, system.reference, system.chirality_centres) > 0,
            "bonds": self.bond_deviations(frames) > BOND_LIMIT,
            "angles": angles.max(axis=1, initial=0.0) > ANGLE_LIMIT,
            "isomerised": turned.any(axis=1),
            "contacts": self._contacts(frames),
        }

    def bond_deviations(self, frames: NDArray[np.float64]) -> NDArray[np.float64]:
        """Largest change in Å of a bond of each frame ``(f, a, 3)``: ``(f,)``."""
        found: NDArray[np.float64] = np.abs(self._bonds.deviations(frames)).max(axis=1, initial=0.0)
        return found

    def _contacts(self, frames: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether atoms that are three bonds apart or more are too near."""
        whole = self._system.restore(frames, self._structure.positions)[:, self._inside]
        return np.array([self._has_contact(frame) for frame in whole], dtype=np.bool_)

    def _has_contact(self, positions: NDArray[np.float64]) -> bool:
        reach = 2.0 * self._radii.max() * max(CONTACT_LIMITS)
        pairs = KDTree(positions).query_pairs(reach, output_type="ndarray")
        first, second = self._inside[pairs].min(axis=1), self._inside[pairs].max(axis=1)
        apart = ~np.isin(first * self._system.size + second, self._near_pairs)
        light = (self._structure.numbers[[first, second]] == 1).any(axis=0)
        limits = np.where(light, CONTACT_LIMITS[1], CONTACT_LIMITS[0])
        limits *= self._radii[first] + self._radii[second]
        return bool((bond_lengths(positions, pairs) < limits)[apart].any())


def _radii(numbers: NDArray[np.int64]) -> NDArray[np.float64]:
    radii = vdw_radii[numbers]
    found: NDArray[np.float64] = np.where(np.isfinite(radii), radii, _MISSING_RADIUS)
    return found


def _angles(count: int, bonds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Angles ``(k, 3)`` between bonds, the middle atom second."""
    neighbours = neighbour_lists(count, bonds.tolist())
    found = [
        (first, middle, second)
        for middle, others in enumerate(neighbours)
        for index, first in enumerate(others)
        for second in others[:index]
    ]
    return np.array(found, dtype=np.int64).reshape(-1, 3)


def _near_pairs(system: MolecularSystem) -> NDArray[np.int64]:
    """Pairs of atoms one or two bonds apart, in the engine's order, as smaller × size + larger."""
    hydrogens = np.stack([system.hydrogens.parents, system.hydrogens.hydrogens], axis=1)
    bonds = np.concatenate([system.atoms[system.bonds], hydrogens])
    shape = (system.size, system.size)
    graph = coo_array((np.ones(len(bonds)), (bonds[:, 0], bonds[:, 1])), shape=shape).tocsr()
    graph = graph + graph.T
    first, second = (graph + graph @ graph).nonzero()
    keys: NDArray[np.int64] = (first.astype(np.int64) * system.size + second)[first < second]
    return keys


class FrameGuard:
    """Refuses frames that no simulation would visit.

    A frame is refused if a tetrahedral carbon atom has become its mirror image, a peptide bond has
    turned over, a bond between heavy atoms has changed by more than 0.2 Å or an angle by more than
    25° from the reference structure, or atoms three bonds apart or more, hydrogens as well, are
    nearer than 0.7 (with hydrogens 0.65) times the sum of their van der Waals radii.

    Parameters
    ----------
    system, structure, hydrogens
        See :class:`FrameFaults`.

    Attributes
    ----------
    refused
        Frames refused so far.
    faults
        How many of them had each of `FAULTS`.
    """

    def __init__(
        self, system: MolecularSystem, structure: BondedStructure, *, hydrogens: bool = True
    ) -> None:
        self._find = FrameFaults(system, structure, hydrogens=hydrogens)
        self.refused = 0
        self.faults = dict.fromkeys(FAULTS, 0)

    def __call__(self, frames: Tensor) -> Tensor:
        """Tell which frames ``(f, a, 3)`` Å are acceptable, as ``(f,)`` bool."""
        found = self._find(frames.numpy())
        refused = np.any(list(found.values()), axis=0)
        self.refused += int(refused.sum())
        self.faults = {name: self.faults[name] + int(found[name].sum()) for name in FAULTS}
        return torch.from_numpy(~refused)

    def state_dict(self) -> dict[str, Any]:
        """Return the counts as JSON-able values."""
        return {"refused": self.refused, "faults": self.faults}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.refused, self.faults = state["refused"], dict(state["faults"])


class FrameQuality:
    """Counts over all frames of all trajectories.

    Parameters
    ----------
    system, structure, hydrogens
        See :class:`FrameFaults`.

    Attributes
    ----------
    frames
        Frames seen.
    unsound
        How many of them a :class:`FrameGuard` would refuse.
    faults
        How many have each of `FAULTS`.
    bond_deviation
        Largest difference in Å of any bond from its length in the reference structure.
    """

    _COUNTS = ("frames", "unsound", "faults", "bond_deviation")

    def __init__(
        self, system: MolecularSystem, structure: BondedStructure, *, hydrogens: bool = True
    ) -> None:
        self._find = FrameFaults(system, structure, hydrogens=hydrogens)
        self.frames = self.unsound = 0
        self.faults = dict.fromkeys(FAULTS, 0)
        self.bond_deviation = 0.0

    def add(self, frames: NDArray[np.float64]) -> None:
        """Look at frames ``(f, a, 3)`` Å."""
        found = self._find(frames)
        self.frames += len(frames)
        self.unsound += int(np.any(list(found.values()), axis=0).sum())
        self.faults = {name: self.faults[name] + int(found[name].sum()) for name in FAULTS}
        largest = float(self._find.bond_deviations(frames).max(initial=0.0))
        self.bond_deviation = max(self.bond_deviation, largest)

    def state_dict(self) -> dict[str, Any]:
        """Return the counts as JSON-able values."""
        return {name: getattr(self, name) for name in self._COUNTS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        for name in self._COUNTS:
            setattr(self, name, state[name])
