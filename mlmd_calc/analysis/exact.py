"""How well an exact ensemble is sampled, and what the proposal alone would have made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.analysis.statistics import Mean, block_average
from mlmd_calc.errors import InputError

if TYPE_CHECKING:
    from mlmd_calc.md.exact import ExactNVT


@dataclass(frozen=True)
class ProposalBias:
    """The canonical ensemble of the proposal as seen from that of the target.

    Frames of the target's ensemble are given the weights w = exp(−(U_proposal − U_target) / k T).

    Attributes
    ----------
    spread_meV
        Standard deviation of U_proposal − U_target.
    overlap
        (Σ w)² / (N Σ w²): 1 for equal ensembles; where it is small, `energy_shift_meV` is a guess.
    energy_shift_meV
        Mean U_target in the ensemble of the proposal, minus that in the ensemble of the target.
    """

    spread_meV: float  # noqa: N815
    overlap: float
    energy_shift_meV: float  # noqa: N815


@dataclass(frozen=True)
class ExactSummary:
    """Summary of a run of :class:`mlmd_calc.md.ExactNVT`, without the warm-up.

    Attributes
    ----------
    steps
        Trajectories, each with one energy of the target.
    acceptance
        Fraction of them that was accepted.
    failed
        Trajectories that proposal or target could not follow or evaluate.
    timestep_fs, trajectory_fs
        Time step, and length of a trajectory, in fs.
    energy
        Mean energy of the target in eV.
    effective_samples
        Of the energy: (standard deviation / standard error)².
    effective_samples_per_call
        The same, divided by the energies of the target.
    proposal
        Bias of the proposal alone; None if it knows no energy.
    """

    steps: int
    acceptance: float
    failed: int
    timestep_fs: float
    trajectory_fs: float
    energy: Mean
    effective_samples: float
    effective_samples_per_call: float
    proposal: ProposalBias | None


def effective_samples(series: NDArray[np.floating]) -> float:
    """Count the independent values that would have the same standard error.

    Parameters
    ----------
    series
        ``(N,)`` equidistant values of a correlated series.

    Raises
    ------
    InputError
        If the series is too short.
    """
    error = block_average(series).standard_error
    return float(np.var(series, ddof=1)) / error**2 if error > 0 else 1.0


def summarise_exact(dynamics: ExactNVT) -> ExactSummary:
    """Summarise what was sampled after the warm-up.

    Parameters
    ----------
    dynamics
        After its run.

    Raises
    ------
    InputError
        If there are too few steps.
    """
    samples = dynamics.samples
    if dynamics.warming_up:
        raise InputError("the warm-up is not over; run longer")
    energies = np.array(samples.energies)
    effective = effective_samples(energies)
    return ExactSummary(
        steps=len(samples),
        acceptance=dynamics.acceptance,
        failed=int(np.isinf(samples.changes).sum()),
        timestep_fs=dynamics.dt / units.FS,
        trajectory_fs=dynamics.trajectory_fs,
        energy=block_average(energies),
        effective_samples=effective,
        effective_samples_per_call=effective / len(samples),
        proposal=_bias(energies, np.array(samples.proposal_energies), dynamics.temperature_K),
    )


def _bias(
    target: NDArray[np.float64], proposal: NDArray[np.float64], temperature_K: float
) -> ProposalBias | None:
    if not np.isfinite(proposal).all():
        return None
    difference = proposal - target
    weights = np.exp(-(difference - difference.min()) / (units.KB * temperature_K))
    weights /= weights.sum()
    return ProposalBias(
        spread_meV=float(difference.std(ddof=1)) / units.MEV,
        overlap=float(1.0 / (len(weights) * (weights**2).sum())),
        energy_shift_meV=float(weights @ target - target.mean()) / units.MEV,
    )
