"""Langevin dynamics of many molecules: in TorchSim, one by one in ASE, and as replicas of one run.

    python benchmarks/bench_torchsim.py
    python benchmarks/bench_torchsim.py --molecules 16 --steps 16 --json

Copies of ethanol at 300 K in steps of 0.5 fs, on one thread, in ways that take turns::

    TorchSim        a batch, with mlmd_calc.torchsim.MDETModel
    ASE             one molecule after the other, with MDETCalculator
    replicas        what `mlmd run ethanol --propagator verlet --replicas N` does: a batch, with a
                    thermostat and a guard after every step, and a record
    replicas, 8 fs  the same with `--jump 8`: thermostat and guard after every 16 steps

A speed is the number of steps, of all molecules together, per second of processor time, the median
over the turns. Needs TorchSim (extra torchsim).
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import ase
import numpy as np
import torch
import torch_sim
from ase.build import molecule
from ase.md.langevin import Langevin
from common import deliver, environment
from rich import box
from rich.table import Table

from mlmd_calc import MDETCalculator, units
from mlmd_calc.md import JumpSettings, MDSettings, Run, draw_momenta
from mlmd_calc.propagation import VerletPropagator
from mlmd_calc.torchsim import MDETModel

TEMPERATURE_K: Final = 300.0
TIMESTEP_FS: Final = 0.5
FRICTION_PER_PS: Final = 1.0
SEED: Final = 1
STEPS_PER_JUMP: Final = 16
"""In a jump of 8 fs."""

Way = Callable[[argparse.Namespace], float]
"""Does the steps and returns the seconds of processor time that they take."""


def start(seed: int) -> ase.Atoms:
    """Make ethanol with thermal velocities."""
    atoms = molecule("CH3CH2OH")
    draw_momenta(atoms, TEMPERATURE_K, np.random.default_rng(seed))
    return atoms


def seconds(act: Callable[[], Any]) -> float:
    """Processor time of something."""
    begin = time.process_time()
    act()
    return time.process_time() - begin


def in_torchsim(arguments: argparse.Namespace) -> float:
    """Step a batch."""
    model = MDETModel(arguments.model, device="cpu", seed=SEED)
    # Before version 0.4 integrators are functions.
    integrator = getattr(torch_sim, "Integrator", torch_sim).nvt_langevin

    def integrate(molecules: Any, steps: int) -> Any:
        return torch_sim.integrate(
            molecules,
            model,
            integrator=integrator,
            n_steps=steps,
            temperature=TEMPERATURE_K,
            timestep=TIMESTEP_FS / units.FS_PER_PS,
        )

    warm = integrate([start(SEED)] * arguments.molecules, 1)
    return seconds(lambda: integrate(warm, arguments.steps))


def in_ase(arguments: argparse.Namespace) -> float:
    """Step one molecule after the other."""
    calculator = MDETCalculator(arguments.model, device="cpu", seed=SEED)
    runs = []
    for seed in range(arguments.molecules):
        atoms = start(seed)
        atoms.calc = calculator
        runs.append(
            Langevin(
                atoms,
                TIMESTEP_FS * units.FS,
                temperature_K=TEMPERATURE_K,
                friction=FRICTION_PER_PS / units.PS,
                fixcm=False,
                rng=np.random.default_rng(seed),
            )
        )
    # So that calls of this shape are recorded, as they are in any longer run.
    runs[0].run(60)
    return seconds(lambda: [run.run(arguments.steps) for run in runs])


def as_replicas(arguments: argparse.Namespace, steps_per_jump: int = 1) -> float:
    """Step the replicas of one run."""
    calculator = MDETCalculator(arguments.model, device="cpu", seed=SEED)
    atoms = start(SEED)
    atoms.calc = calculator
    stride = steps_per_jump * TIMESTEP_FS
    jumps = JumpSettings("verlet", stride_fs=stride, replicas=arguments.molecules)
    settings = MDSettings(
        temperature_K=TEMPERATURE_K,
        timestep_fs=TIMESTEP_FS,
        friction_per_ps=FRICTION_PER_PS,
        seed=SEED,
        jumps=jumps,
    )
    propagator = VerletPropagator(calculator.potential, TIMESTEP_FS)
    with (
        tempfile.TemporaryDirectory() as folder,
        Run.start(atoms, Path(folder) / "run", settings, propagator=propagator) as run,
    ):
        run.run(1)
        return seconds(lambda: run.run(1 + arguments.steps // steps_per_jump))


WAYS: Final[dict[str, Way]] = {
    "TorchSim": in_torchsim,
    "ASE": in_ase,
    "replicas": as_replicas,
    "replicas, 8 fs": functools.partial(as_replicas, steps_per_jump=STEPS_PER_JUMP),
}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Let all ways take turns."""
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(arguments.turns):
        for name, way in WAYS.items():
            taken[name].append(way(arguments))
    done = arguments.molecules * arguments.steps
    return {
        name: {
            "steps_per_s": done / float(np.median(times)),
            "slowest_and_fastest": [done / max(times), done / min(times)],
        }
        for name, times in taken.items()
    }


def result_table(report: dict[str, Any]) -> Table:
    """Lay the report out for reading."""
    where = report["environment"]
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{report['molecules']} ethanols, {report['steps']} steps each",
        caption=(
            f"{where['cpu']}, one thread, load {where['load_average_1min']:.1f}; TorchSim "
            f"{where['torch-sim-atomistic']}, torch {where['torch']}"
        ),
    )
    for heading in ("", "steps/s", "of turns", "of ASE"):
        table.add_column(heading, justify="right" if heading else "left")
    ase_speed = report["speeds"]["ASE"]["steps_per_s"]
    for name, speed in report["speeds"].items():
        slowest, fastest = speed["slowest_and_fastest"]
        table.add_row(
            name,
            f"{speed['steps_per_s']:.0f}",
            f"{slowest:.0f} to {fastest:.0f}",
            f"{speed['steps_per_s'] / ase_speed:.2f}",
        )
    return table


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", help="name or path; the default model")
    parser.add_argument("--molecules", type=int, default=64)
    parser.add_argument(
        "--steps", type=int, default=32, help="of each molecule in a turn, a multiple of 16"
    )
    parser.add_argument("--turns", type=int, default=3, help="timings of each way")
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table")
    arguments = parser.parse_args()
    if arguments.steps % STEPS_PER_JUMP:
        parser.error(f"--steps {arguments.steps} is not a multiple of {STEPS_PER_JUMP}")
    torch.set_num_threads(1)
    report = {
        "benchmark": "torchsim",
        "environment": environment("torch-sim-atomistic"),
        "molecules": arguments.molecules,
        "steps": arguments.steps,
        "speeds": measure(arguments),
    }
    deliver(report, arguments.json, result_table)


if __name__ == "__main__":
    main()
