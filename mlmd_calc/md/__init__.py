"""Molecular dynamics with ASE: recorded, watched and restartable.

Names are loaded on first use: settings can be read without ASE's dynamics.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mlmd_calc.md.bonds import Bonds, find_bonds
    from mlmd_calc.md.record import RunRecord, read_record
    from mlmd_calc.md.settings import Ensemble, MDSettings
    from mlmd_calc.md.simulation import Outcome, Simulation

_HOME: Final = {
    "Bonds": "bonds",
    "Ensemble": "settings",
    "MDSettings": "settings",
    "Outcome": "simulation",
    "RunRecord": "record",
    "Simulation": "simulation",
    "find_bonds": "bonds",
    "read_record": "record",
}

__all__ = [
    "Bonds",
    "Ensemble",
    "MDSettings",
    "Outcome",
    "RunRecord",
    "Simulation",
    "find_bonds",
    "read_record",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
