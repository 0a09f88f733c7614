"""Networks: tensors in, tensors out. No files, no engines, no units but their own."""

from mlmd_calc.models.atmos import ATMOS, ATMOSConfig
from mlmd_calc.models.atom import ATOM, ATOMConfig, ATOMIntegrator, IntegratorConfig
from mlmd_calc.models.mdet import MDET, MDETConfig

__all__ = [
    "ATMOS",
    "ATOM",
    "MDET",
    "ATMOSConfig",
    "ATOMConfig",
    "ATOMIntegrator",
    "IntegratorConfig",
    "MDETConfig",
]
