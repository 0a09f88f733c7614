"""ATMOS, a state-space model of molecular motion with a diffusion decoder (arXiv 2603.17633)."""

from mlmd_calc.models.atmos.config import ATMOSConfig, SamplerConfig
from mlmd_calc.models.atmos.features import Context, Features, Memory
from mlmd_calc.models.atmos.network import ATMOS
from mlmd_calc.models.atmos.protenix import ProtenixReport, load_protenix
from mlmd_calc.models.atmos.rollout import Rollout

__all__ = [
    "ATMOS",
    "ATMOSConfig",
    "Context",
    "Features",
    "Memory",
    "ProtenixReport",
    "Rollout",
    "SamplerConfig",
    "load_protenix",
]
