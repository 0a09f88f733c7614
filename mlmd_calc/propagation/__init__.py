"""Long jumps instead of short steps: propagators, the loop that runs them, and what guards it.

Units are Å, Å/fs, fs, amu and eV. No engine is needed; :mod:`mlmd_calc.md` and
:mod:`openmm_bridge` put the loop into theirs.

Examples
--------
Sixty-four replicas of one molecule in one call per jump:

>>> import numpy as np
>>> from mlmd_calc.models.analytic import Harmonic
>>> from mlmd_calc.propagation import Guard, JumpLoop, Langevin, State
>>> from mlmd_calc.propagation.harmonic import HarmonicPropagator
>>> springs = Harmonic.springs(5.0 * np.ones((3, 3)))
>>> start = State(np.eye(3), np.zeros((3, 3)), numbers=[8, 1, 1], masses=[16.0, 1.0, 1.0])
>>> loop = JumpLoop(
...     [start] * 64,
...     HarmonicPropagator(springs),
...     stride_fs=8.0,
...     thermostat=Langevin(temperature_K=300.0, friction_per_fs=0.01),
...     guard=Guard.off(),
... )
>>> loop.advance()
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from mlmd_calc.io.restart import read_restart, write_restart
from mlmd_calc.propagation.corrections import Corrections
from mlmd_calc.propagation.events import EventLog
from mlmd_calc.propagation.forces import ForceModel, FunctionForces
from mlmd_calc.propagation.guards import (
    Bonding,
    Check,
    Contact,
    Displacement,
    EnergyWindow,
    Guard,
    Temperature,
    default_checks,
)
from mlmd_calc.propagation.loop import JumpLoop
from mlmd_calc.propagation.other_forces import OtherForces
from mlmd_calc.propagation.propagator import Conditions, Propagator, Strides
from mlmd_calc.propagation.proposals import Finding, Proposal
from mlmd_calc.propagation.state import Frames, State, state_from_ase
from mlmd_calc.propagation.thermostats import Bussi, Langevin, Thermostat, make_thermostat
from mlmd_calc.propagation.verlet import VerletPropagator

if TYPE_CHECKING:
    from mlmd_calc.propagation.atmos import ATMOSPropagator
    from mlmd_calc.propagation.atom import ATOMPropagator
    from mlmd_calc.propagation.load import load_propagator

_HOME: Final = {"ATMOSPropagator": "atmos", "ATOMPropagator": "atom", "load_propagator": "load"}
"""What needs the model store, which is not loaded before it is asked for."""

__all__ = [
    "ATMOSPropagator",
    "ATOMPropagator",
    "Bonding",
    "Bussi",
    "Check",
    "Conditions",
    "Contact",
    "Corrections",
    "Displacement",
    "EnergyWindow",
    "EventLog",
    "Finding",
    "ForceModel",
    "Frames",
    "FunctionForces",
    "Guard",
    "JumpLoop",
    "Langevin",
    "OtherForces",
    "Propagator",
    "Proposal",
    "State",
    "Strides",
    "Temperature",
    "Thermostat",
    "VerletPropagator",
    "default_checks",
    "load_propagator",
    "make_thermostat",
    "read_restart",
    "state_from_ase",
    "write_restart",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
