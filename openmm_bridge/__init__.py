"""Learned force fields and propagators inside OpenMM.

Names are loaded on first use, so that importing the package costs neither openmm nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from mlmd_calc.optional import require

if TYPE_CHECKING:
    from openmm_bridge.backends import available_backends
    from openmm_bridge.checks import check_system
    from openmm_bridge.engine import OpenMMEngine
    from openmm_bridge.exact import ExactNVTIntegrator
    from openmm_bridge.export import export_module
    from openmm_bridge.forces import create_force
    from openmm_bridge.integrators import JumpNVEIntegrator, JumpNVTIntegrator
    from openmm_bridge.orientations import restore_orientations, store_orientations
    from openmm_bridge.reporters import ProgressReporter
    from openmm_bridge.stored import load_system
    from openmm_bridge.topology_features import structure_from_topology

_HOME: Final = {
    "ExactNVTIntegrator": "openmm_bridge.exact",
    "JumpNVEIntegrator": "openmm_bridge.integrators",
    "JumpNVTIntegrator": "openmm_bridge.integrators",
    "OpenMMEngine": "openmm_bridge.engine",
    "ProgressReporter": "openmm_bridge.reporters",
    "available_backends": "openmm_bridge.backends",
    "check_system": "openmm_bridge.checks",
    "create_force": "openmm_bridge.forces",
    "export_module": "openmm_bridge.export",
    "load_system": "openmm_bridge.stored",
    "restore_orientations": "openmm_bridge.orientations",
    "store_orientations": "openmm_bridge.orientations",
    "structure_from_topology": "openmm_bridge.topology_features",
}

__all__ = [
    "ExactNVTIntegrator",
    "JumpNVEIntegrator",
    "JumpNVTIntegrator",
    "OpenMMEngine",
    "ProgressReporter",
    "available_backends",
    "check_system",
    "create_force",
    "export_module",
    "load_system",
    "restore_orientations",
    "store_orientations",
    "structure_from_topology",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        require("openmm", extra="openmm", why=f"use openmm_bridge.{name}")
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'openmm_bridge' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
