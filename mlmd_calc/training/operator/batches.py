"""Start frames of the published operator and the frames that follow them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlmd_calc.analysis.operator import possible_starts, target_frames
from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.errors import ConfigError
from mlmd_calc.models.atom import input_features, return_probabilities
from mlmd_calc.training.batches import BatchStream
from mlmd_calc.training.operator.recipe import OperatorRecipe
from mlmd_calc.wording import counted

_WITH_NOISE: Final = 9
"""Channels of the context features before the return probabilities."""


class OperatorBatch(NamedTuple):
    """Inputs and targets of the operator, molecules of one size.

    Attributes
    ----------
    inputs
        Features ``(b, t or 1, n, ·)`` of :func:`mlmd_calc.models.atom.input_features`.
    increments
        ``(b, t)`` frames from each slot to the next.
    later
        ``(b, t, n, 3)`` positions in Å.
    """

    inputs: tuple[Tensor, Tensor, Tensor]
    increments: Tensor
    later: Tensor


class StartSplit(NamedTuple):
    """Start frames ``(starts,)`` of training, validation and test."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def split_starts(frames: MoleculeFrames, recipe: OperatorRecipe) -> StartSplit:
    """Draw the start frames of a recipe from a trajectory; they depend on its seed only.

    Parameters
    ----------
    frames
        Frames of :func:`mlmd_calc.analysis.operator.operator_frames`.
    recipe
        Recipe of the training.

    Raises
    ------
    ConfigError
        If the trajectory has not enough of them.
    """
    possible = possible_starts(frames, recipe.horizon, recipe.margin)
    counts = (recipe.train_starts, recipe.validation_structures, recipe.test_starts)
    if len(possible) < sum(counts):
        raise ConfigError(
            f"molecule {frames.name!r} has {counted(len(possible), 'frame')} that a sample may "
            f"start at, with {counted(recipe.margin, 'frame')} left out at both ends and "
            f"{recipe.horizon:,} after it; the recipe asks for {sum(counts):,} (train_starts, "
            "validation_structures, test_starts). Give a longer trajectory, or lower these, "
            "margin or horizon"
        )
    drawn = np.random.default_rng(recipe.seed).permutation(possible)
    first, second = counts[0], counts[0] + counts[1]
    return StartSplit(drawn[:first], drawn[first:second], drawn[second : sum(counts)])


class OperatorTable:
    """Samples of the operator, grouped by number of atoms.

    Parameters
    ----------
    molecules
        Frames of :func:`mlmd_calc.analysis.operator.operator_frames`.
    starts
        Start frames of each.
    recipe
        Recipe of the training.
    rrwp_length
        Number of return probabilities.
    """

    def __init__(
        self,
        molecules: Sequence[MoleculeFrames],
        starts: Sequence[NDArray[np.int64]],
        recipe: OperatorRecipe,
        rrwp_length: int,
    ) -> None:
        parts: dict[int, list[OperatorBatch]] = {}
        for molecule, chosen in zip(molecules, starts, strict=True):
            part = _samples(molecule, chosen, recipe, rrwp_length)
            parts.setdefault(len(molecule.numbers), []).append(part)
        self.groups = {size: _joined(parts[size]) for size in sorted(parts)}

    @property
    def counts(self) -> dict[int, int]:
        """Number of samples by number of atoms."""
        return {size: len(group.later) for size, group in self.groups.items()}

    def batch(self, size: int, index: Tensor) -> OperatorBatch:
        """Take samples of one size by index, with one slot of inputs, without noise."""
        group = self.groups[size]
        x, v, context = (tensor[index] for tensor in group.inputs)
        return OperatorBatch((x, v, context), group.increments[index], group.later[index])

    def all(self, most: int) -> Iterator[OperatorBatch]:
        """All samples in batches of at most that many."""
        for size, count in self.counts.items():
            for index in torch.arange(count).split(most):
                yield self.batch(size, index)


class OperatorBatches(BatchStream[OperatorBatch]):
    """Stream of samples with noise on the inputs.

    Parameters
    ----------
    table
        Samples to draw from.
    recipe
        Recipe of the training.
    seed, start, rank, world_size
        See :class:`BatchStream`.
    """

    def __init__(self, table: OperatorTable, recipe: OperatorRecipe, **position: int) -> None:
        counts = table.counts
        super().__init__(counts, dict.fromkeys(counts, recipe.samples_per_batch), **position)
        self.table = table
        self.noise = recipe.noise

    def make(
        self, size: int, index: NDArray[np.int64], generator: torch.Generator
    ) -> OperatorBatch:
        """Take samples of one size, and add noise to the inputs of every slot."""
        batch = self.table.batch(size, torch.from_numpy(index))
        if not self.noise:
            return batch
        slots = batch.later.shape[1]
        x, v, context = (
            _with_noise(features, slots, self.noise, generator) for features in batch.inputs
        )
        return batch._replace(inputs=(x, v, context))


def _with_noise(
    features: Tensor, slots: int, deviation: float, generator: torch.Generator
) -> Tensor:
    """Copy features ``(b, 1, n, ·)`` to all slots, and add noise to each copy."""
    copies = features.repeat(1, slots, 1, 1)
    noisy = copies[..., :_WITH_NOISE]
    noisy += deviation * torch.randn(noisy.shape, generator=generator)
    return copies


def _samples(
    frames: MoleculeFrames, starts: NDArray[np.int64], recipe: OperatorRecipe, rrwp_length: int
) -> OperatorBatch:
    assert frames.velocities is not None
    count = len(starts)
    positions = torch.from_numpy(frames.positions)
    walks = return_probabilities(positions[0], rrwp_length)
    x, v, context = input_features(
        positions[torch.from_numpy(starts)],
        torch.from_numpy(frames.velocities[starts]),
        torch.from_numpy(frames.numbers).expand(count, -1),
        walks.expand(count, -1, -1),
    )
    ahead = target_frames(recipe.horizon, recipe.slots)
    return OperatorBatch(
        inputs=(x.float(), v.float(), context.float()),
        increments=torch.full((count, recipe.slots), recipe.horizon / recipe.slots),
        later=positions[torch.from_numpy(starts[:, None] + ahead)].float(),
    )


def _joined(parts: list[OperatorBatch]) -> OperatorBatch:
    x, v, context = (torch.cat(tensors) for tensors in zip(*(p.inputs for p in parts), strict=True))
    increments, later = (torch.cat(w) for w in zip(*(p[1:] for p in parts), strict=True))
    return OperatorBatch((x, v, context), increments, later)
