"""A jump run with ASE that can be killed at any moment and continued."""

import os
import signal
import threading
from dataclasses import replace

import numpy as np
from analytic_potentials import HarmonicCalculator
from jump_systems import Noisy, tethered

from mlmd_calc import units
from mlmd_calc.md import JumpNVT
from mlmd_calc.propagation import Corrections, Displacement, Guard

STEPS = 99


def run(folder, rng_seed=1, kill_at=None, delay=0.0):
    """Start, or go on, and run to the end, or be killed some seconds after a step."""
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
        corrections=replace(Corrections.none(), balance_elements=True),
        guard=Guard(checks=(Displacement("accept", factor=1.0),), frames_file=os.devnull),
        md_steps_per_jump=2,
        trajectory=folder / "run.traj",
        loginterval=2,
        restart=restart if restart.exists() else None,
        rng=np.random.default_rng(rng_seed),
    )
    dyn.attach(dyn.save_restart, 3, restart)
    killer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL))
    dyn.attach(lambda: killer.start() if dyn.nsteps == kill_at else None)
    dyn.run(STEPS - dyn.nsteps)
    if killer.is_alive():
        killer.join()
    return dyn
