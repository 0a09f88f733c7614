"""Time of a force call and of a step, against the network evaluated by Python as it was loaded.

``mlmd_calc.Potential`` evaluates a copy of the network with merged maps and operations of its own,
and repeats frequent calls without Python. The other form is the network of the same weights, called
as PyTorch users call a network, with everything around it the same. Both are timed in turns, in one
process on one thread: by themselves, in a step of ASE and, where OpenMM is installed, in a step of
OpenMM with the back end "python"::

    python benchmarks/bench_forces.py
    python benchmarks/bench_forces.py --model mdet-ethanol --atoms 9 --json

A number is the shortest processor time of all turns, which other load disturbs least. The exit
status is 1 if the forces of both forms differ by more than rounding.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from typing import Any, Final

# Before openmm, whose plug-in for TorchForce needs the libraries of torch.
import torch  # isort: split

import ase
import numpy as np
from ase.md.verlet import VelocityVerlet
from common import deliver, environment
from mdet_forms import chain_molecule
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from mlmd_calc import MDETCalculator, Potential, load_model, units
from mlmd_calc.models.mdet.edge_attention import edge_attention
from mlmd_calc.models.recorder import RECORD_AFTER
from mlmd_calc.potential.padding import PaddedBatch
from mlmd_calc.potential.prediction import Prediction
from mlmd_calc.zoo import Model

TOLERANCE: Final = 1e-12
"""Largest difference of the two forms, relative to the largest force component."""

_SIZES: Final = (9, 21)
_TURNS: Final = 40
_CALLS: Final = 5
"""Calls of one form in a turn."""
_TIMESTEP_FS: Final = 0.001
"""So short that molecules stay what they are."""

Call = Callable[[], None]


class AsLoaded(Prediction):
    """The network as it was loaded, evaluated by Python."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.plain = self.network_as_loaded()

    def __call__(
        self, batch: PaddedBatch, energy: bool, forces: bool
    ) -> dict[str, NDArray[np.float64]]:
        """Evaluate a batch."""
        with self._computing(gradient=forces and self.conservative):
            values = self.results(self.plain, batch, energy, forces, edge_attention)
        return {name: value.numpy() for name, value in values.items()}


def as_loaded(potential: Potential) -> Potential:
    """Let a potential evaluate its network as it was loaded."""
    potential.prediction = AsLoaded(
        potential.model.network,
        conservative=potential.conservative,
        dtype=potential.dtype,
        device=potential.device,
    )
    return potential


def calls(model: Model, forces: str, atoms: ase.Atoms, plain: bool) -> dict[str, Call]:
    """Set up what is timed: a force call, and a step of every engine."""

    def prepared(potential: Potential) -> Potential:
        return as_loaded(potential) if plain else potential

    potential = prepared(Potential(model, device="cpu", forces=forces))
    moving = atoms.copy()
    moving.calc = MDETCalculator(model, device="cpu", forces=forces)
    prepared(moving.calc.potential)
    dynamics = VelocityVerlet(moving, _TIMESTEP_FS * units.FS)
    found: dict[str, Call] = {
        "force call": lambda: potential.evaluate([atoms]) and None,
        "step of ASE": dynamics.step,
    }
    if importlib.util.find_spec("openmm") is not None:
        found["step of OpenMM"] = openmm_call(prepared(Potential(model, forces=forces)), atoms)
    return found


def openmm_call(potential: Potential, atoms: ase.Atoms) -> Call:
    """Set up a step of OpenMM on the Reference platform."""
    import openmm
    from bench_overhead import openmm_region, openmm_stepper

    from openmm_bridge.computation import MDETComputation

    force = openmm.PythonForce(MDETComputation(potential, openmm_region(atoms)))
    step = openmm_stepper("Reference", force, atoms)
    return lambda: step(1)


def measure(model: Model, forces: str, n_atoms: int, turns: int) -> dict[str, Any]:
    """Time both forms for one size."""
    atoms = chain_molecule(n_atoms)
    forms = {
        name: calls(model, forces, atoms, plain)
        for name, plain in (("as_loaded", True), ("product", False))
    }
    for form in forms.values():
        for call in form.values():
            for _ in range(RECORD_AFTER + 2):
                call()
    best: dict[str, dict[str, float]] = {name: {} for name in forms}
    for _ in range(turns):
        for what in forms["product"]:
            for name, form in forms.items():
                shortest = min(timed(form[what]) for _ in range(_CALLS))
                best[name][what] = min(shortest, best[name].get(what, shortest))
    known, found = (
        prepare(Potential(model, device="cpu", forces=forces)).evaluate([atoms])[0].forces
        for prepare in (as_loaded, lambda potential: potential)
    )
    return {
        "n_atoms": n_atoms,
        "forces": forces,
        "seconds": best,
        "ratio": {
            what: best["as_loaded"][what] / best["product"][what] for what in best["product"]
        },
        "force_difference_relative": float(np.abs(found - known).max() / np.abs(known).max()),
    }


def timed(call: Call) -> float:
    """Processor time of a call in seconds."""
    start = time.process_time()
    call()
    return time.process_time() - start


def result_table(report: dict[str, Any]) -> Table:
    """Lay the report out for reading."""
    where = report["environment"]
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{report['model']}, float64, one thread: processor ms, shortest of all turns",
        caption=(
            f"{where['cores']} cores, load {where['load_average_1min']:.1f}, torch "
            f"{where['torch']}. As loaded: the same weights, called by Python as a network of "
            "PyTorch. ΔF/F: largest difference of the two forms."
        ),
    )
    for heading in ("atoms", "forces", "what", "as loaded", "product", "ratio", "ΔF/F"):
        table.add_column(heading, justify="left" if heading in ("forces", "what") else "right")
    for row in report["rows"]:
        for what, ratio in row["ratio"].items():
            table.add_row(
                str(row["n_atoms"]),
                row["forces"],
                what,
                *(f"{1e3 * row['seconds'][form][what]:.2f}" for form in ("as_loaded", "product")),
                f"{ratio:.1f}×",
                f"{row['force_difference_relative']:.0e}",
            )
    return table


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", help="name or path; the default model if left out")
    parser.add_argument("--atoms", type=int, nargs="+", action="extend", metavar="N")
    parser.add_argument("--turns", type=int, default=_TURNS, help="turns of both forms")
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(arguments.model, device="cpu")
    kinds = ("conservative", "direct") if "forces" in model.network.config.target_heads else ()
    report = {
        "benchmark": "forces",
        "model": model.card.name,
        "environment": environment(),
        "rows": [
            measure(model, forces, n, arguments.turns)
            for n in arguments.atoms or _SIZES
            for forces in kinds or ("conservative",)
        ],
    }
    deliver(report, arguments.json, result_table)
    return int(any(row["force_difference_relative"] > TOLERANCE for row in report["rows"]))


if __name__ == "__main__":
    sys.exit(main())
