"""Networks: tensors in, tensors out. No files, no engines, no units but their own."""

from mlmd_calc.models.mdet import MDET, MDETConfig

__all__ = ["MDET", "MDETConfig"]
