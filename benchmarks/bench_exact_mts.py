"""Long steps with a Metropolis test: how many are accepted, and what a picosecond costs.

    python benchmarks/bench_exact_mts.py
    python benchmarks/bench_exact_mts.py --molecules ethanol --steps 4 8 12 --picoseconds 50

Each molecule is thermalised by conservative forces, a force field is fitted to it
(:class:`mlmd_calc.bonded.BondedForceField` with a network), and :class:`mlmd_calc.md.ExactMTS` runs
at 300 K and a friction of 1/ps with inner steps of 0.5 fs. Cost is processor time on one thread, of
the shortest of many blocks of steps, relative to Langevin dynamics with conservative forces and
time steps of 0.5 fs in the same run. Temperatures are kinetic; they and energies are means of the
last four fifths, with standard errors by blocking; energies are relative to those of 0.5 fs.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any, Final

import ase
import numpy as np
import torch
from bench_mts import TEMPERATURE_K, TIMESTEP_FS, thermalised
from common import deliver, environment
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mlmd_calc import MDETCalculator, load_model, units
from mlmd_calc.analysis import block_average
from mlmd_calc.analysis.trajectory import EQUILIBRATION
from mlmd_calc.bonded import BondedForceField
from mlmd_calc.bonded.force_field import NETWORK_FRAMES, NETWORK_NEURONS
from mlmd_calc.data.molecules import MOLECULES
from mlmd_calc.md import ExactMTS, MTSLangevin

FRICTION_PER_PS: Final = 1.0
BLOCK_FS: Final = 48.0
"""Of which processor time is taken, and after which temperatures are noted."""


def dynamics(
    atoms: ase.Atoms, cheap: BondedForceField, step_fs: float, seed: int
) -> MTSLangevin | ExactMTS:
    """Make the dynamics of a step length; steps of 0.5 fs have conservative forces alone."""
    kind = ExactMTS if step_fs > TIMESTEP_FS else MTSLangevin
    return kind(
        atoms,
        step_fs * units.FS,
        cheap,
        inner_steps=round(step_fs / TIMESTEP_FS),
        temperature_K=TEMPERATURE_K,
        friction=FRICTION_PER_PS / units.PS,
        rng=np.random.default_rng(seed),
    )


def measure(
    start: ase.Atoms,
    cheap: BondedForceField,
    step_fs: float,
    picoseconds: float,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Run one step length."""
    atoms = start.copy()
    atoms.calc = start.calc
    run = dynamics(atoms, cheap, step_fs, seed)
    steps = max(round(BLOCK_FS / step_fs), 1)
    block_ps = steps * step_fs / units.FS_PER_PS
    seconds, temperatures, energies = [], [], []
    name = f"{start.symbols}, {step_fs:g} fs"
    for _ in progress.track(range(round(picoseconds / block_ps)), description=name):
        begin = time.process_time()
        for _ in range(steps):
            run.step()
        seconds.append(time.process_time() - begin)
        temperatures.append(atoms.get_temperature())
        energies.append(atoms.get_potential_energy())
    late = slice(round(EQUILIBRATION * len(energies)), None)
    temperature = block_average(np.array(temperatures)[late])
    energy = block_average(np.array(energies)[late] / units.MEV)
    return {
        "step_fs": step_fs,
        "picoseconds": picoseconds,
        "acceptance": run.acceptance if isinstance(run, ExactMTS) else None,
        "temperature_K": [temperature.value, temperature.standard_error],
        "potential_energy_meV": [energy.value, energy.standard_error],
        "seconds_per_ps": min(seconds) / block_ps,
    }


def measure_molecule(
    name: str, arguments: argparse.Namespace, progress: Progress
) -> list[dict[str, Any]]:
    """Run all step lengths for one molecule."""
    model = load_model(arguments.model, device="cpu")
    start = thermalised(name, model, 0.5, arguments.seed)
    start.calc = MDETCalculator(model, device="cpu", forces="conservative")
    begin = time.process_time()
    cheap = BondedForceField.fit(
        start,
        temperature_K=TEMPERATURE_K,
        frames=arguments.frames,
        neurons=arguments.neurons,
        seed=arguments.seed,
    )
    fit = time.process_time() - begin
    rows = []
    for step_fs in (TIMESTEP_FS, *arguments.steps):
        length = arguments.picoseconds if step_fs > TIMESTEP_FS else arguments.plain
        row = measure(start, cheap, step_fs, length, arguments.seed, progress)
        whole = rows[0]["seconds_per_ps"] if rows else row["seconds_per_ps"]
        rows.append(
            {
                "molecule": name,
                "n_atoms": len(start),
                "fit_seconds": fit,
                "left_meV_per_A": cheap.error / units.MEV,
                **row,
                "speedup": whole / row["seconds_per_ps"],
            }
        )
    plain, error = rows[0]["potential_energy_meV"]
    rows[0]["potential_energy_meV"] = [0.0, error]
    for row in rows[1:]:
        value, own = row["potential_energy_meV"]
        row["potential_energy_meV"] = [value - plain, math.hypot(own, error)]
    return rows


def result_table(report: dict[str, Any]) -> Table:
    """Lay the report out for reading."""
    where = report["environment"]
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{report['model']}, 300 K, friction 1/ps; 0.5 fs: Langevin dynamics without a test",
        caption=f"{where['cores']} cores, load {where['load_average_1min']:.1f}, one thread",
    )
    headings = ("molecule", "fit", "step", "ps", "accepted", "T, K", "U - U(0.5 fs)", "s per ps")
    for heading in (*headings, "times as fast"):
        table.add_column(heading, justify="left" if heading == "molecule" else "right")
    for row in report["rows"]:
        accepted = row["acceptance"]
        temperature, energy = row["temperature_K"], row["potential_energy_meV"]
        table.add_row(
            f"{row['molecule']} ({row['n_atoms']})",
            f"{row['fit_seconds']:.0f} s, {row['left_meV_per_A']:.0f} meV/Å",
            f"{row['step_fs']:g} fs",
            f"{row['picoseconds']:g}",
            "–" if accepted is None else f"{accepted:.1%}",
            f"{temperature[0]:.0f} ± {temperature[1]:.0f}",
            f"{energy[0]:+.0f} ± {energy[1]:.0f} meV",
            f"{row['seconds_per_ps']:.2f}",
            f"{row['speedup']:.1f}",
        )
    return table


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", help="name or path; the default model if left out")
    parser.add_argument(
        "--molecules",
        nargs="+",
        default=["ethanol", "isobutane", "aspirin"],
        choices=MOLECULES,
        metavar="NAME",
    )
    parser.add_argument("--steps", nargs="+", type=float, default=[4.0, 8.0, 12.0], help="fs")
    parser.add_argument("--picoseconds", type=float, default=20.0, help="of each step length")
    parser.add_argument("--plain", type=float, default=5.0, help="ps of steps of 0.5 fs")
    parser.add_argument("--frames", type=int, default=NETWORK_FRAMES, help="of the fit")
    parser.add_argument("--neurons", type=int, default=NETWORK_NEURONS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for name in arguments.molecules:
            rows += measure_molecule(name, arguments, progress)
    report = {
        "benchmark": "exact_mts",
        "model": load_model(arguments.model, device="cpu").card.name,
        "environment": environment(),
        "rows": rows,
    }
    deliver(report, arguments.json, result_table, width=140)


if __name__ == "__main__":
    main()
