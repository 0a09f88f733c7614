"""`mlmd demo`: what the shipped model can do, and what its settings are good for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from mlmd_calc.cli.endings import advise, raise_on_signal
from mlmd_calc.cli.run import describe_temperature
from mlmd_calc.cli.tables import print_table
from mlmd_calc.errors import ConfigError, PredictionError
from mlmd_calc.io.files import write_json

if TYPE_CHECKING:
    from mlmd_calc.cli.demo_worker import Task
    from mlmd_calc.md import RunRecord

_MOLECULES: Final = {"ethanol": "CH3CH2OH", "ethane": "C2H6"}
"""Name to name in ASE's g2 collection."""

_RECOMMENDED: Final = "recommended"
_DIRECT: Final[dict[str, dict[str, Any]]] = {
    "direct, offset, f64": {
        "forces": "direct",
        "rotation": "random",
        "dtype": "float64",
    },
    "direct, f32": {"forces": "direct", "rotation": "none", "dtype": "float32"},
}
"""Settings to compare with the recommended one."""

_STEPS: Final = 3000
_QUICK_STEPS: Final = 40
_FRAMES: Final = 300
_SEED: Final = 1
_SUMMARY_FILE: Final = "summary.json"
_ONE_THREAD: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)
"""Molecules this small run fastest on one thread each."""


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for runs, pictures, summary.")
    ] = (Path("mlmd-demo")),
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Another model than the default one.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few steps only, to see that everything works.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one molecule each.")] = min(
        len(_MOLECULES), os.cpu_count() or 1
    ),
    as_json: Annotated[
        bool, typer.Option("--json", help="Write the summary as JSON instead of a table.")
    ] = False,
) -> None:
    """Run NVT and NVE dynamics of two molecules in the recommended setting and in others.

    Takes a few minutes on two cores. A run that fails is part of the picture.
    """
    # These import torch, which `mlmd --help` need not wait for.
    from mlmd_calc.cli.demo_worker import Task

    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty; choose another folder with --out, or remove it")
    calculators = _calculators(model)
    steps = _QUICK_STEPS if quick else _STEPS
    tasks = {
        name: Task(molecule, str(out / name), calculators, steps, max(1, steps // _FRAMES), _SEED)
        for name, molecule in _MOLECULES.items()
    }
    console = Console(stderr=True)
    for setting, options in calculators.items():
        console.print(f"[bold]{setting}[/bold]: {_describe(options)}", highlight=False)
    advise(f"what was done is in {out}; remove it, or choose another --out, and begin again")
    with raise_on_signal():
        ends = _run_all(tasks, workers, console)
    rows = [row for name, task in tasks.items() for row in _evaluate(out, name, task, ends[name])]
    summary = {"calculators": calculators, "runs": rows}
    write_json(out / _SUMMARY_FILE, summary)
    if as_json:
        typer.echo(json.dumps(summary, indent=1))
    else:
        _print(rows, out)


def _calculators(model: str | None) -> dict[str, dict[str, Any]]:
    """Options of the calculators to compare, without those that are the recommended ones."""
    from mlmd_calc.calculator import MDETCalculator

    settings = {_RECOMMENDED: MDETCalculator(model).todict()}
    for name, options in _DIRECT.items():
        complete = MDETCalculator(model, **options).todict()
        if complete not in settings.values():
            settings[name] = complete
    for options in settings.values():
        del options["sha256"]
    return settings


def _describe(options: dict[str, Any]) -> str:
    orientations = options["rotation"]
    if options["n_rotations"] > 1:
        orientations += f" of {options['n_rotations']}"
    return f"{options['forces']} forces, rotation {orientations}, {options['dtype']}"


def _run_all(
    tasks: dict[str, Task], workers: int, console: Console
) -> dict[str, dict[str, dict[str, Any]]]:
    """Run all molecules in processes; return the last message of each run by molecule and run."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    running: set[subprocess.Popen[str]] = set()
    given_up = Event()
    with Progress(*columns, console=console) as progress:
        pool = ThreadPoolExecutor(workers)
        try:
            futures = {
                name: pool.submit(
                    _run_molecule, task, _reporter(progress, name, task), running, given_up
                )
                for name, task in tasks.items()
            }
            return {name: future.result() for name, future in futures.items()}
        finally:
            # After a signal nothing further is begun, and what is under way is given up.
            given_up.set()
            for process in list(running):
                process.terminate()
            pool.shutdown(cancel_futures=True)


def _reporter(progress: Progress, name: str, task: Task) -> Callable[[dict[str, Any]], None]:
    """Make a function that shows the messages of one molecule as a progress bar."""
    bar = progress.add_task(name, total=len(task.runs) * task.steps)
    done = 0

    def show(message: dict[str, Any]) -> None:
        nonlocal done
        if "verdict" in message:
            # A run that failed is done with, too.
            done += task.steps
            progress.update(bar, completed=done)
        else:
            text = f"{name}: {message['run']}, {message['temperature']:.0f} K"
            progress.update(bar, completed=done + message["step"], description=text)

    return show


def _run_molecule(
    task: Task,
    show: Callable[[dict[str, Any]], None],
    running: set[subprocess.Popen[str]],
    given_up: Event,
) -> dict[str, dict[str, Any]]:
    """Run one molecule in a process of its own; return the last message of each run."""
    ends: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryFile("w+") as stdin, tempfile.TemporaryFile("w+") as stderr:
        json.dump(asdict(task), stdin)
        stdin.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-m", "mlmd_calc.cli.demo_worker"],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, **_ONE_THREAD},
        )
        running.add(process)
        if given_up.is_set():
            process.terminate()
        with process:
            for line in process.stdout or ():
                message = json.loads(line)
                show(message)
                if "verdict" in message:
                    ends[message["run"]] = message
        running.discard(process)
        if process.returncode != 0:
            stderr.seek(0)
            lines = stderr.read().strip().splitlines() or [f"exit status {process.returncode}"]
            raise PredictionError(f"the runs of {task.molecule} ended early: {lines[-1]}")
    return ends


def _evaluate(
    out: Path, name: str, task: Task, ends: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Draw the runs of one molecule and return one summary per run."""
    from mlmd_calc.analysis import summarise
    from mlmd_calc.analysis.plots import plot_comparison
    from mlmd_calc.cli.demo_worker import run_name
    from mlmd_calc.md import Ensemble, read_record

    headings = {
        Ensemble.LANGEVIN: "NVT: Langevin, 300 K, 1/ps",
        Ensemble.NVE: "NVE: no thermostat",
    }
    columns: dict[str, dict[str, RunRecord]] = {heading: {} for heading in headings.values()}
    rows = []
    for ensemble, setting in task.runs:
        run = run_name(ensemble, setting)
        record = read_record(out / name / run)
        columns[headings[ensemble]][setting] = record
        end = ends[run]
        rows.append(
            {
                "molecule": name,
                "ensemble": ensemble.value,
                "setting": setting,
                **{key: end[key] for key in ("verdict", "step", "reason")},
                **summarise(record).to_dict(),
                "ms_per_step": 1e3 * end["seconds"] / end["step"],
                "folder": str(out / name / run),
            }
        )
    model = Path(task.calculators[_RECOMMENDED]["model"]).name
    plot_comparison(columns, out / f"{name}.png", f"{name}, model {model}")
    return rows


def _print(rows: list[dict[str, Any]], out: Path) -> None:
    console = Console()
    for molecule in _MOLECULES:
        table = Table(
            *("run", "forces", "T, K", "drift*", "bond, Å**", "verdict", "ms/step"),
            title=molecule,
            title_justify="left",
        )
        for row in (row for row in rows if row["molecule"] == molecule):
            nve = row["ensemble"] == "nve"
            drift = row["energy_drift_meV_per_atom_per_ps"]
            table.add_row(
                "NVE" if nve else "NVT",
                row["setting"],
                describe_temperature(row["temperature_K"], digits=0),
                f"{drift:+.1f}" if nve and drift is not None else "",
                f"{row['largest_bond_deviation_A']:.2f}",
                _verdict(row),
                f"{row['ms_per_step']:.0f}",
                end_section=not nve and row["setting"] == list(_DIRECT)[-1],
            )
        print_table(table)
    console.print(
        "*  of the total energy, meV/atom/ps, without a thermostat; it should be zero.\n"
        "** largest change of any bond from its equilibrium length.\n"
        "NVT runs (Langevin, 1/ps) should keep 300 K: more means that the forces heat the molecule "
        "faster than the thermostat cools it. NVE runs start where the recommended NVT run ended.",
        highlight=False,
    )
    for row in rows:
        if row["reason"]:
            run = f"{row['molecule']}, {row['ensemble']}, {row['setting']}"
            console.print(f"{run}: {row['reason']}", highlight=False)
    console.print(f"Pictures, runs and {_SUMMARY_FILE} are in {out}")


def _verdict(row: dict[str, Any]) -> str:
    if row["verdict"] == "failed":
        return f"failed, {row['time_ps']:.2f} ps"
    if row["broken_at_ps"] is not None:
        return "bond too long"
    return "wrong temperature" if row["temperature_off"] else "bonds whole"
