"""A recorded run made of jumps that can be killed at any moment and continued, in both engines."""

import os
import signal
import threading
from dataclasses import replace

import numpy as np
import torch
from ase import Atoms
from toy_models import toy_model

from mlmd_calc import MDETCalculator, Potential
from mlmd_calc.md import JumpSettings, MDSettings, Run
from mlmd_calc.md.ase_engine import ASE
from mlmd_calc.md.checkpoint import CHECKPOINT_FILE
from mlmd_calc.potential import Evaluation
from mlmd_calc.propagation import FunctionForces, VerletPropagator

STEPS = 60
K, R0 = 20.0, 1.5
"""Force constant in eV/Å² and length in Å of the springs between all atoms."""


def springs(positions):
    """Energy in eV and forces in eV/Å."""
    ways = positions[:, None] - positions
    distances = np.linalg.norm(ways, axis=2) + np.eye(len(positions))
    stretch = (distances - R0) * (1.0 - np.eye(len(positions)))
    forces = -K * ((stretch / distances)[:, :, None] * ways).sum(axis=1)
    return 0.25 * K * float((stretch**2).sum()), forces


class SpringPotential(Potential):
    """Springs in the place of a network."""

    def __init__(self):
        super().__init__(toy_model(), device="cpu", forces="direct")

    def evaluate(self, structures, properties=(), coverage=None):
        return [Evaluation(*springs(structure.positions)) for structure in structures]


class Exact(VerletPropagator):
    """Jumps made of steps with the springs."""

    def __init__(self):
        super().__init__(FunctionForces(springs), 0.5)


class Unsteady(Exact):
    """Adds random kicks, and is far off now and then."""

    stochastic = True

    def propagate(self, states, times_fs, generator):
        answers = []
        for frames in super().propagate(states, times_fs, generator):
            kicks = 1e-4 * torch.randn(frames.velocities.shape, generator=generator).double()
            far = 5.0 if torch.rand((), generator=generator) < 0.1 else 1.0
            velocities = frames.velocities + kicks.numpy()
            answers.append(replace(frames, positions=far * frames.positions, velocities=velocities))
        return answers


def tetrahedron():
    """A molecule of four atoms at rest."""
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    return Atoms("CNOF", R0 / np.sqrt(8) * corners)


def spring_molecule(potential=SpringPotential):
    """The tetrahedron with a calculator."""
    atoms = tetrahedron()
    atoms.calc = MDETCalculator(toy_model(), device="cpu")
    atoms.calc.potential = potential()
    return atoms


def engine_of(name):
    if name == "ase":
        return ASE
    from openmm_bridge import OpenMMEngine

    return OpenMMEngine()


def run(folder, engine, kill_at=None, delay=0.0):
    """Start, or go on, and run to the end, or be killed some seconds after a step."""
    atoms = spring_molecule()
    parts = {"engine": engine_of(engine), "propagator": Unsteady()}
    if (folder / CHECKPOINT_FILE).exists():
        simulation = Run.resume(folder, atoms.calc, **parts)
    else:
        jumps = JumpSettings("unsteady", 2.0, 1, replicas=3 if engine == "ase" else 1)
        settings = MDSettings(
            friction_per_ps=10.0, seed=1, interval=1, checkpoint_interval=3, jumps=jumps
        )
        simulation = Run.start(atoms, folder, settings, **parts)
    killer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL))

    def on_frame(running):
        if kill_at is not None and running.step >= kill_at and not killer.is_alive():
            killer.start()

    with simulation:
        outcome = simulation.run(STEPS, on_frame=on_frame)
    if killer.is_alive():
        killer.join()
    return outcome, simulation
