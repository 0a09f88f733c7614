"""Size-bucketed batches of labelled structures in a reproducible order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlmd_calc.analysis.accuracy import spread_index
from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.errors import InputError
from mlmd_calc.potential.rotations import random_reflections, random_rotations

T = TypeVar("T")


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
        others = molecule.metadata.get("left_out")
        remedy = f"its file has {others}" if others else "label it first (mlmd data generate)"
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
            size = math.ceil(len(molecule.numbers) / size_step) * size_step
            groups.setdefault(size, []).append(molecule)
        self.groups = {size: _stack(groups[size], size, atomic_energies) for size in sorted(groups)}

    def __len__(self) -> int:
        return sum(len(group.energies) for group in self.groups.values())

    def batch(self, size: int, index: NDArray[np.int64]) -> Batch:
        """Structures of one size group, by index into the group."""
        group = self.groups[size]
        rows = torch.from_numpy(index)
        return Batch(*(None if column is None else column[rows] for column in group))  # type: ignore[arg-type]

    def spread(self, count: int, pairs_per_batch: int) -> Iterator[Batch]:
        """About ``count`` structures, evenly spread over each size group, without augmentation.

        Parameters
        ----------
        count
            Wanted number of structures, shared between the groups by their sizes.
        pairs_per_batch
            Batches hold at most this many atom pairs, but at least one structure.
        """
        total = len(self)
        for size, group in self.groups.items():
            available = len(group.energies)
            index = spread_index(available, max(1, round(count * available / total)))
            most = max(1, pairs_per_batch // size**2)
            for first in range(0, len(index), most):
                yield self.batch(size, index[first : first + most])


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


class BatchStream(torch.utils.data.IterableDataset[T]):
    """Endless stream of batches; batch k is a pure function of the seed and k.

    Every epoch visits each item once, in batches of items of one padded size; a few are visited
    twice where the number of items of a size is not a multiple of the batch size. Because nothing
    but the batch number decides a batch, a run that resumes at step k sees exactly the data it
    would have seen.

    Parameters
    ----------
    counts
        Number of items by padded size.
    targets
        Wanted number of items per batch by padded size.
    seed
        Seed of order and augmentation.
    start
        Batches that every process has already had.
    rank, world_size
        This process and the number of processes; batch k goes to process ``k % world_size``.

    Attributes
    ----------
    batch_size
        Items of a batch by padded size.
    batches_per_epoch
        Batches of all processes that make an epoch.
    """

    def __init__(
        self,
        counts: dict[int, int],
        targets: dict[int, float],
        *,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.counts = counts
        self.seed = seed
        self.start = start
        self.rank = rank
        self.world_size = world_size
        batches = {
            size: math.ceil(count / max(1, round(targets[size]))) for size, count in counts.items()
        }
        # Equal batches, so that as few items as possible are visited twice.
        self.batch_size = {size: math.ceil(counts[size] / batches[size]) for size in counts}
        self.batches_per_epoch = sum(
            math.ceil(counts[size] / batch_size) for size, batch_size in self.batch_size.items()
        )

    def make(self, size: int, index: NDArray[np.int64], generator: torch.Generator) -> T:
        """Augmented batch of the items of one size at the given indices."""
        raise NotImplementedError

    def _epoch(self, epoch: int) -> list[tuple[int, NDArray[np.int64]]]:
        rng = np.random.default_rng((self.seed, epoch))
        plan: list[tuple[int, NDArray[np.int64]]] = []
        for size, count in self.counts.items():
            order = rng.permutation(count)
            batch_size = self.batch_size[size]
            # Wrap around, so that all batches of a size have one shape.
            order = np.resize(order, math.ceil(len(order) / batch_size) * batch_size)
            plan += [(size, index) for index in order.reshape(-1, batch_size)]
        return [plan[i] for i in rng.permutation(len(plan))]

    def __iter__(self) -> Iterator[T]:
        number = self.start * self.world_size + self.rank
        while True:
            epoch = number // self.batches_per_epoch
            plan = self._epoch(epoch)
            while number // self.batches_per_epoch == epoch:
                size, index = plan[number % self.batches_per_epoch]
                entropy = np.random.SeedSequence((self.seed, number)).generate_state(1, np.uint64)
                generator = torch.Generator().manual_seed(int(entropy[0]))
                yield self.make(size, index, generator)
                number += self.world_size


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
        counts = {size: len(group.energies) for size, group in table.groups.items()}
        targets = {size: pairs_per_batch / (size * size * copies) for size in counts}
        super().__init__(counts, targets, **position)
        self.table = table
        self.copies = copies

    def make(self, size: int, index: NDArray[np.int64], generator: torch.Generator) -> Batch:
        """Structures of one size, each in several random orientations."""
        return augment(self.table.batch(size, index), self.copies, generator)


def augment(batch: Batch, copies: int, generator: torch.Generator) -> Batch:
    """Repeat every structure and rotate, and with probability ½ reflect, each copy.

    Parameters
    ----------
    batch
        Structures to augment.
    copies
        Copies per structure.
    generator
        Source of randomness.
    """

    def repeat(tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(copies, dim=0)

    transform = random_orientations(copies * len(batch.energies), generator)
    return Batch(
        positions=repeat(batch.positions) @ transform,
        forces=repeat(batch.forces) @ transform,
        energies=repeat(batch.energies),
        numbers=repeat(batch.numbers),
        mask=None if batch.mask is None else repeat(batch.mask),
        charge=repeat(batch.charge),
        multiplicity=repeat(batch.multiplicity),
    )


def random_orientations(count: int, generator: torch.Generator) -> Tensor:
    """Draw ``(count, 3, 3)`` float64 rotations, half of them followed by a reflection."""
    rotations = random_rotations(count, generator)
    reflect = torch.rand(count, generator=generator) < 0.5
    reflected = rotations @ random_reflections(count, generator)
    return torch.where(reflect[:, None, None], reflected, rotations)
