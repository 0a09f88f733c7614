"""A trajectory in the layout of MD17, where the published files are not at hand.

    python benchmarks/md17_like.py ethanol --frames 300000 --out md17/ethanol.npz

GFN2-xTB at 500 K in time steps of 0.5 fs, every one stored, without velocities. The thermostat only
scales velocities, so that centre of mass and angular momentum stay at rest, as in MD17: there the
axes of a molecule are nearly the same in all frames. The level of theory is not that of MD17 (PBE
with dispersion).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import numpy as np
from ase import Atoms
from ase.md.bussi import Bussi
from ase.md.velocitydistribution import Stationary, ZeroRotation
from rich.progress import Progress

from mlmd_calc import units
from mlmd_calc.data.gfn2 import gfn2_calculator
from mlmd_calc.data.molecules import MOLECULES, start_structures
from mlmd_calc.data.sampling import relax
from mlmd_calc.io.files import replacing
from mlmd_calc.md import draw_momenta

TIMESTEP_FS: Final = 0.5
COUPLING_FS: Final = 100.0
THERMALISE: Final = 4000
"""Steps before the first frame."""


def main() -> None:
    """Run the dynamics and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("molecule", choices=sorted(MOLECULES), metavar="molecule")
    parser.add_argument("--frames", type=int, default=300_000)
    parser.add_argument("--temperature", type=float, default=500.0, help="K")
    parser.add_argument("--thermalise", type=int, default=THERMALISE, help="steps")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="npz file")
    arguments = parser.parse_args()
    molecule = MOLECULES[arguments.molecule]
    rng = np.random.default_rng(arguments.seed)
    start = start_structures(molecule, 1, arguments.seed)
    atoms = Atoms(start.numbers, start.positions[0])
    atoms.calc = gfn2_calculator(molecule.charge, molecule.multiplicity)
    relax(molecule, atoms, start)
    atoms.positions -= atoms.get_center_of_mass()
    draw_momenta(atoms, arguments.temperature, rng)
    Stationary(atoms)
    ZeroRotation(atoms)
    dynamics = Bussi(
        atoms,
        TIMESTEP_FS * units.FS,
        temperature_K=arguments.temperature,
        taut=COUPLING_FS * units.FS,
        rng=rng,
    )
    dynamics.run(arguments.thermalise)
    positions = np.empty((arguments.frames, len(atoms), 3))
    forces, energies = np.empty_like(positions), np.empty((arguments.frames, 1))
    frames = iter(range(arguments.frames))
    with Progress() as progress:
        bar = progress.add_task(arguments.molecule, total=arguments.frames)

        def store() -> None:
            frame = next(frames)
            positions[frame], forces[frame] = atoms.positions, atoms.get_forces()
            energies[frame] = atoms.get_potential_energy()
            progress.advance(bar)

        # The state before the first step is stored as well.
        dynamics.nsteps = 0
        dynamics.attach(store)
        dynamics.run(arguments.frames - 1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(arguments.out) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            z=start.numbers.astype(np.uint8),
            R=positions,
            F=forces / units.KCAL_PER_MOL,
            E=energies / units.KCAL_PER_MOL,
        )


if __name__ == "__main__":
    main()
