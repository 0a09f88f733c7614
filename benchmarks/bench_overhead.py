"""Time per step that the engines and their bridges take, measured with a model that costs nothing.

Two stand-ins are put behind every bridge: a force evaluation that answers zero at once, which
leaves the bridge alone, and the complete evaluation (``mlmd_calc.Potential``: checks, orientations,
projections, units) of a network that answers zero at once. The difference to the same system
without a force is the overhead. All variants run in turns in one process on one thread; a number is
the median over the turns, of wall time and of processor time, which other load disturbs less. Needs
OpenMM::

    python benchmarks/bench_overhead.py
    python benchmarks/bench_overhead.py --atoms 9 --json

The exit status is 1 if the back end "python" takes more than allowed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any, Final

# Before openmm, whose plug-in for TorchForce needs the libraries of torch.
import torch  # isort: split

import ase
import numpy as np
import openmm
from ase.calculators.calculator import Calculator
from ase.md.verlet import VelocityVerlet
from common import deliver, environment
from mdet_forms import chain_molecule
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mlmd_calc import MDETCalculator, Potential, units
from mlmd_calc.models import MDET, MDETConfig
from mlmd_calc.potential import Evaluation
from mlmd_calc.zoo import Model, ModelCard
from openmm_bridge import available_backends
from openmm_bridge.backends import openmmtorch_module
from openmm_bridge.computation import MDETComputation, TensorComputation
from openmm_bridge.export import torchscript_module
from openmm_bridge.region import Region

TARGET_S: Final = 0.3e-3
"""Seconds per step that the back end "python" may add."""

PLATFORMS: Final = ("Reference", "CPU")
TIMESTEP_FS: Final = 0.01
"""So short that atoms without forces stay where they are."""

_SIZES: Final = (9, 21)
_TURNS: Final = 15
_SECONDS: Final = 0.02
"""How long one timing takes."""
_NOTHING, _BRIDGE, _COMPLETE = _WHATS = ("nothing", "bridge", "complete")
_CLOCKS: Final = ("wall_s", "cpu_s")

Stepper = Callable[[int], None]
"""Does a number of steps."""


class ZeroNetwork(MDET):
    """Network that predicts zero."""

    def __init__(self) -> None:
        super().__init__(MDETConfig(n_layers=1, embd_dim=8, num_heads=1, num_3d_kernels=2))

    def forward(self, positions: Tensor, *_: Any, **__: Any) -> dict[str, Tensor]:
        """Return zeros that depend on the positions, as an energy has to."""
        forces = 0.0 * positions
        return {"forces": forces, "formation_energy": forces.sum(dim=(1, 2))[:, None]}


class ZeroPotential(Potential):
    """Potential that answers zero at once."""

    def evaluate(
        self, structures: Any, properties: Any = (), *, coverage: Any = None
    ) -> list[Evaluation]:
        """Return zero energies and forces."""
        return [Evaluation(0.0, np.zeros((len(item), 3))) for item in structures]


class ZeroModule(nn.Module):
    """What :class:`ZeroPotential` is to the other back ends, for TorchForce."""

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return zero energy and forces."""
        forces = torch.zeros_like(positions)
        return forces[0, 0], forces


class ZeroCalculator(Calculator):
    """The least that ASE needs to move atoms."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms: Any = None, properties: Any = (), system_changes: Any = ()) -> None:
        """Return zeros."""
        self.atoms = atoms.copy()
        self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}


def zero_potential(kind: type[Potential]) -> Potential:
    """Make a potential around the network that costs nothing, with the usual options."""
    network: Any = ZeroNetwork()
    card = ModelCard(name="zero")
    model = Model(network=network, card=card, atomic_energies={}, source="", sha256="")
    return kind(model, device="cpu", forces="direct", rotation="random", seed=0)


def openmm_region(atoms: ase.Atoms) -> Region:
    """All atoms of a System without a box."""
    count = len(atoms)
    return Region(
        numbers=atoms.numbers.astype(np.int64),
        particles=np.arange(count),
        system_size=count,
        charge=0,
        multiplicity=1,
        periodic=False,
        parents=np.zeros(count, dtype=np.int64),
    )


def openmm_force(backend: str, what: str, atoms: ase.Atoms) -> Any:
    """Make the force of a back end, or None if `what` is "nothing"."""
    if what == _NOTHING:
        return None
    region = openmm_region(atoms)
    potential = zero_potential(ZeroPotential if what == _BRIDGE else Potential)
    if backend == "torchscript":
        module = (
            torch.jit.script(ZeroModule())
            if what == _BRIDGE
            else torchscript_module(potential, region)
        )
        force = openmmtorch_module().TorchForce(module)
        force.setOutputsForces(True)
        return force
    computation = MDETComputation(potential, region)
    if backend == "pytorch":
        return openmmtorch_module().PythonTorchForce(TensorComputation(computation))
    return openmm.PythonForce(computation)


def openmm_stepper(platform_name: str, force: Any, atoms: ase.Atoms) -> Stepper:
    """Set up a System of the atoms with a force (or None)."""
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    if force is not None:
        system.addForce(force)
    integrator = openmm.VerletIntegrator(TIMESTEP_FS / units.FS_PER_PS)
    chosen = openmm.Platform.getPlatformByName(platform_name)
    properties = {"Threads": "1"} if "Threads" in chosen.getPropertyNames() else {}
    context = openmm.Context(system, integrator, chosen, properties)
    context.setPositions(atoms.positions / units.NM)

    def step(count: int) -> None:
        # Holds the context, without which the integrator does nothing.
        context.getIntegrator().step(count)

    return step


def ase_stepper(what: str, atoms: ase.Atoms) -> Stepper:
    """Set up ASE's velocity Verlet; the atoms move, so that nothing comes from a cache."""
    moving = atoms.copy()
    moving.set_velocities(np.full((len(moving), 3), 1e-3))
    if what == _NOTHING:
        moving.calc = ZeroCalculator()
    else:
        moving.calc = MDETCalculator(zero_potential(Potential).model, forces="direct", seed=0)
        moving.calc.potential = zero_potential(ZeroPotential if what == _BRIDGE else Potential)
    dynamics = VelocityVerlet(moving, TIMESTEP_FS * units.FS)

    def step(count: int) -> None:
        for _ in range(count):
            dynamics.step()

    return step


def steppers(atoms: ase.Atoms) -> dict[tuple[str, str, str], Stepper]:
    """Set up all variants, by engine or platform, back end, and what is evaluated."""
    found = {("ASE", "calculator", what): ase_stepper(what, atoms) for what in _WHATS}
    for platform_name in PLATFORMS:
        for backend in available_backends():
            for what in _WHATS:
                force = openmm_force(backend, what, atoms)
                stepper = openmm_stepper(platform_name, force, atoms)
                found[platform_name, backend, what] = stepper
    return found


def measure(n_atoms: int, turns: int = _TURNS) -> list[dict[str, Any]]:
    """Time all variants for one size.

    Parameters
    ----------
    n_atoms
        Size of the molecule.
    turns
        How often each variant is timed.
    """
    atoms = chain_molecule(n_atoms)
    variants = steppers(atoms)
    steps = {key: steps_in(_SECONDS, step) for key, step in variants.items()}
    samples: dict[tuple[str, str, str], list[tuple[float, float]]] = {key: [] for key in variants}
    for _ in range(turns):
        for key, step in variants.items():
            samples[key].append(time_per_step(step, steps[key]))
    medians = {key: np.median(values, axis=0) for key, values in samples.items()}
    rows = []
    for engine, backend in dict.fromkeys(key[:2] for key in variants):
        nothing, bridge, complete = (medians[engine, backend, what] for what in _WHATS)
        row: dict[str, Any] = {"n_atoms": n_atoms, "engine": engine, "backend": backend}
        for clock, name in enumerate(_CLOCKS):
            row[name] = {
                "engine_alone": float(nothing[clock]),
                "bridge": float(bridge[clock] - nothing[clock]),
                "complete": float(complete[clock] - nothing[clock]),
            }
        row["target_s"] = TARGET_S if backend == "python" else None
        rows.append(row)
    return rows


def steps_in(seconds: float, step: Stepper) -> int:
    """Count the steps that take about so many seconds, after some that warm up."""
    step(10)
    return max(1, round(seconds / time_per_step(step, 10)[0]))


def time_per_step(step: Stepper, count: int) -> tuple[float, float]:
    """Wall time and processor time of one step, seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    step(count)
    return (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count


def result_table(report: dict[str, Any]) -> Table:
    """Lay the report out for reading."""
    where = report["environment"]
    table = Table(
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        title="Overhead per step, µs",
        caption=(
            f"{where['cores']} cores, load {where['load_average_1min']:.1f}, OpenMM "
            f"{where['openmm']}, ASE {where['ase']}, torch {where['torch']}. alone: a step without "
            "a force, or with a calculator that answers zero. bridge: what the bridge adds to it; "
            f"{1e6 * TARGET_S:.0f} are allowed for python. complete: what it adds together with "
            "all of the force evaluation but the network (direct forces, random orientations). "
            "CPU: processor time."
        ),
    )
    headings = "atoms|engine|back end|alone|bridge|complete|bridge\nCPU|complete\nCPU"
    for heading in headings.split("|"):
        table.add_column(heading, justify="left" if heading in ("engine", "back end") else "right")
    for row in report["rows"]:
        wall, cpu = ({k: f"{1e6 * v:.0f}" for k, v in row[name].items()} for name in _CLOCKS)
        table.add_row(
            str(row["n_atoms"]),
            row["engine"],
            row["backend"],
            wall["engine_alone"],
            wall["bridge"],
            wall["complete"],
            cpu["bridge"],
            cpu["complete"],
        )
    return table


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--atoms", type=int, nargs="+", action="extend", metavar="N")
    parser.add_argument("--turns", type=int, default=_TURNS, help="timings of each variant")
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = {
        "benchmark": "overhead",
        "environment": environment("openmm"),
        "rows": [row for n in (arguments.atoms or _SIZES) for row in measure(n, arguments.turns)],
    }
    deliver(report, arguments.json, result_table)
    too_slow = [
        row for row in report["rows"] if row["target_s"] and row["wall_s"]["bridge"] > TARGET_S
    ]
    for row in too_slow:
        Console(stderr=True).print(
            f"{row['engine']}, {row['n_atoms']} atoms: the bridge takes "
            f"{1e3 * row['wall_s']['bridge']:.2f} ms per step; allowed are {1e3 * TARGET_S:g} ms."
        )
    return int(bool(too_slow))


if __name__ == "__main__":
    sys.exit(main())
