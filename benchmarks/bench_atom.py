"""Time of one ATOM forward pass against the literal form of its formulas.

All forms evaluate the same random network in the paper's configuration (5 layers, d = 128, 8
heads, tensor product) for 21 atoms and 8 output times, in float32 on one CPU thread, taking turns
in one process. Run it on Linux from a checkout with the package installed::

    python benchmarks/bench_atom.py
    python benchmarks/bench_atom.py --molecules 1 --json

The literal form is ``atom_reference.py``, the product form ``mlmd_calc.models.ATOM``; the merged
and the recorded form are its copies for inference. All get the same T copies of the state. The exit
status is 1 if they disagree.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from bench_mdet import summary
from common import PROC, deliver, environment, in_fresh_process
from mdet_forms import chain_molecule
from rich import box
from rich.console import Console
from rich.table import Table

SPEEDUP_TARGET: Final = 3.0
"""How many times faster the product form has to be."""

TOLERANCE: Final = 1e-5
"""Largest allowed difference of predicted positions, Å; they are of the order of 1 Å."""

N_ATOMS: Final = 21
N_TIMES: Final = 8
HORIZON: Final = 3000.0
"""Last time in frames, as for MD17."""

SPEED: Final = 0.003
"""Typical velocity, Å per frame."""

SECONDS: Final = 20.0
"""About how long the turns of one batch size may take."""

FORMS: Final = ("product", "merged", "recorded")

SEED: Final = 0

Forward: TypeAlias = Callable[[], Any]


def forward_passes(molecules: int, dtype: str) -> dict[str, Forward]:
    """Return one forward pass of each form, on the same weights and inputs.

    Parameters
    ----------
    molecules
        Number of molecules in the batch.
    dtype
        ``"float32"`` or ``"float64"``.
    """
    import atom_reference
    import torch

    from mlmd_calc.models import ATOM, ATOMConfig
    from mlmd_calc.models.atom import input_features, merge_weights, record

    torch.manual_seed(SEED)
    config = ATOMConfig()
    network = ATOM(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.ndim == 2:
            # Half the variance of an untrained network, which magnifies rounding errors.
            parameter.mul_(0.5**0.5)
    chain = chain_molecule(N_ATOMS)
    chain.positions -= chain.positions.mean(axis=0)
    positions = torch.tensor(chain.positions).float() + 0.1 * torch.randn(molecules, N_ATOMS, 3)
    velocities = SPEED * torch.randn(molecules, N_ATOMS, 3)
    numbers = torch.tensor(chain.numbers).expand(molecules, -1)
    kind = getattr(torch, dtype)
    network = network.to(kind)
    weights = network.state_dict()
    increments = torch.full((molecules, N_TIMES), HORIZON / N_TIMES)
    inputs = [
        tensor.to(kind).repeat(1, N_TIMES, 1, 1)
        for tensor in input_features(positions, velocities, numbers)
    ]

    def literal() -> Any:
        return atom_reference.literal_forward(weights, config, *inputs, time_increments=increments)[
            "pos"
        ]

    forms = {"product": network, "merged": merge_weights(network), "recorded": record(network)}

    def forward(form: ATOM) -> Forward:
        return lambda: form(*inputs, time_increments=increments)["pos"]

    return {"literal": literal, **{name: forward(form) for name, form in forms.items()}}


def measure(molecules: int) -> dict[str, Any]:
    """Compare the forms for one batch size.

    Parameters
    ----------
    molecules
        Number of molecules in the batch.
    """
    import torch

    with torch.inference_mode():
        exact = {form: warm(call) for form, call in forward_passes(molecules, "float64").items()}
        calls = forward_passes(molecules, "float32")
        single = {form: warm(call) for form, call in calls.items()}
        samples = time_in_turns(calls)
    row: dict[str, Any] = {"molecules": molecules}
    row.update({form: summary(found) for form, found in samples.items()})
    for form in FORMS:
        row[form].update(
            speedup=ratio(samples, form, "wall_s"),
            speedup_cpu=ratio(samples, form, "cpu_s"),
            difference_float32=float((single[form] - single["literal"]).abs().max()),
            difference_float64=float((exact[form] - exact["literal"]).abs().max()),
        )
    return row


def warm(call: Forward) -> Any:
    """Call often enough for a recording, and return the last result."""
    from mlmd_calc.models.recorder import RECORD_AFTER

    return [call() for _ in range(RECORD_AFTER + 3)][-1]


def time_in_turns(calls: dict[str, Forward]) -> dict[str, dict[str, list[float]]]:
    """Wall and processor seconds of every call of every form.

    Parameters
    ----------
    calls
        One forward pass of each form.
    """
    samples: dict[str, dict[str, list[float]]] = {f: {"wall_s": [], "cpu_s": []} for f in calls}
    end = time.perf_counter() + SECONDS
    while len(samples["literal"]["wall_s"]) < 5 or time.perf_counter() < end:
        for form, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            samples[form]["wall_s"].append(time.perf_counter() - wall)
            samples[form]["cpu_s"].append(time.process_time() - cpu)
    return samples


def ratio(samples: dict[str, dict[str, list[float]]], form: str, clock: str) -> float:
    """Ratio of the median times of the literal form and another."""
    return statistics.median(samples["literal"][clock]) / statistics.median(samples[form][clock])


def result_table(report: dict[str, Any]) -> Table:
    """Lay the report out for reading."""
    where = report["environment"]
    table = Table(
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        title=f"ATOM, 5 layers, d = 128, {N_ATOMS} atoms, {N_TIMES} times: one forward pass, "
        "float32, one thread",
        caption=(
            f"{where['cpu']} ({where['cores']} cores, load {where['load_average_1min']:.1f}), "
            f"torch {where['torch']}, python {where['python']}. ms: median wall time. Δ: largest "
            f"difference to the literal form, Å. Target: ratio ≥ {SPEEDUP_TARGET:g}×."
        ),
    )
    headings = "molecules|form|literal\nms|ms|wall\nratio|CPU\nratio|Δ\nfloat32|Δ\nfloat64"
    for heading in headings.split("|"):
        table.add_column(heading, justify="right")
    for row in report["batches"]:
        for form in FORMS:
            found = row[form]
            table.add_row(
                str(row["molecules"]),
                form,
                f"{1e3 * row['literal']['wall_s_median']:.1f}",
                f"{1e3 * found['wall_s_median']:.1f}",
                f"{found['speedup']:.2f}×",
                f"{found['speedup_cpu']:.2f}×",
                f"{found['difference_float32']:.0e}",
                f"{found['difference_float64']:.0e}",
            )
    return table


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--molecules", type=int, nargs="+", default=[1, 16], metavar="B")
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table")
    arguments = parser.parse_args()
    if not PROC.is_dir():
        parser.error(f"the processor's name is read from {PROC}, which only Linux has")
    messages = Console(stderr=True)
    with messages.status("measuring"):
        report: dict[str, Any] = {
            "benchmark": "atom-forward",
            "threads": 1,
            "dtype": "float32",
            "n_atoms": N_ATOMS,
            "n_times": N_TIMES,
            "environment": environment(),
            "speedup_target": SPEEDUP_TARGET,
            "batches": [in_fresh_process(measure, count) for count in arguments.molecules],
        }
    deliver(report, arguments.json, result_table)
    failed = False
    for row in report["batches"]:
        for form in FORMS:
            for dtype in ("float32", "float64"):
                difference = row[form][f"difference_{dtype}"]
                if difference > TOLERANCE:
                    failed = True
                    messages.print(
                        f"{row['molecules']} molecules, {dtype}: the {form} form differs by "
                        f"{difference:.1e} Å (allowed {TOLERANCE:g}); speeds must not be compared."
                    )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
