"""Molecular dynamics: recorded, watched and restartable; with ASE, and what other engines share.

Names are loaded on first use: settings can be read without ASE's dynamics.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mlmd_calc.md.ase_engine import ASEEngine
    from mlmd_calc.md.dynamics import draw_momenta
    from mlmd_calc.md.exact import ExactNVT, ExactSamples
    from mlmd_calc.md.exact_mts import ExactMTS
    from mlmd_calc.md.jumps import JumpNVE, JumpNVT
    from mlmd_calc.md.mts import MTSLangevin, MTSVelocityVerlet
    from mlmd_calc.md.record import RunRecord, read_record
    from mlmd_calc.md.run import Outcome, Run
    from mlmd_calc.md.settings import (
        Engine,
        Ensemble,
        ExactSettings,
        InnerForces,
        JumpSettings,
        MDSettings,
    )

_HOME: Final = {
    "ASEEngine": "ase_engine",
    "Engine": "settings",
    "Ensemble": "settings",
    "ExactMTS": "exact_mts",
    "ExactNVT": "exact",
    "ExactSamples": "exact",
    "ExactSettings": "settings",
    "InnerForces": "settings",
    "JumpNVE": "jumps",
    "JumpNVT": "jumps",
    "JumpSettings": "settings",
    "MDSettings": "settings",
    "MTSLangevin": "mts",
    "MTSVelocityVerlet": "mts",
    "Outcome": "run",
    "Run": "run",
    "RunRecord": "record",
    "draw_momenta": "dynamics",
    "read_record": "record",
}

__all__ = [
    "ASEEngine",
    "Engine",
    "Ensemble",
    "ExactMTS",
    "ExactNVT",
    "ExactSamples",
    "ExactSettings",
    "InnerForces",
    "JumpNVE",
    "JumpNVT",
    "JumpSettings",
    "MDSettings",
    "MTSLangevin",
    "MTSVelocityVerlet",
    "Outcome",
    "Run",
    "RunRecord",
    "draw_momenta",
    "read_record",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
