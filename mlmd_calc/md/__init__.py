"""Molecular dynamics with ASE: recorded, guarded and restartable."""

from mlmd_calc.md.bonds import Bonds, find_bonds
from mlmd_calc.md.record import RunRecord, read_record
from mlmd_calc.md.settings import Ensemble, MDSettings
from mlmd_calc.md.simulation import Outcome, Simulation

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
