"""Hydrogens carried along with the heavy atoms they are near to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_LEAST_ROTATION: Final = 1e-8
"""Weight of no rotation at all against a direction of a neighbour; decides only what those leave
open, such as the turn of methanol's groups about its C-O bond."""


@dataclass(frozen=True)
class HydrogenFrames:
    """The heavy atoms each hydrogen moves with.

    A hydrogen keeps its place relative to its parent and the directions from there to the heavy
    neighbours; where these are fewer than two, to the neighbours' neighbours too. So bond lengths
    to parents are kept exactly, angles as well as the heavy atoms keep theirs, and rotatable groups
    their dihedral angles.

    Attributes
    ----------
    hydrogens
        ``(h,)`` indices in the engine's order, as all below.
    parents
        ``(h,)`` the heavy atoms they are bonded to.
    neighbours
        ``(h, m)`` the heavy atoms that fix the frame; filled up with the parent.
    """

    hydrogens: NDArray[np.int64]
    parents: NDArray[np.int64]
    neighbours: NDArray[np.int64]

    @classmethod
    def from_bonds(
        cls,
        parents: Sequence[tuple[int, int]],
        heavy_neighbours: Sequence[Sequence[int]],
    ) -> HydrogenFrames:
        """Choose the frames."""
        chosen = []
        for _, parent in parents:
            near = list(heavy_neighbours[parent])
            if len(near) < 2:
                near += [k for j in near for k in heavy_neighbours[j] if k != parent]
            chosen.append(near)
        width = max(map(len, chosen), default=0)
        pairs = np.array(parents, dtype=np.int64).reshape(-1, 2)
        filled = [
            near + [parent] * (width - len(near))
            for near, (_, parent) in zip(chosen, parents, strict=True)
        ]
        neighbours = np.array(filled, dtype=np.int64).reshape(len(parents), width)
        return cls(pairs[:, 0], pairs[:, 1], neighbours)

    def place(
        self, moved: NDArray[np.float64], reference: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Find where the hydrogens are after the heavy atoms have moved.

        Parameters
        ----------
        moved
            ``(..., n, 3)`` Å, new heavy atoms; what it holds for hydrogens is not looked at.
        reference
            ``(..., n, 3)`` Å, structures with hydrogens, with leading axes that broadcast.

        Returns
        -------
        ndarray
            ``(..., h, 3)`` Å.
        """
        after, before = self._directions(moved), self._directions(reference)
        covariance = np.swapaxes(after, -1, -2) @ before + _LEAST_ROTATION * np.eye(3)
        u, _, vh = np.linalg.svd(covariance)
        # A reflection would bring hydrogens closest to their neighbours' mirror image.
        u[..., 2] *= np.sign(np.linalg.det(u @ vh))[..., None]
        arms = reference[..., self.hydrogens, :] - reference[..., self.parents, :]
        placed: NDArray[np.float64] = (
            moved[..., self.parents, :] + ((u @ vh) @ arms[..., None])[..., 0]
        )
        return placed

    def _directions(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return unit vectors ``(..., h, m, 3)`` to the neighbours, zero where filled up."""
        vectors = positions[..., self.neighbours, :] - positions[..., self.parents, None, :]
        lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
        units: NDArray[np.float64] = vectors / np.where(lengths > 0, lengths, 1.0)
        return units
