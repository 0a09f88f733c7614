"""Learned molecular dynamics for ASE and OpenMM.

Names are loaded on first use, so that importing the package costs neither torch nor ase.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mlmd_calc.calculator import MDETCalculator
    from mlmd_calc.potential import Potential
    from mlmd_calc.propagation.load import load_propagator
    from mlmd_calc.zoo import list_models, load_model

__version__: Final = "0.1.0"

_HOME: Final = {
    "MDETCalculator": "mlmd_calc.calculator",
    "Potential": "mlmd_calc.potential",
    "list_models": "mlmd_calc.zoo",
    "load_model": "mlmd_calc.zoo",
    "load_propagator": "mlmd_calc.propagation.load",
}

_PACKAGES: Final = (
    *("analysis", "biomolecules", "bonded", "data", "md", "models", "potential", "propagation"),
    *("sampling", "torchsim", "zoo"),
)
"""What has names for scripts besides, see docs/python.md."""

__all__ = [
    "MDETCalculator",
    "Potential",
    "__version__",
    "list_models",
    "load_model",
    "load_propagator",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"mlmd_calc.{name}")
    raise AttributeError(f"module 'mlmd_calc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_PACKAGES]
