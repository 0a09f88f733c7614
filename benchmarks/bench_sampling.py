"""What 10 ps of a peptide cost: dynamics, frames of an ATMOS model, and relaxed frames.

Prints, for peptides of one, four and ten amino acids, seconds of processor time per stride of the
model, as a ratio to Langevin dynamics with Amber too, and the quality beside it: by how many
standard deviations of dynamics the mean potential energy of the frames is above that of dynamics,
and how many of them are unsound. All in one process with one thread, and in turns, so that other
work on the machine changes the ratios little. Run it from a checkout with the package installed::

    python benchmarks/bench_sampling.py
    python benchmarks/bench_sampling.py --sequence A --frames 20 --markdown

Relaxations with MD-ET are run for molecules of up to ``--mdet-atoms`` atoms. For larger ones their
cost follows from that of a force call, which is all they are made of, and nothing is said of their
quality. Dynamics with MD-ET has steps of 0.5 fs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import openmm
from common import environment, in_fresh_process
from rich.console import Console
from rich.table import Table

from mlmd_calc import Potential, units
from mlmd_calc.biomolecules import build_system
from mlmd_calc.data.biomolecules.peptides import capped_peptide
from mlmd_calc.errors import InputError, MLMDError
from mlmd_calc.models.atmos.rollout import Rollout
from mlmd_calc.models.recorder import RECORD_AFTER
from mlmd_calc.potential import Structure
from mlmd_calc.propagation.relaxation import TIMESTEP_FS
from mlmd_calc.sampling import Trajectories
from mlmd_calc.sampling.quality import FrameFaults, FrameGuard
from mlmd_calc.sampling.relaxed import (
    DYNAMICS_STEPS,
    MINIMISE_STEPS,
    Relaxation,
    RelaxedTrajectories,
)
from mlmd_calc.sampling.rollouts import RELAXED_REDRAWS, SamplerOptions, make_rollout
from mlmd_calc.zoo import load_atmos
from openmm_bridge.peptides import AmberForces, peptide_context

SEQUENCES: Final = ("A", "AGSV", "GYNPQTGTWG")
"""The last is chignolin without its charges, which MD-ET does not know."""

BATCH: Final = 16
REFERENCE_PS: Final = 5.0
MDET_REFERENCE_PS: Final = 0.5
MDET_CALLS: Final = 3


@dataclass
class Row:
    """One way to make a stride.

    Attributes
    ----------
    way
        What it is called.
    seconds
        Processor time per stride.
    deviations
        Standard deviations of dynamics by which the mean energy is above that of dynamics; None if
        it was not looked at.
    unsound
        Share of unsound frames; None if it was not looked at.
    note
        What else there is to say.
    """

    way: str
    seconds: float
    deviations: float | None = None
    unsound: float | None = None
    note: str = ""


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time in seconds, and what came out."""
    begin = time.process_time()
    found = work()
    return time.process_time() - begin, found


def measure(sequence: str, model_name: str, frames: int, mdet: str, mdet_atoms: int) -> list[Row]:
    """Measure all ways for one peptide, in this process.

    Parameters
    ----------
    sequence
        One-letter codes.
    model_name
        ATMOS model.
    frames
        Frames of each kind.
    mdet
        MD-ET model.
    mdet_atoms
        Atoms up to which relaxation with MD-ET is run.
    """
    structure = capped_peptide(sequence, 0)
    system = build_system(structure)
    model = load_atmos(model_name, device="cpu")
    (stride_ps,) = model.card.strides_ps
    temperature_K = model.card.temperature_K or 300.0
    options = SamplerOptions()
    sampler = options.of(model, system)
    judged = FrameFaults(system, structure, hydrogens=False)

    def rollout() -> Rollout:
        guard = FrameGuard(system, structure)
        return make_rollout(model, system, structure, stride_ps, options, guard, 0)

    def unsound(whole: Any) -> float:
        found = judged(system.select(whole.reshape(-1, len(structure), 3)))
        return float(np.any(list(found.values()), axis=0).mean())

    def warm(count: int) -> Trajectories:
        """Trajectories whose denoiser is recorded."""
        growing = Trajectories(rollout(), system.reference, count, 0)
        growing.advance(RECORD_AFTER // sampler.steps + 1)
        return growing

    def relaxed(forces: Any, reference_ps: float, count: int) -> tuple[Row, Relaxation]:
        guard = FrameGuard(system, structure, hydrogens=False)
        relaxation = Relaxation(forces, system, structure, guard, temperature_K)
        growing = RelaxedTrajectories(
            warm(1).rollout, relaxation, structure.positions, 1, 0, redraws=RELAXED_REDRAWS
        )
        growing.measure(reference_ps, 0)
        seconds, positions, energies = 0.0, [], []
        refusal = ""
        for _ in range(count):
            try:
                spent, (drawn, energy) = timed(lambda: growing.advance(1))
            except MLMDError:
                refusal = ", refused from there on"
                break
            seconds += spent
            positions.append(drawn)
            energies.append(energy)
        if not positions:
            return Row("", np.nan, note="every frame was refused"), relaxation
        mean = float(np.mean(energies))
        assert relaxation.window is not None
        note = f"{len(positions)} frames, {relaxation.again} relaxed again" + refusal
        row = Row(
            "",
            seconds / len(positions),
            relaxation.window.deviations(mean),
            unsound(np.concatenate(positions)),
            note,
        )
        return row, relaxation

    rows = [Row("Langevin dynamics, Amber", langevin(structure, stride_ps, temperature_K), 0.0)]
    amber = AmberForces(structure)
    by_amber, relaxation = relaxed(amber, REFERENCE_PS, frames)
    for count in (1, BATCH):
        growing = warm(count)
        turns = max(1, frames // count) if count > 1 else frames
        seconds, heavy = timed(lambda n=turns, own=growing: own.advance(n))
        whole = system.restore(heavy, structure.positions).reshape(-1, len(structure), 3)
        energies = amber.evaluate(
            [Structure(structure.numbers, frame) for frame in whole], ("energy",)
        )
        assert relaxation.window is not None
        above = relaxation.window.deviations(float(np.median([e.energy for e in energies])))
        way = "model alone" if count == 1 else f"model alone, batch of {count}"
        rows.append(Row(way, seconds / (turns * count), above, unsound(whole)))
    by_amber.way = "relaxed with Amber"
    rows.append(by_amber)
    return [*rows, *mdet_rows(structure, stride_ps, mdet, mdet_atoms, rows[1].seconds, relaxed)]


def langevin(structure: Any, stride_ps: float, temperature_K: float) -> float:
    """Processor time of a stride of Langevin dynamics, 2 fs with constrained bonds to hydrogen."""
    context = peptide_context(structure, temperature_K, 1)
    integrator = context.getIntegrator()
    steps = round(stride_ps / integrator.getStepSize()._value)
    openmm.LocalEnergyMinimizer.minimize(context)
    integrator.step(steps // 10)
    seconds, _ = timed(lambda: integrator.step(steps))
    return seconds


def mdet_rows(
    structure: Any,
    stride_ps: float,
    name: str,
    most_atoms: int,
    alone: float,
    relaxed: Callable[..., tuple[Row, Relaxation]],
) -> list[Row]:
    """Ways that need forces of MD-ET."""
    potential = Potential(name, device="cpu", seed=0)
    one = [Structure(structure.numbers, structure.positions)]
    try:
        for _ in range(MDET_CALLS):
            potential.evaluate(one, ("forces",))
    except InputError as error:
        return [Row("relaxed with MD-ET", np.nan, note=str(error))]
    seconds, _ = timed(lambda: [potential.evaluate(one, ("forces",)) for _ in range(MDET_CALLS)])
    call = seconds / MDET_CALLS
    steps = stride_ps * units.FS_PER_PS / TIMESTEP_FS
    rows = [Row("dynamics with MD-ET", steps * call, 0.0, note="from the time of a force call")]
    if len(structure) > most_atoms:
        cost = alone + (MINIMISE_STEPS + DYNAMICS_STEPS + 1) * call
        return [*rows, Row("relaxed with MD-ET", cost, note="from the time of a force call")]
    row, _ = relaxed(potential, MDET_REFERENCE_PS, 2)
    row.way = "relaxed with MD-ET"
    return [*rows, row]


def table_rows(sequence: str, rows: list[Row]) -> list[list[str]]:
    """Cells of the rows of one peptide."""
    plain = rows[0].seconds
    return [
        [
            sequence if k == 0 else "",
            row.way,
            short(row.seconds),
            short(row.seconds / plain),
            "" if row.deviations is None else f"{row.deviations:.1f}",
            "" if row.unsound is None else f"{100.0 * row.unsound:.0f} %",
            row.note,
        ]
        for k, row in enumerate(rows)
    ]


def short(number: float) -> str:
    """Three digits, without powers of ten."""
    return f"{float(f'{number:.3g}'):g}"


HEAD: Final = ["Ace-…-Nme", "way", "s per 10 ps", "ratio", "energy above, σ", "unsound", ""]


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        prog="mlmd bench sampling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--sequence", action="append", help=f"may be repeated ({', '.join(SEQUENCES)})")
    add("--model", default="atmos-peptides", help="ATMOS model (atmos-peptides)")
    add("--frames", type=int, default=16, help="frames of each kind (16)")
    add("--mdet", default="mdet-small-organics", help="MD-ET model (mdet-small-organics)")
    add("--mdet-atoms", type=int, default=30, help="largest molecule to relax by MD-ET (30)")
    add("--markdown", action="store_true", help="write the table as Markdown")
    add("--json", action="store_true", help="write JSON instead of a table")
    arguments = parser.parse_args()
    found: dict[str, list[Row]] = {}
    if arguments.markdown:
        write_markdown([HEAD, ["---"] * len(HEAD)])
    for sequence in arguments.sequence or SEQUENCES:
        try:
            found[sequence] = in_fresh_process(
                measure,
                sequence,
                arguments.model,
                arguments.frames,
                arguments.mdet,
                arguments.mdet_atoms,
            )
        except MLMDError as error:
            sys.stderr.write(f"mlmd: {error}\n")
            return 1
        if arguments.markdown:
            write_markdown(table_rows(sequence, found[sequence]))
    where = environment()
    if arguments.json:
        report = {"benchmark": "sampling", "environment": where}
        report["rows"] = {name: [vars(row) for row in rows] for name, rows in found.items()}
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    elif not arguments.markdown:
        table = Table(*HEAD)
        for sequence, rows in found.items():
            for line in table_rows(sequence, rows):
                table.add_row(*line)
        console = Console()
        console.print(table)
        console.print(
            f"{where['cpu']} ({where['cores']} cores, load {where['load_average_1min']:.1f}), "
            f"torch {where['torch']}, one thread",
            highlight=False,
        )
    return 0


def write_markdown(lines: list[list[str]]) -> None:
    """Write rows of a table, at once: some take long."""
    sys.stdout.write("".join(f"| {' | '.join(line)} |\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
