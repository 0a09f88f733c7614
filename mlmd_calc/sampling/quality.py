"""What is wrong with sampled frames: mirror images, clashes, broken bonds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlmd_calc.biomolecules import MolecularSystem
from mlmd_calc.bonds import BOND_LIMIT, Bonds, bond_lengths
from mlmd_calc.stereochemistry import chirality_flips, clashes


class _Faults(NamedTuple):
    """What is wrong with frames.

    Attributes
    ----------
    flipped, clashing
        ``(f,)`` bool: a tetrahedral carbon atom is its mirror image; atoms are nearer than 1.1 Å.
    bond_deviations
        ``(f,)`` Å, largest difference of a bond from its length in the reference structure.
    """

    flipped: NDArray[np.bool_]
    clashing: NDArray[np.bool_]
    bond_deviations: NDArray[np.float64]


def _faults(system: MolecularSystem, frames: NDArray[np.float64]) -> _Faults:
    """Compare frames ``(f, a, 3)`` Å with the reference structure, which is right by definition."""
    bonds = Bonds(system.bonds, bond_lengths(system.reference, system.bonds))
    return _Faults(
        chirality_flips(frames, system.reference, system.chirality_centres) > 0,
        clashes(frames) > 0,
        np.abs(bonds.deviations(frames)).max(axis=1, initial=0.0),
    )


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
        self.refused = 0

    def __call__(self, frames: Tensor) -> Tensor:
        """Tell which frames ``(f, a, 3)`` Å are acceptable, as ``(f,)`` bool."""
        found = _faults(self._system, frames.numpy())
        accepted = ~found.flipped & ~found.clashing & (found.bond_deviations <= BOND_LIMIT)
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
        self.frames = self.flipped = self.clashing = 0
        self.bond_deviation = 0.0

    def add(self, frames: NDArray[np.float64]) -> None:
        """Look at frames ``(f, a, 3)`` Å."""
        found = _faults(self._system, frames)
        self.frames += len(frames)
        self.flipped += int(found.flipped.sum())
        self.clashing += int(found.clashing.sum())
        largest = float(found.bond_deviations.max(initial=0.0))
        self.bond_deviation = max(self.bond_deviation, largest)

    def state_dict(self) -> dict[str, Any]:
        """Return the counts as JSON-able values."""
        return {name: getattr(self, name) for name in self._COUNTS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        for name in self._COUNTS:
            setattr(self, name, state[name])
