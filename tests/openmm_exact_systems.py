"""Tethered particles for exact ensembles in OpenMM; as a script, the first part of a run.

python openmm_exact_systems.py FOLDER
"""

import sys
from pathlib import Path

import ase
import numpy as np
import openmm
from openmm_systems import context_of, system_of

STIFFNESS = 50000.0
"""kJ/mol/nm²."""

TEMPERATURE = 300.0


def tethered(stiffness: float, count: int = 30) -> openmm.System:
    """Carbon atoms that are each held at the origin."""
    force = openmm.CustomExternalForce("0.5*k*(x^2+y^2+z^2)")
    force.addGlobalParameter("k", stiffness)
    for i in range(count):
        force.addParticle(i)
    return system_of(ase.Atoms(f"C{count}"), force)


def sampling(target: openmm.System, proposal: openmm.System, **options):
    """Context that samples the target, and its integrator."""
    from openmm_bridge import ExactNVTIntegrator

    options = {"trajectorySteps": 8, "warmup": 0, "rng": np.random.default_rng(3), **options}
    integrator = ExactNVTIntegrator(proposal, TEMPERATURE, np.inf, 0.005, **options)
    start = np.zeros((target.getNumParticles(), 3))
    return context_of(target, start, integrator=integrator), integrator


def begin():
    """Run that warms up, with a proposal that is too soft."""
    return sampling(tethered(STIFFNESS, 5), tethered(0.7 * STIFFNESS, 5), warmup=6)


if __name__ == "__main__":
    context, integrator = begin()
    integrator.step(10)
    integrator.saveRestart(Path(sys.argv[1]) / "exact.npz")
    integrator.step(3)
