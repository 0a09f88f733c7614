"""Water of springs, sound or with planted faults, and propagators of it: subjects of audits."""

from dataclasses import replace

import numpy as np
from ase.calculators.calculator import Calculator, all_changes

from mlmd_calc import units
from mlmd_calc.potential import Structure
from mlmd_calc.propagation import FunctionForces, Propagator, Strides, VerletPropagator

NUMBERS = np.array([8, 1, 1])
SHAPE = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
SPRING = 30.0
MINIMUM = Structure(NUMBERS, SHAPE)
FIRST, SECOND = np.triu_indices(3, 1)
LENGTHS = np.linalg.norm(SHAPE[FIRST] - SHAPE[SECOND], axis=1)
VORTEX = np.array([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]])
"""How the stretch of each spring makes the next one pull; antisymmetric."""


def stretches(positions):
    """Stretches of the three springs and their directions."""
    arms = positions[FIRST] - positions[SECOND]
    lengths = np.linalg.norm(arms, axis=1)
    return lengths - LENGTHS, arms / lengths[:, None]


def forces_of(pulls, directions):
    """Forces of springs that pull."""
    forces = np.zeros((3, 3))
    np.add.at(forces, FIRST, -pulls[:, None] * directions)
    np.add.at(forces, SECOND, pulls[:, None] * directions)
    return forces


def springs(positions):
    """Energy and forces of springs between all atoms."""
    stretch, directions = stretches(positions)
    return 0.5 * SPRING * float(stretch @ stretch), forces_of(SPRING * stretch, directions)


def with_vortex(share):
    """The springs, and a part of their pulls that drives them in a circle."""

    def function(positions):
        stretch, directions = stretches(positions)
        energy, forces = springs(positions)
        return energy, forces + forces_of(share * SPRING * VORTEX @ stretch, directions)

    return FunctionForces(function)


def single_precision(positions):
    """Springs whose positions are rounded before anything else."""
    return springs(positions.astype(np.float32).astype(np.float64))


class Jumps(Propagator):
    """Force-based steps, whose states and answers can be spoilt.

    Parameters
    ----------
    before
        From a state to what is moved instead of it.
    after
        From an answer to another one.
    """

    strides = Strides(shortest=0.5, unit=0.5)

    def __init__(self, before=lambda state: state, after=lambda frames: frames):
        self.potential = FunctionForces(springs)
        self._steps = VerletPropagator(self.potential, 0.5)
        self._before, self._after = before, after

    def propagate(self, states, times_fs, generator):
        starts = [self._before(replace(state, memory={})) for state in states]
        return [self._after(f) for f in self._steps.propagate(starts, times_fs, generator)]


def in_ase_units():
    """Takes velocities for those of ASE, and answers with such."""
    return Jumps(
        lambda state: replace(state, velocities=state.velocities * units.FS),
        lambda frames: replace(frames, velocities=frames.velocities / units.FS),
    )


def heating():
    """Makes atoms faster by half a percent."""
    return Jumps(after=lambda frames: replace(frames, velocities=1.005 * frames.velocities))


class Forgetful(Jumps):
    """Goes on with the velocities that it remembers instead of those it is given."""

    def propagate(self, states, times_fs, generator):
        remembered = [
            replace(state, velocities=state.memory.get("velocities", state.velocities))
            for state in states
        ]
        return [
            replace(frames, memory={"velocities": frames.velocities[-1]})
            for frames in super().propagate(remembered, times_fs, generator)
        ]


class WaterSprings(Calculator):
    """The springs as an ASE calculator."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, list(properties), list(system_changes))
        energy, forces = springs(self.atoms.positions)
        self.results = {"energy": energy, "forces": forces}


class OnlyForces(WaterSprings):
    """The same without an energy."""

    implemented_properties = ("forces",)


class Secretive(Jumps):
    """Does not tell its potential."""

    def __init__(self):
        super().__init__()
        self.potential = None


def springs_of_nothing():
    """Makes nothing."""
