"""Time and memory per frame of one long roll-out of an ATMOS model.

What is kept from frame to frame does not grow, so the last frames must cost what the first ones
did, and memory must stay. Without a model the network is random, of the smallest named size. Run it
on Linux from a checkout with the package installed::

    python benchmarks/bench_rollout.py
    python benchmarks/bench_rollout.py --model key.safetensors --start sequence:AAG --json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any, Final

from common import PROC, environment, in_fresh_process, proc_bytes
from rich.console import Console

from mlmd_calc.errors import MLMDError

WARM_UP: Final = 3
"""Frames before the clock starts."""


def measure(
    model: str | None, start: str, frames: int, part: int, steps: int | None
) -> dict[str, Any]:
    """Roll out in this process.

    Parameters
    ----------
    model
        ATMOS model, or None for a random network.
    start
        As for ``mlmd sample``.
    frames
        Frames to draw.
    part
        How many at the beginning and at the end to tell the time of.
    steps
        Denoiser calls per frame; None for those of the model.
    """
    from dataclasses import replace

    import torch

    from mlmd_calc.biomolecules import build_system
    from mlmd_calc.biomolecules.steering import Steering
    from mlmd_calc.cli.structure_input import load_bonded
    from mlmd_calc.models import ATMOS, ATMOSConfig
    from mlmd_calc.models.atmos.rollout import Rollout
    from mlmd_calc.sampling import Trajectories
    from mlmd_calc.zoo import load_atmos

    torch.manual_seed(0)
    if model is None:
        network, lag_ps = ATMOS(ATMOSConfig.preset("xs")).eval(), None
    else:
        loaded = load_atmos(model, device="cpu")
        network, lag_ps = loaded.network, next(iter(loaded.card.strides_ps), None)
    sampler = network.config.sampler
    if steps is not None:
        sampler = replace(sampler, steps=steps)
    structure = load_bonded(start, seed=0)
    system = build_system(structure)
    # As `mlmd sample` draws, but whatever comes is kept.
    steer = Steering(system, structure.positions)
    rollout = Rollout(network, system.features, sampler=sampler, lag_ps=lag_ps, steer=steer)
    trajectories = Trajectories(rollout, system.reference, 1, seed=0)
    trajectories.advance(WARM_UP)
    wall, cpu, resident = [time.perf_counter()], [time.process_time()], []
    for _ in range(frames):
        trajectories.advance(1)
        wall.append(time.perf_counter())
        cpu.append(time.process_time())
        resident.append(proc_bytes("self/status", "VmRSS"))
    return {
        "atoms": len(system.atoms),
        "parameters": sum(p.numel() for p in network.parameters()),
        "sampler_steps": sampler.steps,
        "frames": frames,
        "part": part,
        "wall": _first_and_last(wall, part),
        "cpu": _first_and_last(cpu, part),
        "resident_bytes_after_first": resident[part - 1],
        "resident_bytes_at_end": resident[-1],
    }


def _first_and_last(clock: list[float], part: int) -> dict[str, float]:
    first, last = (clock[part] - clock[0]) / part, (clock[-1] - clock[-1 - part]) / part
    return {"first_s_per_frame": first, "last_s_per_frame": last, "ratio": last / first}


def show(report: dict[str, Any], console: Console) -> None:
    """Print the report for reading."""
    where, part = report["environment"], report["part"]
    begin, end = (report[f"resident_bytes_{key}"] / 1e6 for key in ("after_first", "at_end"))
    console.print(
        f"{report['start']}, {report['atoms']} heavy atoms; model {report['model'] or 'random'}, "
        f"{report['parameters']:,} parameters, {report['sampler_steps']} denoiser calls per frame; "
        f"{report['frames']} frames\n"
        + "".join(
            f"{name} time per frame: first {part} frames {1e3 * found['first_s_per_frame']:.1f} "
            f"ms, last {part} {1e3 * found['last_s_per_frame']:.1f} ms, "
            f"ratio {found['ratio']:.3f}\n"
            for name, found in (("CPU", report["cpu"]), ("wall", report["wall"]))
        )
        + f"resident memory after {part} frames: {begin:.0f} MB, at the end: {end:.0f} MB\n"
        f"{where['cpu']} ({where['cores']} cores, load {where['load_average_1min']:.1f}), torch "
        f"{where['torch']}, one thread",
        highlight=False,
        markup=False,
    )


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        prog="mlmd bench rollout",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", help="ATMOS model (a random network)")
    add("--start", default="sequence:A", help="as for mlmd sample (sequence:A)")
    add("--frames", type=int, default=1000, help="(1000)")
    add("--part", type=int, default=100, help="first and last frames to compare (100)")
    add("--steps", type=int, help="denoiser calls per frame (those of the model)")
    add("--json", action="store_true", help="write JSON instead of text")
    arguments = parser.parse_args()
    if not PROC.is_dir():
        parser.error(f"memory is read from {PROC}, which only Linux has")
    if not 1 <= arguments.part <= arguments.frames // 2:
        parser.error(
            f"--part {arguments.part}: first and last frames must be between 1 and half of the "
            f"{arguments.frames} frames"
        )
    settings = {key: getattr(arguments, key) for key in ("model", "start", "frames", "part")}
    try:
        found = in_fresh_process(measure, *settings.values(), arguments.steps)
    except MLMDError as error:
        sys.stderr.write(f"mlmd: {error}\n")
        return 1
    report = {"benchmark": "rollout", "environment": environment(), **settings, **found}
    if arguments.json:
        sys.stdout.write(json.dumps(report, indent=2, allow_nan=False) + "\n")
    else:
        show(report, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
