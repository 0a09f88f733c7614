"""What runs under a thermostat say: whether momenta are refreshed, and time has an arrow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.analysis.audit.measurement import Estimate, common_size, jackknife
from mlmd_calc.analysis.jump_ensemble import Sample
from mlmd_calc.errors import InputError


def autocorrelations(sample: Sample, frames: int) -> NDArray[np.float64]:
    """Velocity autocorrelation ``(r, frames)`` of each replica, weighted by mass.

    C(t) = ⟨Σ m v(0) v(t)⟩ / ⟨Σ m v²⟩; the denominator is the mean over all replicas.

    Raises
    ------
    InputError
        If the run has not more frames than lags.
    """
    _check_length(len(sample), frames)
    weighted = np.sqrt(sample.masses)[:, None] * sample.velocities
    series = weighted.reshape(*weighted.shape[:2], -1)
    found = np.stack(
        [
            np.einsum("frx,frx->r", series[: len(series) - lag], series[lag:]) / (len(series) - lag)
            for lag in range(frames)
        ],
        axis=1,
    )
    return np.asarray(found / found[:, 0].mean())


def remaining_energy_correlation(energies: NDArray[np.float64], lags: slice) -> Estimate:
    """Autocorrelation of the total energy at long times: 1 where nothing exchanges energy.

    Unlike velocities, which fall out of step by themselves, energies keep what a thermostat has not
    changed.

    Parameters
    ----------
    energies
        ``(f, r)`` total energies of several replicas.
    lags
        The long times, in frames.

    Raises
    ------
    InputError
        If the run has not more frames than lags.
    """
    _check_length(len(energies), lags.stop)

    def correlation(replicas: NDArray[np.float64]) -> float:
        changes = replicas - replicas.mean()
        products = [
            np.mean(changes[:, : -lag or None] * changes[:, lag:])
            for lag in range(lags.start, lags.stop)
        ]
        return float(np.mean(products) / np.mean(np.square(changes)))

    return jackknife(correlation, energies.T)


def _check_length(frames: int, lags: int) -> None:
    if not 0 < lags < frames:
        raise InputError(f"{frames} frames do not tell {lags} lags; run longer")


def remaining_correlation(correlations: NDArray[np.float64], lags: slice) -> Estimate:
    """Size of the autocorrelation at long times, where a thermostat should have left nothing.

    Parameters
    ----------
    correlations
        ``(r, t)`` of :func:`autocorrelations`, of at least three replicas.
    lags
        The long times.
    """
    return common_size(correlations[:, lags])


def time_asymmetry(series: NDArray[np.float64], lags: Sequence[int]) -> Estimate:
    """Difference between a run and itself backwards in time, 0 under detailed balance.

    With a and b two quantities that do not change when momenta are reversed, scaled to mean 0 and
    variance 1, ⟨a(0) b(t)⟩ − ⟨b(0) a(t)⟩ is the same forwards and backwards only if it is 0. Taken
    is the root mean square over all pairs and lags, without what noise adds.

    Parameters
    ----------
    series
        ``(f, r, m)`` of m ≥ 2 quantities in several replicas.
    lags
        Numbers of frames.

    Raises
    ------
    InputError
        If there are fewer than two quantities, or too few frames.
    """
    frames, replicas, size = series.shape
    if size < 2 or frames <= max(lags):
        raise InputError(
            f"{size} quantities in {frames} frames tell no arrow of time; at least two quantities "
            f"and {max(lags) + 1} frames are needed"
        )
    scaled = (series - series.mean(axis=(0, 1))) / series.std(axis=(0, 1))
    rows, columns = np.triu_indices(size, 1)
    found = []
    for lag in lags:
        early, late = scaled[:-lag], scaled[lag:]
        products = np.einsum("fra,frb->rab", early, late) / (frames - lag)
        found.append((products - products.transpose(0, 2, 1))[:, rows, columns])
    return common_size(np.concatenate(found, axis=1).reshape(replicas, -1))
