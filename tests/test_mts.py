"""Multiple time stepping: what it is with one inner step, its order, its ensemble, restarts."""

import numpy as np
import pytest
from analytic_potentials import Springs, Tethers
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.constraints import FixAtoms
from ase.md.verlet import VelocityVerlet
from restart_child import water
from toy_models import toy_model

from mlmd_calc import MDETCalculator, Potential, units
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.md import MTSLangevin, MTSVelocityVerlet, draw_momenta
from mlmd_calc.propagation import FunctionForces


def moving_water(k=20.0):
    atoms = water()
    draw_momenta(atoms, 600.0, np.random.default_rng(1))
    atoms.calc = Springs(k, 1.0)
    return atoms
