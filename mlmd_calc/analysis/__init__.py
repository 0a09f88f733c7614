"""What trajectories say: averages with errors, energy drift, bonds, pictures."""

from mlmd_calc.analysis.statistics import Drift, Mean, block_average, fit_drift
from mlmd_calc.analysis.trajectory import RunSummary, summarise

__all__ = ["Drift", "Mean", "RunSummary", "block_average", "fit_drift", "summarise"]
