"""A small network of internal coordinates, fitted to forces that a polynomial leaves over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlmd_calc.bonded.kernels import add_network

_STEPS: Final = 5000
"""Of the training."""
_BATCH: Final = 64
_LEARNING_RATE: Final = 0.003
"""With three times as much all neurons saturate for some molecules, and nothing is learnt."""

_FLOOR: Final = 1e-3
"""Added to the spread of coordinates by which they are divided."""

_NAMES: Final = ("first", "first_bias", "second", "second_bias", "last")


class ResidualNetwork:
    """An energy ``last · tanh(second tanh(first v + first_bias) + second_bias)``.

    Parameters
    ----------
    weights
        Arrays by name: those of the formula, where v are internal coordinates in their units.
    """

    def __init__(self, weights: Mapping[str, NDArray[np.float64]]) -> None:
        self.weights = {name: np.ascontiguousarray(weights[name]) for name in _NAMES}

    @classmethod
    def fit(
        cls,
        values: NDArray[np.float64],
        derivatives: NDArray[np.float64],
        forces: NDArray[np.float64],
        importance: NDArray[np.float64],
        neurons: int,
        seed: int,
    ) -> ResidualNetwork:
        """Fit to forces.

        Parameters
        ----------
        values, derivatives
            ``(f, coordinates)`` internal coordinates, and ``(f, coordinates, 3 n)`` their
            derivatives by the positions.
        forces
            ``(f, n, 3)`` eV/Å.
        importance
            ``(3 n,)`` factors of errors of the forces.
        neurons
            Of both layers.
        seed
            Of the weights at the start, and of the order of structures.
        """
        mean, spread = values.mean(axis=0), values.std(axis=0) + _FLOOR
        frames, count = values.shape
        inputs = _single((values - mean) / spread)
        # One at a time: there are many, and single precision takes half the memory.
        jacobians = torch.stack(
            [_single(own * importance / spread[:, None]) for own in derivatives]
        )
        targets = _single(forces.reshape(frames, -1) * importance)
        generator = torch.Generator().manual_seed(seed)

        def drawn(rows: int, columns: int) -> Tensor:
            numbers = torch.randn(rows, columns, generator=generator, dtype=torch.float32)
            scaled: Tensor = numbers / columns**0.5
            return scaled

        def zeros() -> Tensor:
            return torch.zeros(neurons, dtype=torch.float32)

        first, second = drawn(neurons, count), drawn(neurons, neurons)
        parameters = [first, zeros(), second, zeros(), zeros()]
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimiser = torch.optim.Adam(parameters, lr=_LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, _LEARNING_RATE, total_steps=_STEPS
        )
        for _ in range(_STEPS):
            chosen = torch.randint(frames, (_BATCH,), generator=generator)
            found = -_forces(parameters, inputs[chosen], jacobians[chosen])
            loss = (found - targets[chosen]).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        fitted = [parameter.detach().numpy().astype(np.float64) for parameter in parameters]
        weights = dict(zip(_NAMES, fitted, strict=True))
        weights["first"] = weights["first"] / spread
        weights["first_bias"] = weights["first_bias"] - weights["first"] @ mean
        return cls(weights)

    def add_slopes(self, values: NDArray[np.float64], slopes: NDArray[np.float64]) -> float:
        """Add the derivatives by the coordinates to `slopes`, and return the energy in eV."""
        weights = self.weights
        return add_network(
            weights["first"],
            weights["first_bias"],
            weights["second"],
            weights["second_bias"],
            weights["last"],
            values,
            slopes[: len(values)],
        )


def _forces(parameters: list[Tensor], inputs: Tensor, jacobians: Tensor) -> Tensor:
    first, first_bias, second, second_bias, last = parameters
    below = torch.tanh(inputs @ first.T + first_bias)
    above = torch.tanh(below @ second.T + second_bias)
    by_below = (last * (1.0 - above.square())) @ second * (1.0 - below.square())
    return torch.einsum("bv,bvx->bx", by_below @ first, jacobians)


def _single(array: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))
