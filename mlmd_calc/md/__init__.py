"""Molecular dynamics: recorded, watched and restartable; with ASE, and what other engines share.

Names are loaded on first use: settings can be read without ASE's dynamics.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mlmd_calc.md.bonds import Bonds, find_bonds
    from mlmd_calc.md.jumps import JumpNVE, JumpNVT
    from mlmd_calc.md.record import RunRecord, read_record
    from mlmd_calc.md.recorded_run import Outcome, RecordedRun
    from mlmd_calc.md.settings import Engine, Ensemble, MDSettings
    from mlmd_calc.md.simulation import Simulation

_HOME: Final = {
    "Bonds": "bonds",
    "Engine": "settings",
    "Ensemble": "settings",
    "JumpNVE": "jumps",
    "JumpNVT": "jumps",
    "MDSettings": "settings",
    "Outcome": "recorded_run",
    "RecordedRun": "recorded_run",
    "RunRecord": "record",
    "Simulation": "simulation",
    "find_bonds": "bonds",
    "read_record": "record",
}

__all__ = [
    "Bonds",
    "Engine",
    "Ensemble",
    "JumpNVE",
    "JumpNVT",
    "MDSettings",
    "Outcome",
    "RecordedRun",
    "RunRecord",
    "Simulation",
    "find_bonds",
    "read_record",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
