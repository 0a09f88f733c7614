"""Time and memory of one MD-ET force call against the literal form of its formulas.

Both forms evaluate the same random 12-layer, E = 192 network in float32 on one CPU thread,
interleaved in one process; peak memory comes from a fresh process per form and size. Run it on
Linux from a checkout with the package installed::

    python benchmarks/bench_mdet.py
    python benchmarks/bench_mdet.py --atoms 9 21 --json

The literal form is ``mdet_reference.py``; the product form is ``mlmd_calc.Potential``. The exit
status is 1 if they disagree.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from common import PROC, deliver, environment, in_fresh_process, proc_bytes
from mdet_forms import chain_molecule, peak_memory, time_forms
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

SPEEDUP_TARGETS: Final = {9: 2.0, 21: 4.0, 50: 15.0, 100: 30.0}
"""Number of atoms → how many times faster the product form has to be."""

MEMORY_TARGETS: Final = {100: 0.5e9}
"""Number of atoms → peak memory in bytes the product form may have, libraries included."""

FORCE_TOLERANCE: Final = 1e-3
"""Largest allowed difference between the two forms, relative to the largest force component."""


def reason_to_skip_literal(n_atoms: int) -> str | None:
    """Say why the literal form cannot be run at this size, or return None if it can."""
    import mdet_reference

    config = mdet_reference.ReferenceConfig()
    # One N³·E array per layer stays alive; the rest of a layer needs half as much again.
    needed = 0.3e9 + 1.5 * config.n_layers * 4 * config.embd_dim * n_atoms**3
    free = proc_bytes("meminfo", "MemAvailable")
    if free >= needed:
        return None
    return f"needs about {needed / 1e9:.0f} GB, {free / 1e9:.1f} GB are free"


def measure(n_atoms: int, baseline: int) -> dict[str, Any]:
    """Compare both forms for one size.

    Parameters
    ----------
    n_atoms
        Size of the molecule.
    baseline
        Memory of the interpreter and libraries, bytes.
    """
    skipped = reason_to_skip_literal(n_atoms)
    row: dict[str, Any] = {
        "n_atoms": n_atoms,
        "molecule": chain_molecule(n_atoms).symbols.formula.format("hill"),
    }
    samples = {}
    if skipped is None:
        try:
            samples = in_fresh_process(time_forms, n_atoms, ["literal", "product", "dense"])
            row["literal"] = summary(samples["literal"])
            row["literal"]["peak_bytes"] = in_fresh_process(peak_memory, n_atoms, "literal")
        except BrokenProcessPool:
            skipped = "its process was ended by the system, probably because memory ran out"
    if skipped is not None:
        row["literal"] = {"skipped": skipped}
    if not samples:
        samples = in_fresh_process(time_forms, n_atoms, ["product", "dense"])
    row["product"] = summary(samples["product"])
    row["dense"] = summary(samples["dense"])
    row["product"]["peak_bytes"] = in_fresh_process(peak_memory, n_atoms, "product")
    row["product"]["peak_above_baseline_bytes"] = row["product"]["peak_bytes"] - baseline
    if skipped is None:
        row["literal"]["peak_above_baseline_bytes"] = row["literal"]["peak_bytes"] - baseline
        row.update(comparison(samples))
    row["speedup_target"] = SPEEDUP_TARGETS.get(n_atoms)
    row["peak_bytes_target"] = MEMORY_TARGETS.get(n_atoms)
    return row


def summary(samples: dict[str, Any]) -> dict[str, Any]:
    """Medians and minimum of the timings of one form, seconds."""
    return {
        "calls": len(samples["wall_s"]),
        "wall_s_median": statistics.median(samples["wall_s"]),
        "wall_s_min": min(samples["wall_s"]),
        "cpu_s_median": statistics.median(samples["cpu_s"]),
    }


def comparison(samples: dict[str, Any]) -> dict[str, float]:
    """Ratios of the timings, the literal form over the others, and difference of the forces."""
    literal, product = samples["literal"], samples["product"]
    difference = np.abs(np.asarray(literal["forces"]) - np.asarray(product["forces"])).max()
    largest = np.abs(literal["forces"]).max()
    return {
        "speedup": statistics.median(literal["wall_s"]) / statistics.median(product["wall_s"]),
        "speedup_dense": statistics.median(literal["wall_s"])
        / statistics.median(samples["dense"]["wall_s"]),
        "speedup_cpu": statistics.median(literal["cpu_s"]) / statistics.median(product["cpu_s"]),
        "force_difference_relative": float(difference / largest),
    }


def result_table(report: dict[str, Any]) -> Table:
    """Lay the report out for reading."""
    where = report["environment"]
    table = Table(
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        title="MD-ET, 12 layers, E = 192: one force call, float32, one thread",
        caption=(
            f"{where['cpu']} ({where['cores']} cores, load {where['load_average_1min']:.1f}), "
            f"torch {where['torch']}, python {where['python']}. ms: median wall time. GB: peak of "
            f"a fresh process, of which interpreter and libraries take "
            f"{report['baseline_bytes'] / 1e9:.2f}. ΔF/F: largest difference of the two forms. "
            "Dense: matrix products of the layers alone, as PyTorch multiplies."
        ),
    )
    headings = (
        "atoms|literal\nms|product\nms|dense\nms|wall\nratio|dense\nratio|target|literal\nGB|"
        "product\nGB|ΔF/F"
    )
    for heading in headings.split("|"):
        table.add_column(heading, justify="right")
    for row in report["sizes"]:
        literal, product, target = row["literal"], row["product"], row["speedup_target"]
        skipped = "skipped" in literal
        table.add_row(
            str(row["n_atoms"]),
            "skipped" if skipped else f"{1e3 * literal['wall_s_median']:.1f}",
            f"{1e3 * product['wall_s_median']:.1f}",
            f"{1e3 * row['dense']['wall_s_median']:.1f}",
            "–" if skipped else f"{row['speedup']:.1f}×",
            "–" if skipped else f"{row['speedup_dense']:.1f}×",
            "–" if target is None else f"≥ {target:g}×",
            "–" if skipped else f"{literal['peak_bytes'] / 1e9:.2f}",
            f"{product['peak_bytes'] / 1e9:.2f}",
            "–" if skipped else f"{row['force_difference_relative']:.0e}",
        )
    return table


def run(sizes: list[int], console: Console) -> dict[str, Any]:
    """Measure all sizes and return the report.

    Parameters
    ----------
    sizes
        Numbers of atoms.
    console
        Where the progress bar goes.
    """
    import mdet_reference

    report: dict[str, Any] = {
        "benchmark": "mdet-force-call",
        "threads": 1,
        "dtype": "float32",
        "model": asdict(mdet_reference.ReferenceConfig()),
        "environment": environment(),
        "baseline_bytes": in_fresh_process(peak_memory, 0, None),
        "sizes": [],
    }
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        # The cost of a size grows as N³, so that is what the bar counts.
        task = progress.add_task("", total=sum(n**3 for n in sizes))
        for n_atoms in sizes:
            progress.update(task, description=f"{n_atoms} atoms")
            report["sizes"].append(measure(n_atoms, report["baseline_bytes"]))
            progress.advance(task, n_atoms**3)
    return report


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--atoms", type=int, nargs="+", action="extend", metavar="N")
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table")
    arguments = parser.parse_args()
    if not PROC.is_dir():
        parser.error(f"memory is read from {PROC}, which only Linux has")
    messages = Console(stderr=True)
    report = run(arguments.atoms or list(SPEEDUP_TARGETS), messages)
    deliver(report, arguments.json, result_table)
    failed = False
    for row in report["sizes"]:
        if "skipped" in row["literal"]:
            messages.print(
                f"{row['n_atoms']} atoms: literal form skipped, it {row['literal']['skipped']}."
            )
        elif row["force_difference_relative"] > FORCE_TOLERANCE:
            failed = True
            messages.print(
                f"{row['n_atoms']} atoms: the two forms disagree by "
                f"{row['force_difference_relative']:.1e} of the largest force (allowed "
                f"{FORCE_TOLERANCE:g}); their speeds must not be compared."
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
