"""S2S and S2T of the published ATOM operator, beside predictions that need no learning.

Data are what the public code makes of trajectories, so that published numbers can be compared:
heavy atoms, and velocities by differences of frames. There, start frames of training and tests lie
between each other on one trajectory: such numbers say how well a model interpolates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from mlmd_calc.analysis.accuracy import spread_index
from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.geometry.superposition import superpose
from mlmd_calc.models.atom import ATOM, input_features, return_probabilities
from mlmd_calc.wording import counted

SLOTS: Final = 8
"""Frames that published models were trained to predict, evenly spaced up to the horizon."""

_BATCH: Final = 64


def operator_frames(molecule: MoleculeFrames) -> MoleculeFrames:
    """Frames as the published operator sees them.

    Velocities are differences to the next frame, in Å per frame, so the last frame of every segment
    is left out; hydrogens are left out. Positions are not centred.

    Parameters
    ----------
    molecule
        Frames in the order of time.

    Raises
    ------
    InputError
        If nothing is left.
    """
    heavy = molecule.numbers > 1
    segment = _segments(molecule)
    index = np.flatnonzero(np.diff(segment) == 0)
    if not heavy.any() or not len(index):
        raise InputError(
            f"molecule {molecule.name!r} has no heavy atoms or no two frames in a row; the "
            "published operator needs both"
        )
    positions = molecule.positions[:, heavy]
    return MoleculeFrames(
        name=molecule.name,
        numbers=molecule.numbers[heavy],
        positions=positions[index],
        velocities=positions[index + 1] - positions[index],
        dt_fs=molecule.dt_fs,
        segment=segment[index],
    )


def operator_starts(frames: MoleculeFrames, horizon: int, most: int) -> NDArray[np.int64]:
    """Start frames, evenly spread over those whose last target is in the same segment.

    Parameters
    ----------
    frames
        Frames of :func:`operator_frames`.
    horizon
        Frames from a start to its last target.
    most
        Largest number of start frames.

    Raises
    ------
    ConfigError
        If there is none.
    """
    possible = possible_starts(frames, horizon)
    if not len(possible):
        raise ConfigError(
            f"molecule {frames.name!r} has no {horizon + 1} frames with velocities in a row, as a "
            f"horizon of {counted(horizon, 'frame')} needs; ask for a shorter time"
        )
    return possible[spread_index(len(possible), most)]


def possible_starts(frames: MoleculeFrames, horizon: int, margin: int = 0) -> NDArray[np.int64]:
    """All frames whose last target is in the same segment.

    Parameters
    ----------
    frames
        Frames of :func:`operator_frames`.
    horizon
        Frames from a start to its last target.
    margin
        Frames at both ends of the trajectory that neither starts nor targets may be.
    """
    segment = _segments(frames)
    index = np.arange(margin, max(margin, len(frames) - margin - horizon))
    inside: NDArray[np.bool_] = segment[index] == segment[index + horizon]
    return index[inside]


def target_frames(horizon: int, slots: int) -> NDArray[np.int64]:
    """Frames ``(slots,)`` from a start to its targets, ⌊horizon (p + 1) / T⌋."""
    ahead: NDArray[np.int64] = np.arange(1, slots + 1) * horizon // slots
    return ahead


def _segments(frames: MoleculeFrames) -> NDArray[np.int64]:
    return np.zeros(len(frames), np.int64) if frames.segment is None else frames.segment


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
    frames: MoleculeFrames,
    starts: NDArray[np.int64],
    *,
    horizon: int,
    slots: int = SLOTS,
) -> dict[str, OperatorErrors]:
    """Measure the published operator on start frames of one molecule.

    Parameters
    ----------
    network
        The operator.
    frames
        Frames of :func:`operator_frames`.
    starts
        Start frames, see :func:`operator_starts`.
    horizon
        Frames from a start to its last target.
    slots
        Number of targets T: the frames start + ⌊horizon (p + 1) / T⌋.

    Returns
    -------
    dict
        Errors of "model", "persistence", "ballistic" and "mean structure" (of all frames,
        superposed on the start).
    """
    assert frames.velocities is not None
    ahead = target_frames(horizon, slots)
    x, v = frames.positions[starts], frames.velocities[starts]
    reference = frames.positions[0]
    mean = superpose(frames.positions.astype(np.float64), reference).mean(axis=0)
    predictions = {
        "model": _predict(network, frames, starts, horizon, slots),
        "persistence": x[:, None],
        "ballistic": x[:, None] + ahead[:, None, None] * v[:, None],
        "mean structure": superpose(np.repeat(mean[None], len(x), axis=0), x.astype(np.float64))[
            :, None
        ],
    }
    true = frames.positions[starts[:, None] + ahead]
    return {name: OperatorErrors.of(found, true) for name, found in predictions.items()}


def _predict(
    network: ATOM, frames: MoleculeFrames, starts: NDArray[np.int64], horizon: int, slots: int
) -> NDArray[np.floating]:
    """Positions ``(starts, slots, n, 3)``."""
    assert frames.velocities is not None
    parameter = next(network.parameters())
    walks = return_probabilities(torch.from_numpy(frames.positions[0]), network.config.rrwp_length)
    numbers = torch.from_numpy(frames.numbers)
    found = []
    for first in range(0, len(starts), _BATCH):
        index = starts[first : first + _BATCH]
        b = len(index)
        inputs = input_features(
            torch.from_numpy(frames.positions[index]),
            torch.from_numpy(frames.velocities[index]),
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
