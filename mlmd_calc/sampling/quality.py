"""What is wrong with sampled frames: bonds, angles, mirror images, peptide bonds, contacts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlmd_calc.biomolecules import BondedStructure, MolecularSystem
from mlmd_calc.biomolecules.limits import ANGLE_LIMIT, BOND_LIMIT, GeometryLimits
from mlmd_calc.geometry.stereochemistry import bond_angles, chirality_flips, dihedrals

FAULTS: Final = ("flipped", "bonds", "angles", "isomerised", "contacts")
"""Names of what may be wrong with a frame."""


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
        self._limits = GeometryLimits(system, hydrogens=hydrogens)
        self._reference_omega = dihedrals(system.reference[None], system.omega)

    def __call__(self, frames: NDArray[np.float64]) -> dict[str, NDArray[np.bool_]]:
        """Tell of frames ``(f, a, 3)`` Å which are wrong, ``(f,)`` bool each.

        Returns
        -------
        dict
            By `FAULTS`: a tetrahedral carbon atom is its mirror image; a bond, an angle, a peptide
            bond (cis or trans) is not that of the reference; atoms are too near.
        """
        system = self._system
        limits = self._limits
        angles = np.abs(bond_angles(frames, limits.angles) - limits.reference_angles)
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
        found: NDArray[np.float64] = np.abs(self._limits.bonds.deviations(frames)).max(
            axis=1, initial=0.0
        )
        return found

    def _contacts(self, frames: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether atoms that are three bonds apart or more are too near."""
        limits = self._limits
        whole = self._system.restore(frames, self._structure.positions)[:, limits.inside]
        return np.array([len(limits.contacts(frame)[0]) > 0 for frame in whole], dtype=np.bool_)


class _FaultCounts:
    """Counts how many frames had each of `FAULTS`."""

    def __init__(
        self, system: MolecularSystem, structure: BondedStructure, *, hydrogens: bool = True
    ) -> None:
        self._find = FrameFaults(system, structure, hydrogens=hydrogens)
        self.faults = dict.fromkeys(FAULTS, 0)

    def _count(self, frames: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Count the faults of frames ``(f, a, 3)`` Å, and tell which have any, ``(f,)``."""
        found = self._find(frames)
        self.faults = {name: self.faults[name] + int(found[name].sum()) for name in FAULTS}
        return np.asarray(np.any(list(found.values()), axis=0))


class FrameGuard(_FaultCounts):
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

    refused = 0

    def __call__(self, frames: Tensor) -> Tensor:
        """Tell which frames ``(f, a, 3)`` Å are acceptable, as ``(f,)`` bool."""
        refused = self._count(frames.numpy())
        self.refused += int(refused.sum())
        return torch.from_numpy(~refused)

    def state_dict(self) -> dict[str, Any]:
        """Return the counts as JSON-able values."""
        return {"refused": self.refused, "faults": self.faults}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.refused, self.faults = state["refused"], dict(state["faults"])


class FrameQuality(_FaultCounts):
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
    frames = unsound = 0
    bond_deviation = 0.0

    def add(self, frames: NDArray[np.float64]) -> None:
        """Look at frames ``(f, a, 3)`` Å."""
        self.frames += len(frames)
        self.unsound += int(self._count(frames).sum())
        largest = float(self._find.bond_deviations(frames).max(initial=0.0))
        self.bond_deviation = max(self.bond_deviation, largest)

    def state_dict(self) -> dict[str, Any]:
        """Return the counts as JSON-able values."""
        return {name: getattr(self, name) for name in self._COUNTS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        for name in self._COUNTS:
            setattr(self, name, state[name])
