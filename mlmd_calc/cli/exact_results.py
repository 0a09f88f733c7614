"""What `mlmd run --exact` leaves behind."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from mlmd_calc.analysis import summarise_exact
from mlmd_calc.analysis.statistics import FEWEST_BLOCKS, block_average
from mlmd_calc.analysis.trajectory import largest_bond_deviation
from mlmd_calc.cli.tables import describe_temperature, details
from mlmd_calc.errors import InputError
from mlmd_calc.md import ExactNVT, RunRecord
from mlmd_calc.md.exact_engine import FAR_FRAMES_FILE
from mlmd_calc.wording import counted


def samples_of(record: RunRecord) -> RunRecord:
    """Frames after the warm-up; all of them if there are none yet."""
    exact = record.description.settings.exact
    assert exact is not None
    after = record.frames[record.frames["step"] > exact.warmup]
    return replace(record, frames=after) if len(after) else record


def summarise_samples(record: RunRecord, sampler: ExactNVT) -> dict[str, Any]:
    """Summarise an exact ensemble.

    Parameters
    ----------
    record
        Frames after the warm-up, up to the end of the run.
    sampler
        What has sampled them.

    Returns
    -------
    dict
        JSON-able. Nothing in it is per time, which does not pass between samples.
    """
    settings = record.description.settings
    assert settings.exact is not None
    deviation, bond = largest_bond_deviation(record)
    kinetic = record.temperatures
    mean = asdict(block_average(kinetic)) if len(kinetic) >= FEWEST_BLOCKS else None
    try:
        found, problem = asdict(summarise_exact(sampler)), ""
    except InputError as error:
        found, problem = {}, str(error)
    return {
        "temperature_K": mean,
        "temperature_off": False,
        "largest_bond_deviation_A": deviation,
        "bond": bond,
        "exact": {
            "target": settings.exact.target,
            "proposals": len(sampler.samples),
            "target_energies": int(record.frames["step"][-1]),
            "target_gradients": sampler.collected,
            "problem": problem,
            **found,
        },
    }


def exact_table(summary: dict[str, Any]) -> Table:
    """Lay out the summary of a run that has sampled an exact ensemble."""
    settings, exact = summary["settings"], summary["exact"]
    temperature = describe_temperature(summary["temperature_K"])
    rows = {
        "verdict": summary["verdict"],
        "reason": summary["reason"],
        "charge, multiplicity": f"{summary['charge']}, {summary['multiplicity']}",
        "proposals by": summary["calculator"]["model"],
        "samples": f"{exact['proposals']}, after "
        f"{counted(settings['exact']['warmup'], 'step')} of warm-up",
        "physical time": "none: frames are samples, read off no rates or spectra",
        "not summarised": exact["problem"],
        **_quality(exact),
        "calls of the target": f"{counted(exact['target_energies'], 'energy', 'energies')}, "
        f"{counted(exact['target_gradients'], 'gradient')}",
        "temperature, K": f"{temperature} (wanted {settings['temperature_K']:g})",
        "speed": f"{summary['proposals_per_hour']:.3g} trajectories per hour",
        "seed": str(settings["seed"]),
        "trajectory": summary["trajectory"],
        "rejected or far": summary["far_frames_file"],
        "picture": summary["plot"],
    }
    return details(f"{summary['molecule']}, exact ensemble of {exact['target']}", rows)


def _quality(exact: dict[str, Any]) -> dict[str, str]:
    """Rows that only a run with enough samples has."""
    if exact["problem"]:
        return {}
    energy, bias = exact["energy"], exact["proposal"]
    at_least, at_most = ("", "") if energy["resolved"] else ("≥", "≤ ")
    rows = {
        "accepted": f"{exact['acceptance']:.1%} of trajectories of {exact['trajectory_fs']:.1f} fs "
        f"(time step {exact['timestep_fs']:.2f} fs), {exact['failed']} failed",
        "mean energy": f"{energy['value']:.4f} ± {at_least}{energy['standard_error']:.4f} eV",
        "effective samples": f"{at_most}{exact['effective_samples']:.0f}, "
        f"{at_most}{exact['effective_samples_per_call']:.3f} per energy of the target",
    }
    if bias is not None:
        rows["proposal alone"] = (
            f"energies differ by {bias['spread_meV']:.0f} meV (standard deviation), overlap "
            f"{bias['overlap']:.2f}, mean energy off by {bias['energy_shift_meV']:+.0f} meV"
        )
    return rows


def far_frames_file(folder: Path, sampler: ExactNVT) -> str:
    """Path of the frames where the proposal went wrong; empty if there are none."""
    return str(folder / FAR_FRAMES_FILE) if sampler.collected else ""
