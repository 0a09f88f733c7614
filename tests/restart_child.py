"""Dynamics with force models that are interrupted and gone on with by another process."""

import sys
from pathlib import Path

import numpy as np
from analytic_potentials import Springs, Tethers
from ase import Atoms

from mlmd_calc import units
from mlmd_calc.md import ExactMTS, ExactNVT, MTSLangevin


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


def exact_mts(**options):
    atoms = water()
    atoms.calc = Tethers(20.0, water().positions)
    # Some steps are rejected.
    settings = {"inner_steps": 4, "temperature_K": 300, "friction": 0.01 / units.FS}
    return ExactMTS(
        atoms,
        4.0 * units.FS,
        Tethers(12.0, water().positions),
        rng=np.random.default_rng(5),
        **{**settings, **options},
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


def run(steps):
    """Start, or go on, and do some steps; the trajectories run ahead of the restart files."""
    found = {}
    for kind, make in (("mts", mts), ("exact_mts", exact_mts), ("exact", exact)):
        restart = Path(f"{kind}.npz")
        options = {"restart": restart} if restart.exists() else {}
        dynamics = make(trajectory=f"{kind}.traj", loginterval=2, **options)
        dynamics.run(steps - 5)
        dynamics.save_restart(restart)
        dynamics.run(5)
        found[kind] = dynamics
    return found


if __name__ == "__main__":
    run(int(sys.argv[1]))
