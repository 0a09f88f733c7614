"""What is wrong with sampled frames: mirror images, clashes, stretched bonds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.analysis.stereochemistry import chirality_flips, clashes
from mlmd_calc.data.biomolecules import MolecularSystem


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
        self._lengths = self._bond_lengths(system.reference)
        self.frames = self.flipped = self.clashing = 0
        self.bond_deviation = 0.0

    def _bond_lengths(self, frames: NDArray[np.float64]) -> NDArray[np.float64]:
        first, second = self._system.bonds.T
        lengths: NDArray[np.float64] = np.linalg.norm(
            frames[..., first, :] - frames[..., second, :], axis=-1
        )
        return lengths

    def add(self, frames: NDArray[np.float64]) -> None:
        """Look at frames ``(f, a, 3)`` Å."""
        system = self._system
        flips = chirality_flips(frames, system.reference, system.chirality_centres)
        deviations = np.abs(self._bond_lengths(frames) - self._lengths)
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
