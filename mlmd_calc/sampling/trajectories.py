"""Trajectories that grow together: keyframes one after the other, and frames between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlmd_calc.errors import ConfigError
from mlmd_calc.geometry.superposition import align
from mlmd_calc.models.atmos.features import Memory
from mlmd_calc.models.atmos.rollout import Rollout
from mlmd_calc.options import whole_number


class Trajectories:
    """Trajectories of one system that start from the same structure.

    Without an interpolator every frame is drawn from the one before it and the memory. With one
    these are keyframes, and the intervals between them are filled afterwards, those of one call all
    at once (arXiv 2603.17633, algorithm 5). What is kept from call to call does not grow.

    A trajectory has random numbers of its own, and so has every interval of it: apart from
    rounding, neither the number of trajectories nor that of intervals per call changes them.

    Parameters
    ----------
    rollout
        Draws the keyframes.
    start
        ``(a, 3)`` Å, the first frame of all trajectories.
    count
        Number of trajectories.
    seed
        Seed of all random numbers.
    interpolator
        Draws the frames between keyframes; None for none.

    Attributes
    ----------
    frames_per_keyframe
        1 without an interpolator.

    Raises
    ------
    ConfigError
        If there is no trajectory, or one of the networks has the place of the other.
    """

    def __init__(
        self,
        rollout: Rollout,
        start: NDArray[np.float64],
        count: int,
        seed: int,
        *,
        interpolator: Rollout | None = None,
    ) -> None:
        whole_number("count", count, 1)
        if rollout.network.config.max_remaining:
            raise ConfigError(
                "the model is an interpolator, which needs keyframes to go between; give it as the "
                "interpolator, and a model without max_remaining for the keyframes"
            )
        if interpolator is not None and not interpolator.network.config.max_remaining:
            raise ConfigError(
                "the interpolator is not an interpolator (max_remaining=0); leave it out, or give "
                "a model that was trained as one"
            )
        self.rollout = rollout
        self.interpolator = interpolator
        self.frames_per_keyframe = (
            1 if interpolator is None else interpolator.network.config.max_remaining
        )
        self._memory = rollout.start(count)
        self._keyframes = torch.from_numpy(start.astype(np.float64)).repeat(count, 1, 1)
        self._last = self._keyframes
        self._generators = generators_of(seed, count)

    def advance(self, keyframes: int) -> NDArray[np.float64]:
        """Draw keyframes, and what lies before each of them.

        Returns
        -------
        ndarray
            ``(count, keyframes * frames_per_keyframe, a, 3)`` Å, each frame superposed on the one
            before.

        Raises
        ------
        PredictionError
            If a frame is not finite; the trajectories are then those before the call, except for
            their random numbers.
        """
        memory, drawn = self._memory, [self._keyframes]
        intervals = []
        for _ in range(keyframes):
            memory, positions = self.rollout.step(memory, drawn[-1], self._generators)
            drawn.append(positions)
            if self.interpolator is not None:
                intervals.append([_offspring(own) for own in self._generators])
        frames = drawn[1:]
        if self.interpolator is not None:
            frames = self._filled(self.interpolator, drawn, intervals)
        self._memory, self._keyframes, self._last = memory, drawn[-1], frames[-1]
        return torch.stack(frames, dim=1).numpy()

    def _filled(
        self, interpolator: Rollout, drawn: list[Tensor], intervals: list[list[torch.Generator]]
    ) -> list[Tensor]:
        """Fill the intervals between keyframes, and superpose each frame on the one before."""
        generators = [own for interval in intervals for own in interval]
        inner = [
            frames.unflatten(0, (len(intervals), -1))
            for frames in interpolator.fill(torch.cat(drawn[:-1]), torch.cat(drawn[1:]), generators)
        ]
        chain = [self._last]
        for index, keyframe in enumerate(drawn[1:]):
            for frame in [*(frames[index] for frames in inner), keyframe]:
                chain.append(align(frame, chain[-1], frame.new_ones(frame.shape[:2])))
        return chain[1:]

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the trajectories go on: numbers and arrays."""
        return {
            **stored_course(self._memory, self._generators),
            "keyframes": self._keyframes.numpy(),
            "last": self._last.numpy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`, on the same device to the last bit."""
        self._memory = restored_course(state, self._memory, self._generators)
        self._keyframes = torch.from_numpy(np.array(state["keyframes"]))
        self._last = torch.from_numpy(np.array(state["last"]))


def stored_course(memory: Memory, generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """Store the memory and the random numbers that trajectories go on from."""
    return {
        "memory": [part.cpu().numpy() for part in memory],
        "generators": [own.get_state().numpy() for own in generators],
    }


def restored_course(
    state: Mapping[str, Any], memory: Memory, generators: Sequence[torch.Generator]
) -> Memory:
    """Restore :func:`stored_course`: generators in place, and the memory, where this one is."""
    for own, stored in zip(generators, state["generators"], strict=True):
        own.set_state(torch.from_numpy(np.array(stored)))
    parts = zip(state["memory"], memory, strict=True)
    return Memory(*(torch.from_numpy(np.array(part)).to(old.device) for part, old in parts))


def generators_of(seed: int, count: int) -> list[torch.Generator]:
    """Make a generator for each of ``count`` trajectories; more of them do not change the first."""
    children = np.random.SeedSequence(seed).spawn(count)
    return [
        torch.Generator().manual_seed(int(child.generate_state(1, np.uint64)[0] >> 1))
        for child in children
    ]


def _offspring(generator: torch.Generator) -> torch.Generator:
    """Make a generator whose seed is drawn from another."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator().manual_seed(seed)
