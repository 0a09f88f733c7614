"""Batches of states and what became of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import ase.data
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlmd_calc.data.frames import Float64Array, MoleculeFrames
from mlmd_calc.data.trajectories import Trajectory
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.training.batches import (
    BatchStream,
    padded_size,
    random_orientations,
    spread_batches,
)
from mlmd_calc.wording import counted

_LEAST_MOTION: Final = 0.1
"""Of a run, in units of that of all; runs that hardly move must not rule the loss."""


class JumpBatch(NamedTuple):
    """States and what became of them, padded to one size, in the frame of the centre of mass.

    Attributes
    ----------
    positions, velocities
        ``(b, n, 3)`` float64 Å and Å/fs at t = 0.
    accelerations
        ``(b, n, 3)`` Å/fs² at t = 0, or None.
    numbers
        ``(b, n)`` int64, 0 for padding.
    mask
        ``(b, n)`` bool, or None if no molecule is padded.
    times
        ``(b, t)`` fs, ascending.
    later_positions, later_velocities
        ``(b, t, n, 3)`` Å and Å/fs at the times.
    position_scale, velocity_scale
        ``(b, t, n)`` Å and Å/fs: what force-free motion leaves unexplained for the element at that
        time (:class:`ChangeScales`), 1 for padding.
    motion
        ``(b,)`` how much the run moves, 1 as much as all do (:meth:`ChangeScales.motion`).
    """

    positions: Tensor
    velocities: Tensor
    accelerations: Tensor | None
    numbers: Tensor
    mask: Tensor | None
    times: Tensor
    later_positions: Tensor
    later_velocities: Tensor
    position_scale: Tensor
    velocity_scale: Tensor
    motion: Tensor


class ChangeScales:
    """Root mean square of what force-free motion leaves unexplained, by element and time.

    For positions that is the deviation from x + v t, for velocities the change: what an
    integrator's network has to predict. Errors in these units count equally at all times and for
    all elements.

    Attributes
    ----------
    positions, velocities
        ``(119, strides)`` float64 Å and Å/fs; NaN for elements that do not occur, 1 for padding.
    """

    def __init__(self, trajectories: Sequence[Trajectory], strides: Sequence[int]) -> None:
        sums = np.zeros((3, len(ase.data.atomic_masses), len(strides)))
        for trajectory in trajectories:
            for column, stride in enumerate(strides):
                start = trajectory.starts(stride)
                x, v = trajectory.positions, trajectory.velocities
                drift = stride * trajectory.dt_fs * v[start]
                deviation = np.square(x[start + stride] - x[start] - drift).mean(axis=-1)
                change = np.square(v[start + stride] - v[start]).mean(axis=-1)
                for row, values in enumerate((np.ones_like(change), deviation, change)):
                    np.add.at(sums[row, :, column], trajectory.numbers, values.sum(axis=0))
        with np.errstate(invalid="ignore"):
            scales = np.sqrt(sums[1:] / sums[0])
        scales[:, 0] = 1.0
        self.positions, self.velocities = torch.from_numpy(scales)

    def motion(self, trajectory: Trajectory, stride: int, column: int) -> Float64Array:
        """How much each run moves, 1 as much as all do.

        With it errors count in proportion, and runs near the minimum as much as hot ones.

        Parameters
        ----------
        trajectory
            The runs of one molecule.
        stride, column
            A number of frames per jump, and its place among those of the scales.

        Returns
        -------
        ndarray
            ``(frames,)``, root mean square of the change of velocities over the run of each frame,
            in units of the scales, at least 0.1: runs that hardly move must not rule.
        """
        start = trajectory.starts(stride)
        v = trajectory.velocities
        scale = self.velocities[:, column].numpy()[trajectory.numbers]
        change = np.square((v[start + stride] - v[start]) / scale[:, None]).mean(axis=(1, 2))
        runs = trajectory.run[start]
        count = int(trajectory.run.max()) + 1
        total = np.bincount(runs, change, count)
        mean = total / np.maximum(np.bincount(runs, minlength=count), 1)
        return np.maximum(np.sqrt(mean), _LEAST_MOTION)[trajectory.run]


class _Group(NamedTuple):
    """Frames of all molecules of one padded size, and those at which a sample may start."""

    numbers: Tensor
    positions: Tensor
    velocities: Tensor
    starts: Tensor
    accelerations: Tensor | None
    motion: Tensor


class TrajectoryTable:
    """Trajectories grouped by padded size, held in memory, from which samples are taken.

    A sample is a frame and later ones of the same uninterrupted run.

    Parameters
    ----------
    frames
        Molecules with velocities and frame spacing.
    horizons
        Shortest and longest time of a jump in fs.
    accelerations
        Whether samples have accelerations.
    size_step
        Molecules are padded to a multiple of this many atoms.
    scales
        Units of errors; None to measure them on these trajectories.
    held_out
        Whether these frames are held out of training.

    Raises
    ------
    ConfigError
        If no stride is within the horizons, or no run is long enough for the longest.
    InputError
        If a molecule is no trajectory, or frame spacings differ.
    """

    def __init__(
        self,
        frames: Sequence[MoleculeFrames],
        horizons: tuple[float, float],
        *,
        accelerations: bool = False,
        size_step: int = 1,
        scales: ChangeScales | None = None,
        held_out: bool = False,
    ) -> None:
        trajectories = [Trajectory.of(molecule) for molecule in frames]
        spacings = sorted({trajectory.dt_fs for trajectory in trajectories})
        if len(spacings) != 1:
            raise InputError(
                f"the trajectories have frames {spacings} fs apart; one spacing is needed: leave "
                "out frames of the finer ones"
            )
        self.dt_fs = spacings[0]
        self.strides = _strides(horizons, self.dt_fs)
        self.scales = scales or ChangeScales(trajectories, self.strides)
        groups: dict[int, list[_Group]] = {}
        for trajectory in trajectories:
            size = padded_size(len(trajectory.numbers), size_step)
            motion = self.scales.motion(trajectory, self.strides[-1], len(self.strides) - 1)
            group = _padded(trajectory, size, self.strides[-1], accelerations, motion)
            groups.setdefault(size, []).append(group)
        self.groups = {size: _joined(groups[size]) for size in sorted(groups)}
        if not self.counts:
            longest = max(int(np.bincount(t.run).max(initial=0)) for t in trajectories)
            before = max(_before(trajectory, accelerations) for trajectory in trajectories)
            needed = before + 1 + self.strides[-1]
            kind = "held-out" if held_out else "training"
            remedy = "hold out more or nothing (held_out_fraction)" if held_out else "hold out less"
            raise ConfigError(
                f"the longest run of {kind} frames has {longest}, but jumps of up to "
                f"{horizons[1]:g} fs need {counted(needed, 'frame')} {self.dt_fs:g} fs apart; "
                f"{remedy}, give longer runs, or train shorter jumps (model.integrator.max_horizon)"
            )

    @property
    def counts(self) -> dict[int, int]:
        """Number of start frames by padded size."""
        return {size: len(group.starts) for size, group in self.groups.items() if len(group.starts)}

    def batch(self, size: int, index: NDArray[np.int64], column: Tensor) -> JumpBatch:
        """Take samples of one size group.

        Parameters
        ----------
        size
            Padded size.
        index
            Start frames, by index into those of the group.
        column
            ``(len(index), t)`` strides, by index into `strides`.
        """
        group = self.groups[size]
        chosen = torch.from_numpy(index)
        start = group.starts[chosen]
        numbers = group.numbers[start]
        stride = torch.tensor(self.strides)[column]
        later = start[:, None] + stride
        mask = numbers != 0
        entry = (numbers[:, None], column[:, :, None])
        return JumpBatch(
            positions=group.positions[start],
            velocities=group.velocities[start],
            accelerations=None if group.accelerations is None else group.accelerations[chosen],
            numbers=numbers,
            mask=None if bool(mask.all()) else mask,
            times=stride * self.dt_fs,
            later_positions=group.positions[later],
            later_velocities=group.velocities[later],
            position_scale=self.scales.positions[entry],
            velocity_scale=self.scales.velocities[entry],
            motion=group.motion[start],
        )

    def spread(self, count: int, atoms_per_batch: int) -> Iterator[JumpBatch]:
        """About ``count`` samples at all strides that are powers of two times the shortest.

        Start frames are evenly spread over each size group; there is no augmentation.

        Parameters
        ----------
        count
            Wanted number of samples, shared between the groups by their sizes.
        atoms_per_batch
            Batches hold at most this many atoms at all times together, but at least one sample.
        """
        columns = [
            column
            for column, stride in enumerate(self.strides)
            if (stride / self.strides[0]).is_integer()
            and (stride // self.strides[0]).bit_count() == 1
        ]
        for size, index in spread_batches(
            self.counts, count, lambda size: atoms_per_batch // (size * len(columns))
        ):
            yield self.batch(size, index, torch.tensor(columns).expand(len(index), -1))


class JumpBatches(BatchStream[JumpBatch]):
    """Stream of samples at log-uniform random horizons in random orientations.

    Parameters
    ----------
    table
        Trajectories to draw from.
    atoms_per_batch
        Target number of atoms of a batch, at all times together.
    times
        Number of later times of each sample, one from each of as many equal parts of the range of
        log t.
    seed, start, rank, world_size
        See :class:`BatchStream`.
    """

    def __init__(
        self, table: TrajectoryTable, *, atoms_per_batch: int, times: int, **position: int
    ) -> None:
        counts = table.counts
        targets = {size: atoms_per_batch / (size * times) for size in counts}
        super().__init__(counts, targets, **position)
        self.table = table
        self.times = times

    def make(self, size: int, index: NDArray[np.int64], generator: torch.Generator) -> JumpBatch:
        """Take samples of one size at random horizons, in random orientations."""
        column = self._random_columns(len(index), generator)
        batch = self.table.batch(size, index, column)
        transform = random_orientations(len(index), generator)
        accelerations = batch.accelerations
        return batch._replace(
            positions=batch.positions @ transform,
            velocities=batch.velocities @ transform,
            accelerations=None if accelerations is None else accelerations @ transform,
            later_positions=batch.later_positions @ transform[:, None],
            later_velocities=batch.later_velocities @ transform[:, None],
        )

    def _random_columns(self, count: int, generator: torch.Generator) -> Tensor:
        """Strides ``(count, times)``: ⌊exp u⌋ with u uniform, by index into those of the table."""
        strides = self.table.strides
        low, high = math.log(strides[0]), math.log(strides[-1] + 1)
        u = torch.rand(count, self.times, generator=generator, dtype=torch.float64)
        part = (torch.arange(self.times) + u) / self.times
        stride = torch.exp(low + (high - low) * part).long()
        return stride.clamp(strides[0], strides[-1]) - strides[0]


def _strides(horizons: tuple[float, float], dt_fs: float) -> list[int]:
    shortest, longest = horizons
    # Frames that are a rounding error off are meant.
    first = max(1, math.ceil(shortest / dt_fs - 1e-6))
    last = math.floor(longest / dt_fs + 1e-6)
    if last < first:
        raise ConfigError(
            f"horizons from {shortest:g} to {longest:g} fs hold no multiple of the frame spacing "
            f"{dt_fs:g} fs; raise the longest to at least {first * dt_fs:g} fs"
        )
    return list(range(first, last + 1))


def _before(trajectory: Trajectory, accelerations: bool) -> int:
    """Frames that a sample needs before its start: those without forces have no acceleration."""
    return 1 if accelerations and trajectory.forces is None else 0


def _padded(
    trajectory: Trajectory, size: int, longest: int, accelerations: bool, motion: Float64Array
) -> _Group:
    """One molecule as a group of its own."""
    missing = size - len(trajectory.numbers)

    def pad(vectors: Float64Array) -> Tensor:
        return torch.from_numpy(np.pad(vectors, ((0, 0), (0, missing), (0, 0))))

    numbers = torch.from_numpy(np.pad(trajectory.numbers.astype(np.int64), (0, missing)))
    starts = trajectory.starts(longest, before=_before(trajectory, accelerations))
    return _Group(
        numbers=numbers.expand(len(trajectory.run), -1),
        positions=pad(trajectory.positions),
        velocities=pad(trajectory.velocities),
        starts=torch.from_numpy(starts),
        accelerations=pad(trajectory.accelerations(starts)) if accelerations else None,
        motion=torch.from_numpy(motion),
    )


def _joined(parts: list[_Group]) -> _Group:
    first_frame = np.cumsum([0, *(len(part.numbers) for part in parts)])
    starts = [part.starts + int(first) for part, first in zip(parts, first_frame, strict=False)]
    accelerations = [part.accelerations for part in parts if part.accelerations is not None]
    return _Group(
        numbers=torch.cat([part.numbers for part in parts]),
        positions=torch.cat([part.positions for part in parts]),
        velocities=torch.cat([part.velocities for part in parts]),
        starts=torch.cat(starts),
        accelerations=torch.cat(accelerations) if accelerations else None,
        motion=torch.cat([part.motion for part in parts]),
    )
