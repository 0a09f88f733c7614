"""Memory and time of a training step of ATMOS, with and without activation checkpointing.

Run with a number of residues; each variant has a process of its own, whose peak memory is that of
the step alone above what there was before it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from mlmd_calc.data.biomolecules.peptides import capped_peptide
from mlmd_calc.data.biomolecules.trajectories import BiomolecularTrajectory
from mlmd_calc.training.atmos.recipe import ATMOSRecipe
from mlmd_calc.training.task import prepare

_WINDOW = 4
_FRAMES = 20


def measure(residues: int, preset: str, *, checkpointing: bool) -> dict[str, float]:
    """Take one step; return MiB at its peak and seconds of processor time."""
    structure = capped_peptide("A" * residues, 0)
    noise = np.random.default_rng(0).normal(0.0, 0.05, (_FRAMES, *structure.positions.shape))
    trajectory = BiomolecularTrajectory.from_frames(
        "peptide", structure, structure.positions + noise, 10.0, temperature_K=300.0
    )
    recipe = ATMOSRecipe(
        model={"preset": preset},
        window=_WINDOW,
        systems=1,
        held_out_fraction=0.0,
        held_out_molecules=(),
        activation_checkpointing=checkpointing,
    )
    task = prepare([trajectory], recipe, None)
    batch = next(iter(task.stream(seed=0)))
    before, begin = _peak(), time.process_time()
    sum(task.module.loss_terms(batch).values()).backward()
    return {"MiB": _peak() - before, "seconds": time.process_time() - begin}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--residues", type=int, default=10)
    parser.add_argument("--preset", default="xs")
    parser.add_argument("--only", choices=("off", "on"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        on = options.only == "on"
        print(json.dumps(measure(options.residues, options.preset, checkpointing=on)))
        return
    print("| activation checkpointing | memory of a step, MiB | s |\n| --- | --- | --- |")
    for name in ("off", "on"):
        sizes = ["--residues", str(options.residues), "--preset", options.preset]
        command = [sys.executable, __file__, *sizes, "--only", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        print(f"| {name} | {row['MiB']:.0f} | {row['seconds']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
