"""Integrators whose steps are done in Python, and counted by OpenMM."""

from __future__ import annotations

import numbers
from typing import Any, Final

import numpy as np
import openmm
from openmm import unit

from mlmd_calc.errors import ConfigError
from mlmd_calc.options import shown

_COUNTING: Final = "counting"
"""Global variable that is 1 while OpenMM counts a step that was done in Python."""


class PythonSteps(openmm.CustomIntegrator):  # type: ignore[misc]
    """A ``CustomIntegrator`` whose `step` is overridden in Python.

    The class is lost where OpenMM makes a copy in C++, as in XML. Such a copy makes all positions
    NaN in its first step rather than stand still.

    Parameters
    ----------
    step_ps
        Step size in ps.
    update
        Whether OpenMM does what it does in each step besides integrating, such as removing the
        motion of the centre of mass.
    rng
        Source of randomness; None draws a seed from the system.
    """

    def __init__(self, step_ps: float, *, update: bool, rng: np.random.Generator | None) -> None:
        super().__init__(step_ps)
        self._rng = np.random.default_rng() if rng is None else rng
        self.addGlobalVariable(_COUNTING, 0.0)
        if update:
            self.addUpdateContextState()
        # Copies made in C++ lose this class, and must fail rather than seem to work.
        self.beginIfBlock(f"{_COUNTING} = 0")
        self.addComputePerDof("x", f"x + sqrt({_COUNTING} - 1)")
        self.endBlock()

    @property
    def thisown(self) -> bool:
        """Who owns OpenMM's object, which nobody asks but a ``CompoundIntegrator``.

        Raises
        ------
        ConfigError
            Always: it would step in C++.
        """
        raise ConfigError(
            f"a {type(self).__name__} does its steps in Python, and cannot be one of a "
            "CompoundIntegrator, which steps without Python; make the Simulation with it alone "
            "(jumps have force-based steps in between by md_steps_per_jump)"
        )

    @property
    def _begun(self) -> bool:
        """Whether the run has begun."""
        raise NotImplementedError

    def setRandomNumberSeed(self, seed: int) -> None:  # noqa: N802
        """Set the seed in place of `rng`; 0 draws one.

        Raises
        ------
        ConfigError
            If the run has begun.
        """
        if self._begun:
            raise ConfigError("the run has begun; set the seed before the first step")
        super().setRandomNumberSeed(seed)
        self._rng = np.random.default_rng(seed or None)

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
