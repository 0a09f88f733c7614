"""Averages and drifts of time series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.errors import InputError

FEWEST_BLOCKS: Final = 8
"""Fewer blocks say too little about their scatter."""


@dataclass(frozen=True)
class Mean:
    """Mean of a correlated time series.

    Attributes
    ----------
    value
        Mean.
    standard_error
        Its standard error.
    resolved
        Whether the series is long enough for blocks longer than its correlation time; if not, the
        standard error is a lower bound.
    """

    value: float
    standard_error: float
    resolved: bool


@dataclass(frozen=True)
class Drift:
    """Straight line through a time series.

    Attributes
    ----------
    slope
        Change per unit of time.
    fluctuation
        Root mean square deviation from the line.
    """

    slope: float
    fluctuation: float


def root_mean_square(values: NDArray[np.floating]) -> float:
    """Root of the mean square of all entries."""
    return float(np.sqrt(np.mean(np.square(values))))


def block_average(series: NDArray[np.floating]) -> Mean:
    """Mean and standard error of a correlated series by blocking.

    Neighbouring values are averaged in pairs again and again (H. Flyvbjerg, H. G. Petersen,
    J. Chem. Phys. 91, 461 (1989)), and the standard error is computed as if the blocks were
    independent. Taken is the shortest block of length B with B³ > 2 N (s_B / s_1)⁴, where s_B is
    the standard error from blocks of length B and N the length of the series (R. M. Lee et al.,
    Phys. Rev. E 83, 066706 (2011)): it balances the correlation left between blocks against their
    small number.

    Parameters
    ----------
    series
        ``(N,)`` equidistant values, at least `FEWEST_BLOCKS`.

    Raises
    ------
    InputError
        If the series is too short.
    """
    blocks = np.asarray(series, dtype=np.float64)
    if len(blocks) < FEWEST_BLOCKS:
        raise InputError(
            f"{len(blocks)} values are too few for a standard error; at least {FEWEST_BLOCKS} are "
            "needed: run longer or record more often"
        )
    mean = float(blocks.mean())
    errors = []
    while len(blocks) >= FEWEST_BLOCKS:
        errors.append(float(blocks.std(ddof=1) / np.sqrt(len(blocks))))
        even = len(blocks) // 2 * 2
        blocks = blocks[:even].reshape(-1, 2).mean(axis=1)
    if errors[0] == 0.0:
        return Mean(mean, 0.0, True)
    for level, error in enumerate(errors):
        if 8.0**level > 2.0 * len(series) * (error / errors[0]) ** 4:
            return Mean(mean, error, True)
    return Mean(mean, max(errors), False)


def fit_drift(times: NDArray[np.floating], series: NDArray[np.floating]) -> Drift:
    """Fit a straight line by least squares.

    Parameters
    ----------
    times
        ``(N,)`` at least two different times.
    series
        ``(N,)`` values.

    Raises
    ------
    InputError
        If there are fewer than two values.
    """
    if len(times) < 2:
        raise InputError(f"{len(times)} values have no drift; at least 2 are needed")
    # Total energies are thousands of eV, their changes meV.
    centred = np.asarray(series, dtype=np.float64) - np.mean(series)
    moments = np.asarray(times, dtype=np.float64) - np.mean(times)
    slope = float(moments @ centred / (moments @ moments))
    return Drift(slope, float(np.sqrt(np.mean((centred - slope * moments) ** 2))))
