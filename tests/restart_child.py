"""Dynamics with force models that are interrupted and gone on with by another process."""

import sys
from pathlib import Path

import numpy as np
from analytic_potentials import Springs, Tethers
from ase import Atoms

from mlmd_calc import units
from mlmd_calc.md import ExactNVT, MTSLangevin

STEPS = 24


def water():
    return Atoms("OH2", [[0, 0, 0], [1.05, 0, 0], [0, 0.9, 0]])


def mts(**options):
    atoms = water()
    atoms.set_momenta(np.random.default_rng(3).normal(0, 0.3, (3, 3)))
    atoms.calc = Springs(20.0, 1.0)
    return MTSLangevin(
        atoms,
        1.0 * units.FS,
        Springs(17.0, 1.0),
        inner_steps=2,
        temperature_K=300,
        friction=0.01 / units.FS,
        rng=np.random.default_rng(5),
        **options,
    )


def exact(**options):
    return ExactNVT(
        water(),
        0.4 * units.FS,
        Tethers(20.0, water().positions),
        Tethers(12.0, water().positions),
        temperature_K=300,
        trajectory_steps=9,
        warmup=10,
        frames_file="far.traj",
        rng=np.random.default_rng(5),
        **options,
    )


def run(kind, steps):
    """Start, or go on, and do some steps; the trajectory runs ahead of the restart file."""
    restart = Path("run.npz")
    options = {"restart": restart} if restart.exists() else {}
    dyn = {"mts": mts, "exact": exact}[kind](trajectory="run.traj", loginterval=2, **options)
    dyn.run(steps - 5 if steps > 5 else 0)
    dyn.save_restart(restart)
    dyn.run(min(5, steps))
    return dyn


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]))
