"""Runs with frames inside jumps that can be killed at any moment and continued."""

import os
import signal

import numpy as np
from analytic_potentials import HarmonicCalculator
from jump_run_child import Unsteady, engine_of, spring_molecule
from jump_systems import Noisy, tethered

from mlmd_calc import units
from mlmd_calc.md import JumpNVT, JumpSettings, MDSettings, Run
from mlmd_calc.md.checkpoint import CHECKPOINT_FILE
from mlmd_calc.propagation import Corrections, Guard

STEPS = 24


def run(folder, engine, kill_at=None):
    """Start a recorded run, or go on, and run to the end, or be killed after a step."""
    atoms = spring_molecule()
    parts = {"engine": engine_of(engine), "propagator": Unsteady()}
    if (folder / CHECKPOINT_FILE).exists():
        simulation = Run.resume(folder, atoms.calc, **parts)
    else:
        replicas = 2 if engine == "ase" else 1
        jumps = JumpSettings("unsteady", 2.0, 2, replicas=replicas, frames_per_jump=2)
        settings = MDSettings(
            friction_per_ps=10.0, seed=1, interval=1, checkpoint_interval=3, jumps=jumps
        )
        simulation = Run.start(atoms, folder, settings, **parts)

    def on_frame(running):
        if running.step == kill_at:
            running._recorder.sync()
            os.kill(os.getpid(), signal.SIGKILL)

    with simulation:
        return simulation.run(STEPS, on_frame=on_frame)


def run_with_ase(folder, kill_at=None):
    """The same of the dynamics that scripts use, with a trajectory of ASE."""
    harmonic, start = tethered()
    atoms = start.to_atoms()
    atoms.calc = HarmonicCalculator(harmonic)
    restart = folder / "run.npz"
    dyn = JumpNVT(
        atoms,
        8 * units.FS,
        Noisy(harmonic),
        temperature_K=300.0,
        friction=0.01 / units.FS,
        corrections=Corrections.none(),
        guard=Guard.off(),
        frames_per_jump=4,
        trajectory=folder / "run.traj",
        restart=restart if restart.exists() else None,
        rng=np.random.default_rng(1),
    )
    dyn.attach(dyn.save_restart, 3, restart)
    dyn.attach(lambda: os.kill(os.getpid(), signal.SIGKILL) if dyn.nsteps == kill_at else None)
    dyn.run(STEPS - dyn.nsteps)
