"""What everything takes: one table and one JSON over sizes, precisions and kinds of calls.

Force calls (conservative and direct, in all precisions), steps of ASE and OpenMM, a jump of ATOM, a
pass of the published one (random weights, 8 times), replicas in one call, a frame of ATMOS and a
step of training, beside what a user could take instead in the same run: GFN2-xTB (tblite), and the
literal form of MD-ET against ours, both of the published size (12 layers, width 192). Times are the
shortest wall and processor times of some calls on one thread: the table has processor times, which
other load disturbs less, or for a GPU wall times, and the JSON has both. Memory is the peak of all
tensors of a call. Exponents tell how the time grows between the two largest sizes::

    python benchmarks/bench_table.py --json table.json --plot table.png
    python benchmarks/bench_table.py --quick
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

# Before openmm, whose plug-in for TorchForce needs the libraries of torch.
import torch  # isort: split

import ase
import numpy as np
from ase.md.verlet import VelocityVerlet
from bench_forces import openmm_call
from common import environment
from mdet_forms import chain_molecule, force_calls
from rich import box
from rich.console import Console
from rich.table import Table

from mlmd_calc import MDETCalculator, Potential, load_model, load_propagator, units
from mlmd_calc.analysis.operator import SLOTS
from mlmd_calc.cli.report import Report
from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.models.atom import ATOM, ATOMConfig, input_features
from mlmd_calc.models.recorder import RECORD_AFTER
from mlmd_calc.potential.estimate import TensorMemory
from mlmd_calc.propagation import State

SIZES: Final = (9, 21, 50, 100, 200, 642)
_REPLICAS: Final = 64
_TIMESTEP_FS: Final = 0.001
"""So short that molecules stay what they are."""
_JUMP_FS: Final = 4.0
_TRAINED: Final = 8
"""Structures in a step of training."""
_RECORDED: Final = 32
"""Atoms up to which calls are recorded, so that warming up takes more of them."""

Call = Callable[[], Any]


class Subject(NamedTuple):
    """What is timed.

    Attributes
    ----------
    name, dtype
        What it is called in the table.
    prepare
        Makes a call for a molecule.
    largest
        Atoms beyond which it is not made.
    needs
        Package without which it is left out.
    tensors
        Whether the memory of its tensors says something.
    """

    name: str
    dtype: str
    prepare: Callable[[ase.Atoms], Call]
    largest: int = 10**6
    needs: str = "torch"
    tensors: bool = True


def subjects(device: str) -> list[Subject]:
    """List all that is timed."""
    force_call = partial(_force_call, device)
    found = [
        Subject(f"force call, {forces}", dtype, partial(force_call, forces, dtype))
        for forces in ("conservative", "direct")
        for dtype in ("float64", "float32", "mixed")
    ]
    return [
        *found,
        Subject("step of ASE", "float64", partial(_ase_step, device), tensors=False),
        Subject("step of OpenMM", "float64", partial(_openmm_step, device), 10**6, "openmm", False),
        Subject("jump of ATOM", "float32", partial(_jump, device)),
        Subject("pass of the published ATOM", "float32", partial(_operator, device)),
        Subject(f"{_REPLICAS} replicas", "float64", partial(_replicas, device), 50),
        Subject("step of training", "float32", partial(_training, device), 100, "lightning"),
        Subject("GFN2-xTB", "float64", _xtb, 10**6, "tblite", False),
        *(
            Subject(
                f"published size, {name}, CPU",
                "float32",
                partial(_published, form),
                size,
                "torch",
                device == "cpu",
            )
            for name, form, size in (("ours", "product", 10**6), ("literal", "literal", 50))
        ),
    ]


def _force_call(device: str, forces: str, dtype: str, atoms: ase.Atoms) -> Call:
    potential = Potential(device=device, forces=forces, dtype=dtype)
    return lambda: potential.evaluate([atoms])


def _replicas(device: str, atoms: ase.Atoms) -> Call:
    potential = Potential(device=device)
    return lambda: potential.evaluate([atoms] * _REPLICAS)


def _ase_step(device: str, atoms: ase.Atoms) -> Call:
    moving = atoms.copy()
    moving.calc = MDETCalculator(device=device)
    return VelocityVerlet(moving, _TIMESTEP_FS * units.FS).step


def _openmm_step(device: str, atoms: ase.Atoms) -> Call:
    return openmm_call(Potential(device=device), atoms)


def _jump(device: str, atoms: ase.Atoms) -> Call:
    propagator = load_propagator("atom-small-organics", device=device)
    state = State(
        positions=atoms.positions,
        velocities=np.zeros((len(atoms), 3)),
        numbers=atoms.numbers.astype(np.int64),
        masses=atoms.get_masses(),
    )
    generator = torch.Generator().manual_seed(0)
    return lambda: propagator.propagate([state], [_JUMP_FS], generator)


def _operator(device: str, atoms: ase.Atoms) -> Call:
    network = ATOM(ATOMConfig()).to(device).eval()
    positions = torch.tensor(atoms.positions, dtype=torch.float32, device=device)[None]
    numbers = torch.tensor(atoms.numbers, device=device)[None]
    inputs = input_features(positions, torch.zeros_like(positions), numbers)
    increments = torch.full((1, SLOTS), 375.0, device=device)

    def call() -> None:
        with torch.inference_mode():
            network(*inputs, time_increments=increments)
        if device != "cpu":
            torch.cuda.synchronize()

    return call


def _training(device: str, atoms: ase.Atoms) -> Call:
    from mlmd_calc.training.mdet.batches import StructureTable
    from mlmd_calc.training.mdet.module import MDETTraining
    from mlmd_calc.training.mdet.recipe import MDETLossWeights, MDETRecipe

    network = load_model(device=device, dtype="float32").network.requires_grad_(True)
    module = MDETTraining(network, MDETRecipe(loss=MDETLossWeights(gradient=1.0)))
    shape = (_TRAINED, len(atoms), 3)
    frames = MoleculeFrames(
        name="chain",
        numbers=atoms.numbers,
        positions=np.broadcast_to(atoms.positions, shape).copy(),
        energies=np.zeros(_TRAINED),
        forces=np.zeros(shape),
    )
    table = StructureTable([frames], dict.fromkeys(map(int, atoms.numbers), 0.0), 1)
    batch = next(table.spread(_TRAINED, _TRAINED * len(atoms) ** 2))
    batch = type(batch)._make(None if part is None else part.to(device) for part in batch)

    def step() -> None:
        network.zero_grad()
        sum(module.loss_terms(batch).values()).backward()
        if device != "cpu":
            torch.cuda.synchronize()

    return step


def _published(form: str, atoms: ase.Atoms) -> Call:
    return force_calls(atoms)[form]


def _xtb(atoms: ase.Atoms) -> Call:
    from tblite.interface import Calculator

    calculator = Calculator("GFN2-xTB", atoms.numbers, atoms.positions / units.MDET_BOHR)
    calculator.set("verbosity", 0)
    return calculator.singlepoint


def measure(subject: Subject, atoms: ase.Atoms, seconds: float, device: str) -> dict[str, Any]:
    """Time calls for one molecule for about so many seconds, after some that warm up."""
    call = subject.prepare(atoms)
    memory = None
    start = time.perf_counter()
    if not subject.tensors:
        call()
    elif device == "cpu":
        with TensorMemory() as watch:
            call()
        memory = watch.peak
    else:
        torch.cuda.reset_peak_memory_stats()
        call()
        memory = torch.cuda.max_memory_allocated()
    once = time.perf_counter() - start
    if once < seconds:
        for _ in range(RECORD_AFTER + 2 if len(atoms) <= _RECORDED else 1):
            call()
    samples: list[tuple[float, float]] = []
    start = time.perf_counter()
    while not samples or time.perf_counter() - start < seconds:
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        samples.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = np.min(samples, axis=0)
    return {
        "wall_s": float(wall),
        "cpu_s": float(cpu),
        "memory_bytes": memory,
        "calls": len(samples),
    }


def rows(
    sizes: list[int], device: str, seconds: float, longest: float, only: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Measure everything, or what has one of some words in its name.

    What would take too long is left out, with the reason.
    """
    for subject in subjects(device):
        if only and not any(word in f"{subject.name}, {subject.dtype}" for word in only):
            continue
        last: tuple[int, float] | None = None
        for size in sizes:
            row: dict[str, Any] = {"what": subject.name, "dtype": subject.dtype, "n_atoms": size}
            reason = None
            if importlib.util.find_spec(subject.needs) is None:
                reason = f"{subject.needs} is not installed"
            elif size > subject.largest:
                reason = f"not made beyond {subject.largest} atoms"
            elif last and last[1] * (size / last[0]) ** 3 > longest:
                expected = last[1] * (size / last[0]) ** 3
                reason = f"a call would take up to {expected:.0f} s (--longest {longest:g})"
            if reason is None:
                row |= measure(subject, chain_molecule(size), seconds, device)
                last = size, row["wall_s"]
            yield row if reason is None else row | {"skipped": reason}


def atmos_frame(quick: bool) -> dict[str, Any]:
    """Time a frame of ATMOS, of a capped amino acid."""
    from bench_rollout import measure as measure_rollout

    found = measure_rollout(None, "sequence:A", 2 if quick else 20, 1, 4 if quick else None)
    return {
        "heavy_atoms": found["atoms"],
        "wall_s": found["wall"]["last_s_per_frame"],
        "cpu_s": found["cpu"]["last_s_per_frame"],
    }


def clock(device: str) -> str:
    """Name the time that counts on a device."""
    return "cpu_s" if device == "cpu" else "wall_s"


def exponents(found: list[dict[str, Any]], device: str) -> dict[str, float]:
    """Tell how the time grows with the number of atoms between the two largest sizes."""
    grown = {}
    for what, dtype in dict.fromkeys((row["what"], row["dtype"]) for row in found):
        timed = [
            (row["n_atoms"], row[clock(device)])
            for row in found
            if (row["what"], row["dtype"]) == (what, dtype) and "cpu_s" in row
        ]
        if len(timed) > 1:
            (n1, t1), (n2, t2) = sorted(timed)[-2:]
            grown[f"{what}, {dtype}"] = math.log(t2 / t1) / math.log(n2 / n1)
    return grown


def result_table(report: dict[str, Any]) -> Table:
    """Lay the report out for reading: a row for each kind of call, a column for each size."""
    where, frame = report["environment"], report["atmos_frame"]
    table = Table(
        box=box.SIMPLE_HEAD,
        title=(
            f"ms of {'processor' if report['device'] == 'cpu' else 'wall'} time, "
            f"{report['device']}, one thread"
        ),
        caption=(
            f"{where['cpu']}, {where['cores']} cores, load {where['load_average_1min']:.1f}, torch "
            f"{where['torch']}. –: left out, the JSON tells why. Memory: of the tensors of a call "
            "of the largest size. Exponent: growth of the time between the two largest. "
            f"A frame of ATMOS, {frame['heavy_atoms']} heavy atoms, random network of the smallest "
            f"size: {_ms(frame[clock(report['device'])])} ms."
        ),
    )
    sizes = sorted({row["n_atoms"] for row in report["rows"]})
    for heading in ("what", "precision", *map(str, sizes), "memory", "exponent"):
        table.add_column(heading, justify="left" if heading in ("what", "precision") else "right")
    for what, dtype in dict.fromkeys((row["what"], row["dtype"]) for row in report["rows"]):
        own = {
            row["n_atoms"]: row
            for row in report["rows"]
            if (row["what"], row["dtype"]) == (what, dtype) and "wall_s" in row
        }
        memory = own[max(own)]["memory_bytes"] if own else None
        grown = report["exponents"].get(f"{what}, {dtype}")
        table.add_row(
            what,
            dtype,
            *(_ms(own[n][clock(report["device"])]) if n in own else "–" for n in sizes),
            "–" if memory is None else f"{memory / 1e9:.3g} GB",
            "–" if grown is None else f"{grown:.1f}",
        )
    return table


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.3g}"


def draw(report: dict[str, Any], path: Path) -> None:
    """Plot processor times over sizes."""
    from cycler import cycler
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    # Ten colours, then the same ones with other marks.
    axes.set_prop_cycle(cycler(marker=["o", "s", "^"]) * rcParams["axes.prop_cycle"])
    for what, dtype in dict.fromkeys((row["what"], row["dtype"]) for row in report["rows"]):
        own = [
            (row["n_atoms"], 1e3 * row[clock(report["device"])])
            for row in report["rows"]
            if (row["what"], row["dtype"]) == (what, dtype) and "cpu_s" in row
        ]
        if own:
            axes.loglog(*zip(*own, strict=True), label=f"{what}, {dtype}")
    axes.set_xlabel("atoms")
    axes.set_ylabel("time of a call / ms")
    axes.legend(fontsize="x-small")
    figure.savefig(path)


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        prog="mlmd bench table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--atoms", type=int, nargs="+", metavar="N", help="sizes (9 21 50 100 200 642)")
    add("--device", default="cpu", help="cpu or cuda, of what is ours (cpu)")
    add("--seconds", type=float, help="how long each entry is timed (2)")
    add("--longest", type=float, help="seconds a call may take (120)")
    add("--only", nargs="+", default=(), metavar="WORDS", help="rows with these words in the name")
    add("--quick", action="store_true", help="two small sizes for tenths of a second")
    add("--json", type=Path, metavar="FILE", help="write all numbers")
    add("--plot", type=Path, metavar="FILE", help="draw times over sizes")
    add("--html", type=Path, metavar="FILE", help="write a page with table and picture")
    arguments = parser.parse_args()
    quick = arguments.quick
    sizes = sorted(set(arguments.atoms or ((9, 21) if quick else SIZES)))
    seconds = arguments.seconds or (0.02 if quick else 2.0)
    longest = arguments.longest or (1.0 if quick else 120.0)
    torch.set_num_threads(1)
    found = []
    with Console(stderr=True).status("") as status:
        for row in rows(sizes, arguments.device, seconds, longest, arguments.only):
            found.append(row)
            status.update(f"{row['what']}, {row['dtype']}, {row['n_atoms']} atoms")
        frame = atmos_frame(quick)
    report = {
        "benchmark": "table",
        "device": arguments.device,
        "environment": environment(),
        "rows": found,
        "atmos_frame": frame,
        "exponents": exponents(found, arguments.device),
    }
    page = Report("Time and memory of everything")
    page.table(result_table(report))
    page.card(load_model(device="cpu").card)
    if arguments.html:
        with page.drawing(None) as folder:
            draw(report, folder / "times over sizes.png")
    page.deliver(None, as_json=False, html=arguments.html)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        draw(report, arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
