"""ATOM, a transformer operator from one molecular state to future frames (arXiv 2510.05482)."""

from mlmd_calc.models.atom.config import ATOMConfig, IntegratorConfig
from mlmd_calc.models.atom.features import input_features, return_probabilities
from mlmd_calc.models.atom.inference import merge_weights, record
from mlmd_calc.models.atom.integrator import ATOMIntegrator
from mlmd_calc.models.atom.network import ATOM

__all__ = [
    "ATOM",
    "ATOMConfig",
    "ATOMIntegrator",
    "IntegratorConfig",
    "input_features",
    "merge_weights",
    "record",
    "return_probabilities",
]
