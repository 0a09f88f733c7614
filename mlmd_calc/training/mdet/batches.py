"""Batches of labelled structures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.errors import InputError
from mlmd_calc.training.batches import (
    BatchStream,
    padded_size,
    random_orientations,
    spread_batches,
)


class Batch(NamedTuple):
    """Structures padded to one size, centred, in eV and Å.

    Attributes
    ----------
    positions, forces
        ``(b, n, 3)`` float64 Å and eV/Å.
    energies
        ``(b,)`` float64 eV, atomic reference energies subtracted.
    numbers
        ``(b, n)`` int64, 0 for padding.
    mask
        ``(b, n)`` bool, or None if no molecule is padded.
    charge, multiplicity
        ``(b,)`` int64.
    """

    positions: Tensor
    forces: Tensor
    energies: Tensor
    numbers: Tensor
    mask: Tensor | None
    charge: Tensor
    multiplicity: Tensor


def labels(molecule: MoleculeFrames, key: str) -> NDArray[np.floating]:
    """Return the "energies" or "forces" of a molecule.

    Raises
    ------
    InputError
        If it has none.
    """
    values: NDArray[np.floating] | None = getattr(molecule, key)
    if values is None:
        remedy = molecule.where_labels_are(
            "training needs energies in eV and forces in eV/Å of every frame, and mlmd data info "
            "shows which of them were found"
        )
        raise InputError(f"molecule {molecule.name!r} has no {key}; {remedy}")
    return values


class StructureTable:
    """Labelled structures grouped by padded size, held in memory.

    Parameters
    ----------
    frames
        Molecules with energies and forces.
    atomic_energies
        Reference energy of each element in eV.
    size_step
        Molecules are padded to a multiple of this many atoms.

    Raises
    ------
    InputError
        If a molecule has no energies or no forces.
    """

    def __init__(
        self,
        frames: Sequence[MoleculeFrames],
        atomic_energies: dict[int, float],
        size_step: int = 1,
    ) -> None:
        groups: dict[int, list[MoleculeFrames]] = {}
        for molecule in frames:
            size = padded_size(len(molecule.numbers), size_step)
            groups.setdefault(size, []).append(molecule)
        self.groups = {size: _stack(groups[size], size, atomic_energies) for size in sorted(groups)}

    @property
    def counts(self) -> dict[int, int]:
        """Number of structures by padded size."""
        return {size: len(group.energies) for size, group in self.groups.items()}

    def batch(self, size: int, index: NDArray[np.int64]) -> Batch:
        """Structures of one size group, by index into the group."""
        rows = torch.from_numpy(index)
        return _mapped(self.groups[size], lambda column: column[rows])

    def spread(self, count: int, pairs_per_batch: int) -> Iterator[Batch]:
        """About ``count`` structures, evenly spread over each size group, without augmentation.

        Parameters
        ----------
        count
            Wanted number of structures, shared between the groups by their sizes.
        pairs_per_batch
            Batches hold at most this many atom pairs, but at least one structure.
        """
        for size, index in spread_batches(
            self.counts, count, lambda size: pairs_per_batch // size**2
        ):
            yield self.batch(size, index)


def _stack(molecules: list[MoleculeFrames], size: int, references: dict[int, float]) -> Batch:
    columns: dict[str, list[NDArray[np.generic]]] = {
        key: [] for key in ("positions", "forces", "energies", "numbers", "charge", "multiplicity")
    }
    for molecule in molecules:
        f, n = molecule.positions.shape[:2]
        pad = ((0, 0), (0, size - n), (0, 0))
        energies = labels(molecule, "energies") - sum(references[int(z)] for z in molecule.numbers)
        positions = molecule.positions.astype(np.float64)
        positions = positions - positions.mean(axis=1, keepdims=True)
        columns["positions"].append(np.pad(positions, pad))
        columns["forces"].append(np.pad(labels(molecule, "forces").astype(np.float64), pad))
        columns["energies"].append(energies)
        numbers = np.pad(molecule.numbers.astype(np.int64), (0, size - n))
        columns["numbers"].append(np.broadcast_to(numbers, (f, size)))
        columns["charge"].append(np.full(f, molecule.charge, dtype=np.int64))
        columns["multiplicity"].append(np.full(f, molecule.multiplicity, dtype=np.int64))
    stacked = {key: torch.from_numpy(np.concatenate(parts)) for key, parts in columns.items()}
    mask = stacked["numbers"] != 0
    return Batch(**stacked, mask=None if bool(mask.all()) else mask)


class TrainingBatches(BatchStream[Batch]):
    """Stream of labelled structures, each in several orientations.

    Parameters
    ----------
    table
        Structures to draw from.
    pairs_per_batch
        Target number of atom pairs of a batch, copies included.
    copies
        Rotated copies of every structure.
    seed, start, rank, world_size
        See :class:`BatchStream`.
    """

    def __init__(
        self, table: StructureTable, *, pairs_per_batch: int, copies: int, **position: int
    ) -> None:
        counts = table.counts
        targets = {size: pairs_per_batch / (size * size * copies) for size in counts}
        super().__init__(counts, targets, **position)
        self.table = table
        self.copies = copies

    def make(self, size: int, index: NDArray[np.int64], generator: torch.Generator) -> Batch:
        """Structures of one size, each in several random orientations."""
        return augment(self.table.batch(size, index), self.copies, generator)


def augment(batch: Batch, copies: int, generator: torch.Generator) -> Batch:
    """Repeat every structure and rotate, and with probability ½ reflect, each copy."""
    copied = _mapped(batch, lambda column: column.repeat_interleave(copies, dim=0))
    transform = random_orientations(len(copied.energies), generator)
    return copied._replace(positions=copied.positions @ transform, forces=copied.forces @ transform)


def _mapped(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    return Batch(*(None if column is None else change(column) for column in batch))  # type: ignore[arg-type]
