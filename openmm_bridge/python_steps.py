"""Integrators whose steps are done in Python, and counted by OpenMM."""

from __future__ import annotations

import numbers
from typing import Any, Final

import openmm
from openmm import unit

from mlmd_calc.errors import ConfigError
from mlmd_calc.options import shown

_COUNTING: Final = "counting"
"""Global variable that is 1 while OpenMM counts a step that was done in Python."""


class PythonSteps(openmm.CustomIntegrator):  # type: ignore[misc]
    """A ``CustomIntegrator`` whose `step` is overridden in Python.

    The class is lost where OpenMM makes a copy in C++, in XML and inside ``CompoundIntegrator``.
    Such a copy makes all positions NaN in its first step rather than stand still.

    Parameters
    ----------
    step_ps
        Step size in ps.
    update
        Whether OpenMM does what it does in each step besides integrating, such as removing the
        motion of the centre of mass.
    """

    def __init__(self, step_ps: float, *, update: bool) -> None:
        super().__init__(step_ps)
        self.addGlobalVariable(_COUNTING, 0.0)
        if update:
            self.addUpdateContextState()
        # Copies made in C++ lose this class, and must fail rather than seem to work.
        self.beginIfBlock(f"{_COUNTING} = 0")
        self.addComputePerDof("x", f"x + sqrt({_COUNTING} - 1)")
        self.endBlock()

    def count_step(self) -> None:
        """Let OpenMM count a step, and time by the step size."""
        self.setGlobalVariableByName(_COUNTING, 1.0)
        try:
            super().step(1)
        finally:
            self.setGlobalVariableByName(_COUNTING, 0.0)


def number_in(quantity: Any, in_unit: Any) -> float:
    """Convert a Quantity to a number; a number is in the unit already.

    Raises
    ------
    ConfigError
        If it is not a number, or in a unit of something else.
    """
    value = quantity
    if unit.is_quantity(quantity) and quantity.unit.is_compatible(in_unit):
        value = quantity.value_in_unit(in_unit)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ConfigError(
            f"{shown(quantity)} cannot be expressed in {in_unit}; give a number in that unit, or a "
            "Quantity"
        )
    return float(value)
