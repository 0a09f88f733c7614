"""Orientations in which a network sees a molecule, and the mean of what it says about them."""

from __future__ import annotations

import functools
import os
import secrets
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlmd_calc.errors import ModelFileError
from mlmd_calc.geometry.rotations import counted_rotations, fixed_rotations
from mlmd_calc.options import whole_number
from mlmd_calc.potential.options import ResolvedOptions

_SEED_BITS: Final = 63


class Orientations:
    """Rotations for one call after the other: a fixed set, turned as a whole if they are random.

    The rotation of a call is a function of the seed and of the number of the call, see
    :func:`~.rotations.counted_rotations`.

    Parameters
    ----------
    options
        Kind and number of rotations.
    seed
        From 0 to 2^63 - 1. None: drawn from the system, and another one in every forked process.

    Attributes
    ----------
    fixed
        The set before it is turned, ``(k, 3, 3)`` float64.
    seed, calls
        Seed, and how many calls have been made: the whole state of the stream.

    Raises
    ------
    ConfigError
        If the seed or the number of rotations is out of range.
    """

    def __init__(self, options: ResolvedOptions, seed: int | None) -> None:
        self.random = options.rotation == "random"
        # A tensor made in a caller's inference mode cannot be differentiated through later.
        with torch.inference_mode(False):
            self.fixed = fixed_rotations(options.n_rotations)
        self._process = os.getpid()
        self._unseeded = seed is None
        drawn = secrets.randbits(_SEED_BITS) if seed is None else seed
        self.seed = whole_number("seed", drawn, 0, 2**_SEED_BITS - 1)
        self.calls = 0

    @property
    def turned(self) -> bool:
        """Whether a molecule is seen in any orientation but its own."""
        return self.random or len(self.fixed) > 1

    def next(self) -> Tensor:
        """Rotations for one call, ``(k, 3, 3)`` float64."""
        if not self.random:
            return self.fixed
        if self._unseeded and self._process != os.getpid():
            # Forked children would all draw the orientations of their parent.
            self._process = os.getpid()
            self.seed = secrets.randbits(_SEED_BITS)
        self.calls += 1
        return self.fixed @ _rotation(self.seed, self.calls)

    def state_dict(self) -> dict[str, int]:
        """State of the stream, JSON-able."""
        return {"seed": self.seed, "calls": self.calls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the stream from :meth:`state_dict`.

        Raises
        ------
        ModelFileError
            If it is not such a state.
        """
        if not self.random and "generator" in state:
            # Of an earlier version, where it was stored whether or not it was drawn from.
            return
        numbers = [state.get(name) for name in ("seed", "calls")]
        if not all(type(number) is int and 0 <= number < 2**_SEED_BITS for number in numbers):
            raise ModelFileError(
                f"the stored state of the random orientations has {', '.join(map(str, state))}; "
                "this version continues streams of a seed and a number of calls only. Continue "
                "with the version that wrote it, or start a new run from the last frame"
            )
        self.seed, self.calls = state["seed"], state["calls"]


_BLOCK: Final = 64
"""Calls whose rotations are computed together, which takes as long as for one."""


def _rotation(seed: int, call: int) -> Tensor:
    block, place = divmod(call, _BLOCK)
    return _rotations(seed, block)[place]


@functools.lru_cache(maxsize=64)
def _rotations(seed: int, block: int) -> Tensor:
    with torch.inference_mode(False):
        calls = torch.arange(block * _BLOCK, (block + 1) * _BLOCK, device="cpu")
        return counted_rotations(torch.tensor(seed, device="cpu"), calls)


def average(
    samples: NDArray[np.float64], rotations: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Mean over orientations, and standard deviation if there is more than one.

    Parameters
    ----------
    samples
        Energies ``(k,)``, or forces ``(k, n, 3)`` on a turned molecule.
    rotations
        ``(k, 3, 3)`` by which it was turned; None if it was not, or for energies.
    """
    if rotations is not None:
        samples = samples @ rotations.swapaxes(-1, -2)
    mean: NDArray[np.float64] = samples.mean(axis=0)
    return mean, None if len(samples) == 1 else samples.std(axis=0, ddof=1)
