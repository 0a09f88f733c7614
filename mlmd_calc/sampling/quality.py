"""What is wrong with sampled frames: mirror images, clashes, broken bonds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlmd_calc.biomolecules import MolecularSystem
from mlmd_calc.bonds import Bonds, bond_lengths
from mlmd_calc.stereochemistry import chirality_flips, clashes

BOND_LIMIT: Final = 0.5
"""Å; the guards of jumps refuse as large a change of a bond."""


class FrameGuard:
    """Refuses frames that no simulation would visit, from heavy atoms.

    A frame is refused if a tetrahedral carbon atom has become its mirror image, two atoms are
    nearer than 1.1 Å, or a bond differs by more than 0.5 Å from the reference structure.

    Parameters
    ----------
    system
        The molecule; its reference structure is right by definition.

    Attributes
    ----------
    refused
        Frames refused so far.
    """

    def __init__(self, system: MolecularSystem) -> None:
        self._system = system
        self._bonds = Bonds(system.bonds, bond_lengths(system.reference, system.bonds))
        self.refused = 0

    def __call__(self, frames: Tensor) -> Tensor:
        """Tell which frames ``(f, a, 3)`` Å are acceptable, as ``(f,)`` bool."""
        system, positions = self._system, frames.numpy()
        flips = chirality_flips(positions, system.reference, system.chirality_centres)
        deviations = np.abs(self._bonds.deviations(positions)).max(axis=1, initial=0.0)
        accepted = (flips == 0) & (deviations <= BOND_LIMIT) & (clashes(positions) == 0)
        self.refused += int((~accepted).sum())
        return torch.from_numpy(accepted)


class FrameQuality:
    """Counts over all frames of all trajectories, from heavy atoms.

    Parameters
    ----------
    system
        The molecule; its reference structure is right by definition.

    Attributes
    ----------
    frames
        Frames seen.
    flipped, clashing
        How many of them have a tetrahedral carbon atom that is its mirror image, or atoms nearer
        than 1.1 Å.
    bond_deviation
        Largest difference in Å of any bond from its length in the reference structure.
    """

    _COUNTS = ("frames", "flipped", "clashing", "bond_deviation")

    def __init__(self, system: MolecularSystem) -> None:
        self._system = system
        self._bonds = Bonds(system.bonds, bond_lengths(system.reference, system.bonds))
        self.frames = self.flipped = self.clashing = 0
        self.bond_deviation = 0.0

    def add(self, frames: NDArray[np.float64]) -> None:
        """Look at frames ``(f, a, 3)`` Å."""
        system = self._system
        flips = chirality_flips(frames, system.reference, system.chirality_centres)
        deviations = np.abs(self._bonds.deviations(frames))
        self.frames += len(frames)
        self.flipped += int((flips > 0).sum())
        self.clashing += int((clashes(frames) > 0).sum())
        self.bond_deviation = max(self.bond_deviation, float(deviations.max(initial=0.0)))

    def state_dict(self) -> dict[str, Any]:
        """Return the counts as JSON-able values."""
        return {name: getattr(self, name) for name in self._COUNTS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        for name in self._COUNTS:
            setattr(self, name, state[name])
