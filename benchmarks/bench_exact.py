"""GFN2-xTB's canonical ensemble by trajectories of a model, against Langevin dynamics of GFN2-xTB.

    python benchmarks/bench_exact.py
    python benchmarks/bench_exact.py --molecule isobutane --torsion 0 1 2 7 --proposals 200 --json

:class:`mlmd_calc.md.ExactNVT` samples with one energy of GFN2-xTB in each step, Langevin dynamics
with one gradient in each time step. Compared are the distributions of a torsion, folded to 0 to
180°, with errors from blocks. Processor times are for one thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from dataclasses import asdict
from typing import Any, Final

import ase
import numpy as np
import torch
from ase.md.langevin import Langevin
from common import environment
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from mlmd_calc import Potential, units
from mlmd_calc.analysis import block_average, effective_samples, summarise_exact
from mlmd_calc.data.gfn2 import gfn2_calculator
from mlmd_calc.data.molecules import MOLECULES, start_structures
from mlmd_calc.md import ExactNVT, draw_momenta

TEMPERATURE_K: Final = 300.0
LANGEVIN_TIMESTEP_FS: Final = 0.5
FRICTION_PER_PS: Final = 2.0
SAMPLE_FS: Final = 5.0
"""Time between torsions of the Langevin dynamics."""

_BINS: Final = 6


def start_of(name: str, seed: int) -> ase.Atoms:
    """Make a molecule with thermal velocities."""
    built = start_structures(MOLECULES[name], 1, seed)
    atoms = ase.Atoms(built.numbers, built.positions[0])
    draw_momenta(atoms, TEMPERATURE_K, np.random.default_rng(seed))
    return atoms


def reference_calculator(name: str) -> Any:
    """GFN2-xTB for a molecule."""
    return gfn2_calculator(MOLECULES[name].charge, MOLECULES[name].multiplicity)


def sample_exact(arguments: argparse.Namespace) -> dict[str, Any]:
    """Sample with the model's trajectories."""
    proposal = Potential(
        arguments.proposal,
        device="cpu",
        forces=arguments.forces,
        dtype=arguments.dtype,
        rotation="none",
    )
    atoms = start_of(arguments.molecule, arguments.seed)
    dynamics = ExactNVT(
        atoms,
        arguments.timestep * units.FS,
        reference_calculator(arguments.molecule),
        proposal,
        temperature_K=TEMPERATURE_K,
        trajectory_steps=round(arguments.trajectory / arguments.timestep),
        friction=arguments.friction / units.PS,
        warmup=arguments.warmup,
        rng=np.random.default_rng(arguments.seed),
    )
    # The start, a minimum of a force field, is no sample.
    dynamics.run(arguments.warmup + arguments.proposals // 10)
    dynamics.samples = type(dynamics.samples)()
    torsions = []
    begin = time.process_time()
    for _ in range(arguments.proposals):
        dynamics.run(1)
        torsions.append(torsion(atoms, arguments.torsion))
        if len(torsions) % 50 == 0:
            tell("exact", len(torsions), arguments.proposals, dynamics.acceptance)
    seconds = time.process_time() - begin
    return {
        **asdict(summarise_exact(dynamics)),
        "seconds": seconds,
        "target_energies": arguments.proposals,
        "target_gradients": 0,
        "torsion": distribution(torsions),
    }


def sample_langevin(arguments: argparse.Namespace) -> dict[str, Any]:
    """Sample with GFN2-xTB's own forces."""
    atoms = start_of(arguments.molecule, arguments.seed + 1)
    atoms.calc = reference_calculator(arguments.molecule)
    dynamics = Langevin(
        atoms,
        LANGEVIN_TIMESTEP_FS * units.FS,
        temperature_K=TEMPERATURE_K,
        friction=FRICTION_PER_PS / units.PS,
        fixcm=False,
        rng=np.random.default_rng(arguments.seed + 1),
    )
    stride = round(SAMPLE_FS / LANGEVIN_TIMESTEP_FS)
    samples = round(arguments.picoseconds * units.FS_PER_PS / SAMPLE_FS)
    dynamics.run(stride * samples // 10)
    torsions, energies = [], []
    begin = time.process_time()
    for _ in range(samples):
        dynamics.run(stride)
        torsions.append(torsion(atoms, arguments.torsion))
        energies.append(atoms.get_potential_energy())
        if len(torsions) % 500 == 0:
            tell("Langevin", len(torsions), samples, math.nan)
    seconds = time.process_time() - begin
    effective = effective_samples(np.array(energies))
    return {
        "picoseconds": arguments.picoseconds,
        "seconds": seconds,
        "target_energies": 0,
        "target_gradients": samples * stride,
        "energy": asdict(block_average(np.array(energies))),
        "effective_samples": effective,
        "effective_samples_per_call": effective / (samples * stride),
        "torsion": distribution(torsions),
    }


def torsion(atoms: ase.Atoms, indices: list[int]) -> float:
    """Return a torsion in degrees, 0 to 180."""
    angle = float(atoms.get_dihedral(*indices))
    return min(angle, 360.0 - angle)


def distribution(torsions: list[float]) -> dict[str, Any]:
    """Share of the series in each bin, with standard errors."""
    edges = np.linspace(0.0, 180.0, _BINS + 1)
    inside = [
        ((low <= np.array(torsions)) & (np.array(torsions) < high)).astype(float)
        for low, high in itertools.pairwise(edges)
    ]
    means = [block_average(series) for series in inside]
    return {
        "share": [mean.value for mean in means],
        "standard_error": [mean.standard_error for mean in means],
    }


def largest_deviation(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest difference of two distributions in units of its standard error."""
    difference: NDArray[np.float64] = np.subtract(one["share"], other["share"])
    error = np.hypot(one["standard_error"], other["standard_error"])
    known = error > 0
    return float(np.abs(difference[known] / error[known]).max())


def tell(what: str, done: int, total: int, acceptance: float) -> None:
    """Say how far a run is."""
    accepted = "" if math.isnan(acceptance) else f", {acceptance:.1%} accepted"
    print(f"{what}: {done} of {total}{accepted}", file=sys.stderr, flush=True)


def print_report(report: dict[str, Any]) -> None:
    """Lay the report out for reading."""
    exact, langevin = report["exact"], report["langevin"]
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{report['molecule']}, GFN2-xTB at 300 K, proposals by {report['proposal']}",
        caption=f"load {report['environment']['load_average_1min']:.1f}, one thread",
    )
    for heading in ("", "ExactNVT", "Langevin"):
        table.add_column(heading, justify="left" if not heading else "right")
    bias = exact["proposal"]
    rows = {
        "trajectory, fs": (f"{exact['trajectory_fs']:.1f}", ""),
        "time step, fs": (f"{exact['timestep_fs']:.2f}", f"{LANGEVIN_TIMESTEP_FS:g}"),
        "acceptance": (f"{exact['acceptance']:.1%}", ""),
        "energies of GFN2-xTB": (str(exact["target_energies"]), ""),
        "gradients of GFN2-xTB": ("0", str(langevin["target_gradients"])),
        "mean energy, meV above": tuple(
            f"{1e3 * (row['energy']['value'] - exact['energy']['value']):.0f} "
            f"± {1e3 * row['energy']['standard_error']:.0f}"
            for row in (exact, langevin)
        ),
        "effective samples": tuple(f"{row['effective_samples']:.0f}" for row in (exact, langevin)),
        "… per call of GFN2-xTB": tuple(
            f"{row['effective_samples_per_call']:.4f}" for row in (exact, langevin)
        ),
        "processor s": tuple(f"{row['seconds']:.0f}" for row in (exact, langevin)),
    }
    for first, (second, third) in rows.items():
        table.add_row(first, second, third)
    width = 180 // _BINS
    for i in range(_BINS):
        shares = (
            f"{row['torsion']['share'][i]:.3f} ± {row['torsion']['standard_error'][i]:.3f}"
            for row in (exact, langevin)
        )
        table.add_row(f"torsion {width * i}-{width * (i + 1)}°", *shares)
    console = Console(width=100)
    console.print(table)
    console.print(
        f"Largest difference of the distributions: {report['largest_deviation']:.1f} standard "
        "errors."
    )
    if bias is not None:
        console.print(
            f"Proposal alone: energies differ by {bias['spread_meV']:.0f} meV (standard "
            f"deviation), overlap {bias['overlap']:.2f}, mean GFN2-xTB energy "
            f"{bias['energy_shift_meV']:+.0f} meV."
        )


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--molecule", default="ethanol", choices=MOLECULES, metavar="NAME")
    parser.add_argument("--torsion", type=int, nargs=4, default=[0, 1, 2, 8], metavar="ATOM")
    parser.add_argument("--proposal", default="mdet-small-organics-gfn2", help="name or path")
    parser.add_argument("--forces", default="conservative", choices=("direct", "conservative"))
    parser.add_argument("--dtype", default="float64", choices=("float64", "float32"))
    parser.add_argument("--proposals", type=int, default=1000)
    parser.add_argument("--trajectory", type=float, default=40.0, help="fs")
    parser.add_argument("--timestep", type=float, default=0.5, help="fs, at the start")
    parser.add_argument("--warmup", type=int, default=0, help="steps that adapt the time step")
    parser.add_argument("--friction", type=float, default=5.0, help="1/ps, between proposals")
    parser.add_argument("--picoseconds", type=float, default=40.0, help="of Langevin dynamics")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    exact, langevin = sample_exact(arguments), sample_langevin(arguments)
    report = {
        "benchmark": "exact",
        "molecule": arguments.molecule,
        "proposal": f"{arguments.proposal}, {arguments.forces}, {arguments.dtype}",
        "environment": environment(),
        "exact": exact,
        "langevin": langevin,
        "largest_deviation": largest_deviation(exact["torsion"], langevin["torsion"]),
    }
    if arguments.json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        print_report(report)


if __name__ == "__main__":
    main()
