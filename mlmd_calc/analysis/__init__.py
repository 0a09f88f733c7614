"""What trajectories say: averages with errors, energy drift, bonds, pictures."""

from mlmd_calc.analysis.exact import (
    ExactSummary,
    ProposalBias,
    effective_samples,
    summarise_exact,
)
from mlmd_calc.analysis.statistics import Drift, Mean, block_average, fit_drift
from mlmd_calc.analysis.trajectory import RunSummary, summarise

__all__ = [
    "Drift",
    "ExactSummary",
    "Mean",
    "ProposalBias",
    "RunSummary",
    "block_average",
    "effective_samples",
    "fit_drift",
    "summarise",
    "summarise_exact",
]
