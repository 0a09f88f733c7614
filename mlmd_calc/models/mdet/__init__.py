"""MD-ET, an unconstrained edge-transformer force field (arXiv 2503.01431)."""

from mlmd_calc.models.mdet.config import MDETConfig
from mlmd_calc.models.mdet.network import MDET

__all__ = ["MDET", "MDETConfig"]
