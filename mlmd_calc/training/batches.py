"""Size-bucketed batches in a reproducible order: what the streams of all networks share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlmd_calc.analysis.accuracy import spread_index
from mlmd_calc.geometry.rotations import random_reflections, random_rotations

T = TypeVar("T")


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


def padded_size(atoms: int, size_step: int) -> int:
    """Round a number of atoms up to a multiple of ``size_step``."""
    return math.ceil(atoms / size_step) * size_step


def spread_batches(
    counts: Mapping[int, int], count: int, largest: Callable[[int], int]
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Batches of about ``count`` items, evenly spread over the items of each padded size.

    Parameters
    ----------
    counts
        Number of items by padded size.
    count
        Wanted number of items, shared between the sizes by their numbers of items.
    largest
        Largest number of items in a batch of a size; a batch holds at least one.

    Yields
    ------
    tuple
        Padded size, and indices of items of that size.
    """
    total = sum(counts.values())
    for size, available in counts.items():
        index = spread_index(available, max(1, round(count * available / total)))
        most = max(1, largest(size))
        for first in range(0, len(index), most):
            yield size, index[first : first + most]


def random_orientations(count: int, generator: torch.Generator) -> Tensor:
    """Draw ``(count, 3, 3)`` float64 rotations, half of them followed by a reflection."""
    rotations = random_rotations(count, generator)
    reflect = torch.rand(count, generator=generator) < 0.5
    reflected = rotations @ random_reflections(count, generator)
    return torch.where(reflect[:, None, None], reflected, rotations)
