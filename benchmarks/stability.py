"""Long runs of real molecules with a model: temperatures, bonds and energy drift in one table.

    python benchmarks/stability.py nvt   # ethanol, aspirin, uracil, butane: 20 ps Langevin at 300 K
    python benchmarks/stability.py nve   # methane, ethane, butane: 10 ps without a thermostat

Each run is a process of its own with one thread; interrupted runs continue where they stopped.
Temperatures are averaged over molecules and, with several ``--seeds``, over the runs of each.
NVE runs start from the same thermalised state for every setting.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

NVT_MOLECULES: Final = ("ethanol", "aspirin", "uracil", "butane")
NVE_MOLECULES: Final = ("methane", "ethane", "butane")

RECOMMENDED: Final[dict[str, Any]] = {}
OFFSET: Final = {"forces": "direct", "rotation": "random", "dtype": "float64"}
NVT_SETTINGS: Final = {"recommended": RECOMMENDED, "direct, offset, float64": OFFSET}
NVE_SETTINGS: Final = {
    "direct, offset, float64": OFFSET,
    "direct, offset, float32": {**OFFSET, "dtype": "float32"},
    "direct, offset, mixed": {**OFFSET, "dtype": "mixed"},
    "direct, float64": {**OFFSET, "rotation": "none"},
    "direct, float32": {**OFFSET, "rotation": "none", "dtype": "float32"},
    "conservative, float64": {"forces": "conservative", "rotation": "none", "dtype": "float64"},
    "conservative, float32": {"forces": "conservative", "rotation": "none", "dtype": "float32"},
}
FRICTION: Final = 1.0
THERMALISE_PS: Final = 1.0


def run_one(job: dict[str, Any]) -> dict[str, Any]:
    """Do one run in this process and return its summary."""
    import ase

    from mlmd_calc import MDETCalculator
    from mlmd_calc.analysis import summarise
    from mlmd_calc.cli.job import relax
    from mlmd_calc.data.molecules import MOLECULES, start_structures
    from mlmd_calc.geometry.bonds import find_bonds
    from mlmd_calc.md import Ensemble, MDSettings, Run, read_record
    from mlmd_calc.md.export import frame_atoms

    folder = Path(job["folder"])
    calculator = MDETCalculator(job["model"], **job["options"], seed=job["seed"])
    timestep = 0.5
    steps = round(job["picoseconds"] * 1000 / timestep)
    if not (folder / "checkpoint.npz").exists():
        reference = MDETCalculator(job["model"], forces="conservative", rotation="none")
        built = start_structures(MOLECULES[job["molecule"]], 1, job["seed"])
        start = ase.Atoms(built.numbers, built.positions[0])
        start.calc = reference
        relax(start)
        bonds = find_bonds(start)
        nve = job["ensemble"] == "nve"
        if nve:
            # What a run that was stopped before its first checkpoint has left.
            shutil.rmtree(folder / "thermalise", ignore_errors=True)
            warm = MDSettings(Ensemble.LANGEVIN, seed=job["seed"], friction_per_ps=10.0)
            with Run.start(start, folder / "thermalise", warm, bonds=bonds) as simulation:
                simulation.run(round(THERMALISE_PS * 1000 / timestep))
            record = read_record(folder / "thermalise")
            start = frame_atoms(record, len(record) - 1)
        start.calc = calculator
        settings = MDSettings(
            Ensemble(job["ensemble"]),
            seed=job["seed"],
            friction_per_ps=FRICTION,
            interval=20,
            checkpoint_interval=2000,
        )
        simulation = Run.start(start, folder, settings, bonds=bonds, keep_velocities=nve)
    else:
        simulation = Run.resume(folder, calculator)
    with simulation:
        outcome = simulation.run(
            steps,
            on_frame=lambda running: print(running.step, flush=True, file=sys.stderr),
        )
    record = read_record(folder)
    summary = {"atoms": len(record.description.numbers), **summarise(record).to_dict()}
    return {**job, **summary, "verdict": outcome.verdict, "reason": outcome.reason}


def main() -> None:
    """Run all jobs of an ensemble and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("ensemble", choices=("nvt", "nve"))
    parser.add_argument("--model", default=None, help="default: the default shipped model")
    parser.add_argument("--molecules", nargs="+")
    parser.add_argument("--settings", nargs="+", help="only these settings")
    parser.add_argument("--picoseconds", type=float)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("runs/stability"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(run_one(json.loads(arguments.job))))
        return
    jobs = _jobs(arguments)
    if not jobs:
        known = NVE_SETTINGS if arguments.ensemble == "nve" else NVT_SETTINGS
        parser.error(f"--settings {arguments.settings}; there are {', '.join(map(repr, known))}")
    console = Console(stderr=True)
    with Progress(console=console) as progress, ThreadPoolExecutor(arguments.workers) as pool:
        rows = list(pool.map(lambda job: _spawn(job, progress), jobs))
    # Without a thermostat every run has a temperature of its own.
    means = _mean_temperatures(rows) if arguments.ensemble == "nvt" else []
    if arguments.json:
        print(json.dumps({"runs": rows, "mean temperatures": means}, indent=1))
    else:
        _print(rows)
        for mean in means:
            print(
                f"{mean['molecule']}, {mean['setting']}, {mean['runs']} runs: "
                f"{mean['temperature_K']:.1f} ± {mean['standard_error_K']:.1f} K"
            )


def _jobs(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    nve = arguments.ensemble == "nve"
    settings = NVE_SETTINGS if nve else NVT_SETTINGS
    molecules = arguments.molecules or (NVE_MOLECULES if nve else NVT_MOLECULES)
    ensemble = "nve" if nve else "langevin"
    return [
        {
            "ensemble": ensemble,
            "molecule": molecule,
            "setting": setting,
            "options": options,
            "model": arguments.model,
            "seed": seed,
            "picoseconds": arguments.picoseconds or (10.0 if nve else 20.0),
            "folder": str(
                arguments.out / ensemble / f"{molecule}-{setting.replace(', ', '-')}-{seed}"
            ),
        }
        for setting, options in settings.items()
        for molecule in molecules
        if not arguments.settings or setting in arguments.settings
        for seed in arguments.seeds
    ]


def _spawn(job: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Run a job in a fresh single-threaded process."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    bar = progress.add_task(
        f"{job['molecule']}: {job['setting']}, seed {job['seed']}",
        total=round(job["picoseconds"] * 2000),
    )
    process = subprocess.Popen(
        [
            sys.executable,
            __file__,
            job["ensemble"].replace("langevin", "nvt"),
            "--job",
            json.dumps(job),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **threads},
    )
    assert process.stderr is not None
    assert process.stdout is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.strip().isdigit():
            progress.update(bar, completed=int(line))
    output = process.stdout.read()
    if process.wait() != 0:
        raise RuntimeError(f"{job['molecule']}, {job['setting']}: {''.join(lines[-15:])}")
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def _mean_temperatures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average over seeds, and over molecules, weighted by length and number of atoms."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["temperature_K"] is not None:
            for molecule in (row["molecule"], "all"):
                groups.setdefault((molecule, row["setting"]), []).append(row)
    means = []
    for (molecule, setting), group in groups.items():
        weights = np.array([row["time_ps"] * row["atoms"] for row in group])
        weights /= weights.sum()
        found = [row["temperature_K"] for row in group]
        errors = np.array([temperature["standard_error"] for temperature in found])
        means.append(
            {
                "molecule": molecule,
                "setting": setting,
                "runs": len(group),
                "temperature_K": float(weights @ [temperature["value"] for temperature in found]),
                "standard_error_K": float(np.linalg.norm(weights * errors)),
            }
        )
    return [mean for mean in means if mean["runs"] > 1]


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(
        "molecule",
        Column("setting", overflow="fold"),
        "seed",
        "ps",
        "mean T, K",
        "drift, meV/atom/ps",
        "fluctuation, meV/atom",
        "largest bond change, Å",
        "verdict",
    )
    for row in rows:
        temperature, bond = row["temperature_K"], row["largest_bond_deviation_A"]
        table.add_row(
            row["molecule"],
            row["setting"],
            str(row["seed"]),
            f"{row['time_ps']:.1f}",
            ""
            if temperature is None
            else f"{temperature['value']:.1f} ± {temperature['standard_error']:.1f}",
            *(
                "" if row[key] is None else f"{row[key]:.4f}"
                for key in ("energy_drift_meV_per_atom_per_ps", "energy_fluctuation_meV_per_atom")
            ),
            "" if bond is None else f"{bond:.3f}",
            f"{row['verdict']} {row['reason']}".strip(),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
