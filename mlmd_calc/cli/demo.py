"""`mlmd demo`: what the shipped model can do, and what its settings are good for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from mlmd_calc.cli.endings import advise, raise_on_signal
from mlmd_calc.cli.tables import describe_temperature, print_table
from mlmd_calc.errors import ConfigError
from mlmd_calc.io.files import read_json, write_json

if TYPE_CHECKING:
    from mlmd_calc.cli.demo_runs import MoleculeRuns
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
_ENDS_FILE: Final = "ends.json"


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
    from mlmd_calc.cli.demo_runs import MoleculeRuns
    from mlmd_calc.data.pool import run_tasks

    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty; choose another folder with --out, or remove it")
    calculators = _calculators(model)
    steps = _QUICK_STEPS if quick else _STEPS
    tasks = {}
    for name, molecule in _MOLECULES.items():
        path = out / name / _ENDS_FILE
        path.parent.mkdir(parents=True)
        interval = max(1, steps // _FRAMES)
        tasks[name] = MoleculeRuns(molecule, path, calculators, steps, interval, _SEED)
    console = Console(stderr=True)
    for setting, options in calculators.items():
        console.print(f"[bold]{setting}[/bold]: {_describe(options)}", highlight=False)
    advise(f"what was done is in {out}; remove it, or choose another --out, and begin again")
    with raise_on_signal():
        run_tasks(list(tasks.values()), kind="molecules", workers=workers, console=console)
    rows = [row for name, task in tasks.items() for row in _evaluate(out, name, task)]
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


def _evaluate(out: Path, name: str, task: MoleculeRuns) -> list[dict[str, Any]]:
    """Draw the runs of one molecule and return one summary per run."""
    from mlmd_calc.analysis import summarise
    from mlmd_calc.analysis.plots import plot_comparison
    from mlmd_calc.cli.demo_runs import run_name
    from mlmd_calc.md import Ensemble, read_record

    headings = {
        Ensemble.LANGEVIN: "NVT: Langevin, 300 K, 1/ps",
        Ensemble.NVE: "NVE: no thermostat",
    }
    columns: dict[str, dict[str, RunRecord]] = {heading: {} for heading in headings.values()}
    ends, rows = read_json(task.path), []
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
