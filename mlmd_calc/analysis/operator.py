"""S2S and S2T of the published operator, beside predictions that need no learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from mlmd_calc.analysis.jump_baselines import superimpose
from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.data.operator_frames import operator_targets
from mlmd_calc.models.atom import ATOM, input_features, return_probabilities

_BATCH: Final = 64


@dataclass(frozen=True)
class OperatorErrors:
    """Mean square position errors per coordinate, Å².

    Attributes
    ----------
    s2t
        State to trajectory: over all slots.
    s2s
        State to state: of the last slot.
    """

    s2t: float
    s2s: float

    @classmethod
    def of(cls, predicted: NDArray[np.floating], true: NDArray[np.floating]) -> OperatorErrors:
        """Compare positions ``(b, t, n, 3)``."""
        per_slot = np.square(predicted - true).mean(axis=(0, 2, 3))
        return cls(s2t=float(per_slot.mean()), s2s=float(per_slot[-1]))


def measure_operator(
    network: ATOM,
    molecule: MoleculeFrames,
    starts: NDArray[np.int64],
    *,
    horizon: int,
    slots: int = 8,
) -> dict[str, OperatorErrors]:
    """Measure the published operator on start frames of one molecule.

    Parameters
    ----------
    network
        The operator.
    molecule
        Frames of :func:`~mlmd_calc.data.operator_frames.operator_frames`.
    starts
        Start frames, see :func:`~mlmd_calc.data.operator_frames.operator_split`.
    horizon
        Frames from a start to its last target.
    slots
        Number of targets, evenly spaced.

    Returns
    -------
    dict
        Errors of "model", "persistence", "ballistic" and "mean structure" (of all frames,
        superimposed on the start).
    """
    assert molecule.velocities is not None
    targets = operator_targets(starts, horizon, slots)
    x, v = molecule.positions[starts], molecule.velocities[starts]
    reference = molecule.positions[0]
    mean = np.mean([superimpose(frame, reference) for frame in molecule.positions], axis=0)
    frames_ahead = (targets - starts[:, None])[:, :, None, None]
    predictions = {
        "model": _predict(network, molecule, starts, horizon, slots),
        "persistence": x[:, None],
        "ballistic": x[:, None] + frames_ahead * v[:, None],
        "mean structure": np.stack([superimpose(mean, start) for start in x])[:, None],
    }
    true = molecule.positions[targets]
    return {name: OperatorErrors.of(found, true) for name, found in predictions.items()}


def _predict(
    network: ATOM, molecule: MoleculeFrames, starts: NDArray[np.int64], horizon: int, slots: int
) -> NDArray[np.floating]:
    """Positions ``(starts, slots, n, 3)``."""
    assert molecule.velocities is not None
    parameter = next(network.parameters())
    length = network.config.rrwp_length
    walks = return_probabilities(torch.from_numpy(molecule.positions[0]), length)
    numbers = torch.from_numpy(molecule.numbers)
    found = []
    for first in range(0, len(starts), _BATCH):
        index = starts[first : first + _BATCH]
        b = len(index)
        inputs = input_features(
            torch.from_numpy(molecule.positions[index]),
            torch.from_numpy(molecule.velocities[index]),
            numbers.expand(b, -1),
            walks.expand(b, -1, -1),
        )
        increments = torch.full((b, slots), horizon / slots)
        with torch.inference_mode():
            out = network(
                *(w.to(parameter) for w in inputs), time_increments=increments.to(parameter.device)
            )
        found.append(out["pos"].cpu().numpy())
    return np.concatenate(found)
