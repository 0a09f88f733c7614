"""The part of `mlmd demo` that runs in a process of its own: all runs of one molecule.

Reads a task as JSON from stdin and writes one JSON object per line to stdout: ``{"run", "step",
"temperature"}`` while a run goes on, and ``{"run", "verdict", "step", "reason", "seconds"}`` when
it has ended.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TextIO

import ase
import ase.build
import numpy as np

from mlmd_calc.calculator import MDETCalculator
from mlmd_calc.cli.job import relax
from mlmd_calc.geometry.bonds import find_bonds
from mlmd_calc.md import Ensemble, MDSettings, Run, read_record
from mlmd_calc.md.dynamics import draw_momenta
from mlmd_calc.md.export import frame_atoms

ENSEMBLES: Final = (Ensemble.LANGEVIN, Ensemble.NVE)


@dataclass(frozen=True)
class Task:
    """All runs of one molecule.

    Attributes
    ----------
    molecule
        Name in ASE's g2 collection.
    folder
        Receives one folder per run, see :func:`run_name`.
    calculators
        Options of the calculator by the name of the setting; the first is the recommended one.
    steps
        Length of each run.
    interval
        Steps between frames.
    seed
        Seed of all random numbers.
    """

    molecule: str
    folder: str
    calculators: dict[str, dict[str, Any]]
    steps: int
    interval: int
    seed: int

    @property
    def runs(self) -> list[tuple[Ensemble, str]]:
        """Ensemble and setting of each run, in the order they are done."""
        return [(ensemble, setting) for ensemble in ENSEMBLES for setting in self.calculators]


def run_name(ensemble: Ensemble, setting: str) -> str:
    """Name of a run and of its folder, e.g. ``"nve-direct-no-offset-float32"``."""
    return "-".join([ensemble.value, *re.findall(r"[a-z0-9]+", setting)])


def run_task(task: Task, report: Callable[[dict[str, Any]], None]) -> None:
    """Do all runs of one molecule.

    All Langevin runs start from the same minimum with the same velocities, drawn at twice the
    temperature because half of it turns into potential energy at once. All runs without a
    thermostat start where the recommended Langevin run ended.

    Parameters
    ----------
    task
        What to do.
    report
        Called with what this module's description says.
    """
    folder = Path(task.folder)
    reference = task.calculators[next(iter(task.calculators))]
    minimum = ase.build.molecule(task.molecule)
    minimum.calc = MDETCalculator(**reference, seed=task.seed)
    if minimum.calc.potential.conservative:
        relax(minimum)
    bonds = find_bonds(minimum)
    draw_momenta(minimum, 2 * MDSettings().temperature_K, np.random.default_rng(task.seed))
    for ensemble, setting in task.runs:
        settings = MDSettings(ensemble, seed=task.seed, interval=task.interval)
        name = run_name(ensemble, setting)
        thermal = ensemble is not Ensemble.LANGEVIN
        atoms = _thermal_start(folder, task) if thermal else minimum.copy()
        atoms.calc = MDETCalculator(**task.calculators[setting], seed=task.seed)
        simulation = Run.start(atoms, folder / name, settings, bonds=bonds, keep_velocities=True)
        with simulation:
            _run(simulation, task.steps, name, report)


def _thermal_start(folder: Path, task: Task) -> ase.Atoms:
    """End of the recommended Langevin run, or its start if it failed."""
    record = read_record(folder / run_name(Ensemble.LANGEVIN, next(iter(task.calculators))))
    return frame_atoms(record, 0 if record.failed else len(record) - 1)


def _run(simulation: Run, steps: int, name: str, report: Callable[[dict[str, Any]], None]) -> None:
    begin = time.perf_counter()

    def on_frame(running: Run) -> None:
        report({"run": name, "step": running.step, "temperature": running.temperature})

    outcome = simulation.run(steps, on_frame=on_frame)
    report({"run": name, **asdict(outcome), "seconds": time.perf_counter() - begin})


def _main(source: TextIO, sink: TextIO) -> None:
    def report(message: dict[str, Any]) -> None:
        sink.write(json.dumps(message) + "\n")
        sink.flush()

    run_task(Task(**json.load(source)), report)


if __name__ == "__main__":
    _main(sys.stdin, sys.stdout)
