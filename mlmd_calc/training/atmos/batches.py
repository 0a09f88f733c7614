"""Windows of consecutive frames with noisy copies of the frames to predict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlmd_calc.analysis.accuracy import spread_index
from mlmd_calc.data.biomolecules.trajectories import BiomolecularTrajectory
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.models.atmos import ATMOSConfig, Features
from mlmd_calc.models.atmos.sampler import training_noise
from mlmd_calc.options import steps_in
from mlmd_calc.training.atmos.recipe import ATMOSRecipe
from mlmd_calc.training.batches import BatchStream, padded_size
from mlmd_calc.wording import counted


class WindowBatch(NamedTuple):
    """Windows of frames to read, and what comes after each frame, padded to the largest system.

    Attributes
    ----------
    features
        Static features of b systems, one entry per window.
    frames
        ``(b, w, a, 3)`` Å, the frames to read.
    targets
        ``(b, w, a, 3)`` Å, the frame that follows each of them.
    noisy, sigma
        ``(b, w, k, a, 3)`` and ``(b, w, k)`` Å, noisy copies of the targets and their noise levels.
    lag
        ``(b,)`` ps, time between frames; None for networks that are made for a single one.
    end, remaining
        ``(b, a, 3)`` Å and ``(b,)``, the frame at the end of the interval and the steps from the
        first frame to it; None except for interpolators.
    bonds, bond_mask
        ``(b, m, 2)`` atom indices and ``(b, m)`` bool.
    """

    features: Features
    frames: Tensor
    targets: Tensor
    noisy: Tensor
    sigma: Tensor
    lag: Tensor | None
    end: Tensor | None
    remaining: Tensor | None
    bonds: Tensor
    bond_mask: Tensor


class _Window(NamedTuple):
    """One window of one system, possibly cropped."""

    features: Features
    frames: Tensor
    bonds: Tensor
    lag: float


class WindowTable:
    """Trajectories held in memory, from which windows are taken.

    A window begins at a frame and has equal strides. That of an interpolator covers the interval
    between two frames that are ``max_remaining`` steps apart.

    Parameters
    ----------
    trajectories
        Trajectories of any systems.
    config
        Network to train: its noise, and whether it is an interpolator.
    recipe
        Strides, length of a window, noisy copies, and the size to which systems are cut.
    frame_noise
        Standard deviation in Å of noise on the frames that are read.

    Raises
    ------
    ConfigError
        If a stride is not a multiple of the frame spacing.
    InputError
        If a trajectory is shorter than a window.
    """

    def __init__(
        self,
        trajectories: Sequence[BiomolecularTrajectory],
        config: ATMOSConfig,
        recipe: ATMOSRecipe,
        *,
        frame_noise: float = 0.0,
    ) -> None:
        self.trajectories = list(trajectories)
        self.config = config
        self.recipe = recipe
        self.frame_noise = frame_noise
        for trajectory in self.trajectories:
            for stride in self.recipe.strides_ps:
                self._check(trajectory, stride)

    def _check(self, trajectory: BiomolecularTrajectory, stride_ps: float) -> None:
        frames = steps_in(stride_ps, trajectory.dt_ps)
        if not frames:
            raise ConfigError(
                f"strides_ps has {stride_ps:g} ps, which is not a multiple of the "
                f"{trajectory.dt_ps:g} ps between frames of {trajectory.name!r}; choose multiples"
            )
        if self.starts(trajectory, stride_ps) < 1:
            raise InputError(
                f"trajectory {trajectory.name!r} has {counted(len(trajectory), 'frame')} of "
                f"{trajectory.dt_ps:g} ps, but a window needs "
                f"{self.steps * frames + 1}; give longer trajectories, a smaller window or "
                "stride, or another held_out_fraction"
            )

    @property
    def steps(self) -> int:
        """Strides from the first to the last frame of a window."""
        return self.config.max_remaining or self.recipe.window

    def starts(self, trajectory: BiomolecularTrajectory, stride_ps: float) -> int:
        """Return the number of frames at which a window can begin."""
        return len(trajectory) - self.steps * round(stride_ps / trajectory.dt_ps)

    def random(self, index: int, generator: torch.Generator) -> _Window:
        """Take a window of a trajectory at a random place and stride, cropped at random."""
        trajectory = self.trajectories[index]
        stride = self.recipe.strides_ps[_random_integer(len(self.recipe.strides_ps), generator)]
        start = _random_integer(self.starts(trajectory, stride), generator)
        tokens = self._crop(trajectory, start, generator)
        return self._window(trajectory, start, stride, tokens)

    def _window(
        self,
        trajectory: BiomolecularTrajectory,
        start: int,
        stride_ps: float,
        tokens: Tensor | None,
    ) -> _Window:
        features = trajectory.system.features
        chosen = start + round(stride_ps / trajectory.dt_ps) * np.arange(self.steps + 1)
        frames = torch.from_numpy(trajectory.positions[chosen])
        bonds = torch.from_numpy(trajectory.system.bonds)
        if tokens is not None:
            features, atoms = features.crop(tokens)
            frames = frames[:, atoms]
            kept = torch.isin(bonds, atoms).all(-1)
            bonds = torch.searchsorted(atoms, bonds[kept])
        return _Window(features, frames, bonds, stride_ps)

    def _crop(
        self, trajectory: BiomolecularTrajectory, start: int, generator: torch.Generator
    ) -> Tensor | None:
        """Tokens to keep of a system that is too large, in ascending order.

        Around ligands the nearest tokens are kept, and of a system without ligands a run of
        consecutive ones.
        """
        features = trajectory.system.features
        if features.n_tokens <= self.recipe.crop_tokens:
            return None
        if not bool(features.is_ligand.any()):
            first = _random_integer(features.n_tokens - self.recipe.crop_tokens + 1, generator)
            return torch.arange(first, first + self.recipe.crop_tokens)
        positions = torch.from_numpy(trajectory.positions[start])
        distance = torch.cdist(
            positions[features.representative_atom], positions[features.is_ligand]
        )
        order = distance.amin(-1).argsort(stable=True)
        return order[: self.recipe.crop_tokens].sort().values

    def batch(self, windows: Sequence[_Window], generator: torch.Generator) -> WindowBatch:
        """Join windows and draw the noise."""
        features = Features.stack([window.features for window in windows])
        atoms, bonds = features.n_atoms, max(len(window.bonds) for window in windows)
        frames = torch.stack([_padded(window.frames, atoms, 1) for window in windows])
        targets = frames[:, 1 : self.recipe.window + 1]
        noisy, sigma = training_noise(
            targets.flatten(0, 1),
            features.atom_mask.repeat_interleave(self.recipe.window, 0),
            self.recipe.noise_samples,
            self.config,
            generator,
        )
        read = frames[:, : self.recipe.window]
        noise = torch.randn(read.shape, generator=generator)
        interpolator = self.config.max_remaining > 0
        return WindowBatch(
            features=features,
            frames=read + self.frame_noise * noise,
            targets=targets,
            noisy=noisy.unflatten(0, targets.shape[:2]),
            sigma=sigma.unflatten(0, targets.shape[:2]),
            lag=torch.tensor([w.lag for w in windows]) if self.config.tau == "lag" else None,
            end=frames[:, -1] if interpolator else None,
            remaining=torch.full((len(windows),), self.steps) if interpolator else None,
            bonds=torch.stack([_padded(window.bonds, bonds, 0) for window in windows]),
            bond_mask=torch.arange(bonds) < torch.tensor([[len(w.bonds)] for w in windows]),
        )

    def spread(self, count: int, windows_per_batch: int) -> Iterator[WindowBatch]:
        """About ``count`` windows, evenly spread over trajectories and strides, always the same.

        Parameters
        ----------
        count
            Wanted number of windows; each trajectory gets at least one at each stride.
        windows_per_batch
            Largest number of windows in a batch.
        """
        generator = torch.Generator().manual_seed(0)
        each = max(1, round(count / (len(self.trajectories) * len(self.recipe.strides_ps))))
        windows = [
            self._window(trajectory, start, stride, self._crop(trajectory, start, generator))
            for trajectory in sorted(self.trajectories, key=lambda t: len(t.system.atoms))
            for stride in self.recipe.strides_ps
            for start in spread_index(self.starts(trajectory, stride), each).tolist()
        ]
        for first in range(0, len(windows), windows_per_batch):
            yield self.batch(windows[first : first + windows_per_batch], generator)


class WindowBatches(BatchStream[WindowBatch]):
    """Stream of windows: several systems of similar size, several random windows of each.

    Every epoch visits each trajectory once, so that long and short ones count the same.

    Parameters
    ----------
    table
        Trajectories to draw from.
    recipe
        Target number of trajectories per batch, windows of each, and by how many atoms those that
        are batched together may differ.
    seed, start, rank, world_size
        See :class:`BatchStream`.
    """

    def __init__(self, table: WindowTable, recipe: ATMOSRecipe, **position: int) -> None:
        self.table = table
        self.subsequences = recipe.subsequences
        self.members: dict[int, list[int]] = {}
        for index, trajectory in enumerate(table.trajectories):
            size = padded_size(len(trajectory.system.atoms), recipe.size_step)
            self.members.setdefault(size, []).append(index)
        counts = {size: len(self.members[size]) for size in sorted(self.members)}
        super().__init__(counts, dict.fromkeys(counts, float(recipe.systems)), **position)

    def make(self, size: int, index: NDArray[np.int64], generator: torch.Generator) -> WindowBatch:
        """Take random windows of the trajectories of one size."""
        members = self.members[size]
        windows = [
            self.table.random(members[item], generator)
            for item in index
            for _ in range(self.subsequences)
        ]
        return self.table.batch(windows, generator)


def coordinate_scale(trajectories: Sequence[BiomolecularTrajectory]) -> float:
    """Root mean square of centred coordinates in Å, each trajectory counted once."""
    squares = []
    for trajectory in trajectories:
        positions = trajectory.positions.astype(np.float64)
        squares.append(np.square(positions - positions.mean(axis=1, keepdims=True)).mean())
    return float(np.sqrt(np.mean(squares)))


def _random_integer(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _padded(values: Tensor, size: int, axis: int) -> Tensor:
    shape = list(values.shape)
    shape[axis] = size - shape[axis]
    return torch.cat([values, values.new_zeros(shape)], dim=axis)
