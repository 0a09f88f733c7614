"""Cheap forces of one molecule, fitted to accurate ones."""

from mlmd_calc.bonded.coordinates import InternalCoordinates
from mlmd_calc.bonded.force_field import BondedForceField

__all__ = ["BondedForceField", "InternalCoordinates"]
