"""What a force field does that physics does not: four tests of its symmetry in one table.

    python benchmarks/isotropy.py --model mdet-small-organics

* energy: standard deviation and range over the 60 rotations of the icosahedron, meV;
* angular momentum: |L| after 0.5 ps of NVE dynamics of a distorted molecule from rest, over the
  root mean square of L at 300 K;
* optimisation: BFGS steps until no force exceeds 0.002 eV/Å, or that it does not get there;
* separation: energy of two molecules 30 Å apart less the sum of both, meV.

All in the recommended setting of the model unless options say otherwise.
"""

from __future__ import annotations

import argparse
import json
from typing import Any, Final

import ase
import numpy as np
from ase import units
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mlmd_calc import MDETCalculator
from mlmd_calc.analysis.accuracy import turned_copies
from mlmd_calc.data.molecules import MOLECULES, start_structures
from mlmd_calc.potential import structure_from_ase
from mlmd_calc.potential.coverage import Coverage

ORIENTED: Final = ("ethanol", "aspirin", "uracil")
OPTIMISED: Final = (
    *("methane", "ammonia", "formaldehyde", "ethane", "ethanol"),
    *("acetone", "acetamide", "benzene", "pyrrole", "butane"),
)
SEPARATED: Final = (("water", "water"), ("ethanol", "benzene"))
LARGEST_FORCE: Final = 0.002
STEPS: Final = 300
TIMESTEP_FS: Final = 0.5
DURATION_FS: Final = 500.0
DISTORTION: Final = 0.1
DISTANCE: Final = 30.0
TEMPERATURE_K: Final = 300.0


def start(name: str) -> ase.Atoms:
    """Force-field geometry of a molecule of the built-in table."""
    built = start_structures(MOLECULES[name], 1, 0)
    return ase.Atoms(built.numbers, built.positions[0])


def orientation(calculator: Any, name: str) -> dict[str, float]:
    """Spread of the energy over 60 rotations, meV."""
    turned = turned_copies(structure_from_ase(start(name)))
    energies = [1000.0 * one.energy for one in calculator.potential.evaluate(turned, ("energy",))]
    return {"std_meV": float(np.std(energies)), "range_meV": float(np.ptp(energies))}


def angular_momentum(calculator: Any, name: str) -> dict[str, float]:
    """Angular momentum after half a picosecond from rest, in units of its thermal size."""
    atoms = start(name)
    atoms.rattle(DISTORTION, seed=0)
    atoms.calc = calculator
    with VelocityVerlet(atoms, TIMESTEP_FS * units.fs) as dynamics:
        dynamics.run(round(DURATION_FS / TIMESTEP_FS))
    thermal = np.sqrt(TEMPERATURE_K * units.kB * atoms.get_moments_of_inertia().sum())
    return {"relative": float(np.linalg.norm(atoms.get_angular_momentum()) / thermal)}


def optimisation(calculator: Any, name: str) -> dict[str, Any]:
    """Whether and how fast BFGS converges."""
    atoms = start(name)
    atoms.calc = calculator
    with BFGS(atoms, logfile=None) as optimiser:
        converged = bool(optimiser.run(fmax=LARGEST_FORCE, steps=STEPS))
    return {"converged": converged, "steps": int(optimiser.nsteps)}


def separation(calculator: Any, pair: tuple[str, str]) -> dict[str, float]:
    """Energy of two molecules far apart less that of each alone, meV."""
    first, second = map(start, pair)
    # Calculators refuse separate molecules.
    anywhere = Coverage(closest=0.05, gap=np.inf)

    def energy(atoms: ase.Atoms) -> Any:
        return calculator.potential.evaluate([atoms], ("energy",), coverage=anywhere)[0].energy

    alone = energy(first) + energy(second)
    second.positions += first.positions.mean(0) - second.positions.mean(0) + [DISTANCE, 0.0, 0.0]
    return {"difference_meV": float(1000.0 * (energy(first + second) - alone))}


def main() -> None:
    """Run all tests and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=None, help="default: the default shipped model")
    parser.add_argument("--forces", choices=("direct", "conservative"))
    parser.add_argument("--rotation", choices=("none", "average", "random"))
    parser.add_argument("--n-rotations", type=int)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    options = {"forces": arguments.forces, "rotation": arguments.rotation}
    calculator = MDETCalculator(
        arguments.model, **options, n_rotations=arguments.n_rotations, device="cpu", seed=0
    )
    jobs: list[tuple[str, str, Any, Any]] = [
        *(("energy over 60 rotations", name, orientation, name) for name in ORIENTED),
        *(("|L| after 0.5 ps from rest", name, angular_momentum, name) for name in ORIENTED),
        *((f"BFGS to {LARGEST_FORCE} eV/Å", name, optimisation, name) for name in OPTIMISED),
        *((f"{DISTANCE:g} Å apart", " + ".join(pair), separation, pair) for pair in SEPARATED),
    ]
    rows = [
        {"test": test, "molecule": label, **measure(calculator, what)}
        for test, label, measure, what in track(jobs, console=Console(stderr=True))
    ]
    if arguments.json:
        print(json.dumps({"model": calculator.potential.model.card.name, "rows": rows}, indent=1))
        return
    table = Table("test", "molecule", "result", title=calculator.potential.model.card.name)
    for row in rows:
        values = [
            f"{key.replace('_', ' ')} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in row.items()
            if key not in ("test", "molecule")
        ]
        table.add_row(row["test"], row["molecule"], ", ".join(values))
    Console().print(table)


if __name__ == "__main__":
    main()
