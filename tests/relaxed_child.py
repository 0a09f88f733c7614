"""Relaxation by springs that hold a molecule where it started, and a run that goes on by it."""

from mlmd_calc.models.analytic import Harmonic
from mlmd_calc.propagation import FunctionForces
from mlmd_calc.sampling import SamplingRun, relaxed


def springs(name, structure):
    """Make the force model "springs"."""
    assert name == "springs"
    return FunctionForces(Harmonic.tethers(5.0, structure.positions).energy_and_forces)


def shorten():
    """Make relaxations short; in every process the same."""
    relaxed.MINIMISE_STEPS, relaxed.DYNAMICS_STEPS = 300, 20


def go_on(folder, frames):
    """Go on with a run to its end."""
    shorten()
    run = SamplingRun.resume(folder, frames, springs)
    run.run()
    run.close()
