"""What a finished `mlmd run` leaves behind: trajectories, pictures and a summary."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

import mlmd_calc
from mlmd_calc import units
from mlmd_calc.analysis import summarise
from mlmd_calc.analysis.plots import plot_run
from mlmd_calc.analysis.statistics import Mean
from mlmd_calc.analysis.trajectory import EQUILIBRATION, misses_thermostat
from mlmd_calc.cli.exact_results import far_frames_file, samples_of, summarise_samples
from mlmd_calc.cli.job import Job, ns_per_day
from mlmd_calc.cli.report import SUMMARY_FILE
from mlmd_calc.io.files import write_json
from mlmd_calc.md import ExactNVT, Outcome, Run, read_record
from mlmd_calc.md.export import export_frames
from mlmd_calc.md.jump_engine import EVENTS_FILE
from mlmd_calc.md.record import Description, replica_folders
from mlmd_calc.md.settings import MDSettings

PLOT_FILE: Final = "run.png"
_FEW_ACCEPTED: Final = 0.2
"""Share of accepted long steps below which short ones go farther in the same time."""


def finish(run: Run, job: Job, outcome: Outcome, steps_per_second: float) -> dict[str, Any]:
    """Export the trajectories of a run, draw them, and summarise it.

    Returns
    -------
    dict
        The summary, which is also written to ``summary.json``. What it says of several replicas is
        said of each under "replicas".
    """
    description = run.description
    settings = description.settings
    kind = (
        f"exact ensemble of {settings.exact.target}" if settings.exact else settings.ensemble.value
    )
    title = f"{job.molecule}: {kind}, {settings.temperature_K:g} K"
    parts = [
        _finish_replica(folder, job.trajectory_format, title, run.sampler)
        for folder in replica_folders(run.folder, settings)
    ]
    whole = parts[0] if len(parts) == 1 else {**_pooled(parts, description), "replicas": parts}
    summary = {
        "version": mlmd_calc.__version__,
        "molecule": job.molecule,
        **description.info,
        **asdict(_judged(outcome, whole, settings, run.dynamics.acceptance)),
        **whole,
        "degrees_of_freedom": description.degrees_of_freedom,
        **_speed(settings, steps_per_second),
        "acceptance": run.dynamics.acceptance,
        "settings": settings.to_dict(),
        "engine": {"name": description.engine.value, **description.engine_options},
        "calculator": job.calculator,
    }
    if run.loop is not None and run.counts is not None:
        summary["jumps"] = {
            **asdict(run.counts),
            "tripped": dict(run.loop.events.counts("check")),
            "events": str(run.folder / EVENTS_FILE),
        }
    write_json(run.folder / SUMMARY_FILE, summary)
    return summary


def _speed(settings: MDSettings, steps_per_second: float) -> dict[str, float]:
    if settings.exact is not None:
        return {"proposals_per_hour": units.SECONDS_PER_HOUR * steps_per_second}
    return {"ns_per_day": ns_per_day(settings, steps_per_second)}


def _finish_replica(
    folder: Path, trajectory_format: str, title: str, sampler: ExactNVT | None
) -> dict[str, Any]:
    record = read_record(folder)
    trajectory, plot = folder / f"trajectory.{trajectory_format}", folder / PLOT_FILE
    plot_run(record, plot, title)
    if sampler is not None:
        # Averages over the trajectory are those of the ensemble.
        record = samples_of(record)
        summary = {
            **summarise_samples(record, sampler),
            "far_frames_file": far_frames_file(folder, sampler),
        }
    else:
        summary = summarise(record).to_dict()
    export_frames(record, trajectory)
    return {**summary, "trajectory": str(trajectory), "plot": str(plot)}


def _judged(
    outcome: Outcome, summary: dict[str, Any], settings: MDSettings, acceptance: float | None
) -> Outcome:
    """Do not call a run completed that stood still or had not the thermostat's temperature."""
    if outcome.verdict != "completed":
        return outcome
    if settings.metropolis and acceptance is not None and acceptance < _FEW_ACCEPTED:
        reason = (
            f"{acceptance:.1%} of the steps were accepted; the ensemble is right, but the molecule "
            f"hardly moves. Take fewer inner steps than --mts {settings.inner_steps}, or better "
            "cheap forces (--mts-forces network)"
        )
        return replace(outcome, verdict="hardly moved", reason=reason)
    if not summary["temperature_off"]:
        return outcome
    mean, wanted = summary["temperature_K"]["value"], settings.temperature_K
    cause = (
        "the forces heat the molecule faster than the thermostat cools it; use conservative forces "
        "or averaged orientations, a shorter time step, or more friction"
        if mean > wanted
        else "the molecule has not warmed up, or loses energy to its forces; run longer, or use a "
        "shorter time step or more friction"
    )
    reason = f"the mean temperature is {mean:.0f} K under a thermostat of {wanted:g} K: {cause}"
    return replace(outcome, verdict="wrong temperature", reason=reason)


def _pooled(parts: list[dict[str, Any]], description: Description) -> dict[str, Any]:
    """Means over the replicas, and the worst of their bonds."""

    def known(name: str) -> list[Any]:
        return [part[name] for part in parts if part[name] is not None]

    def mean(name: str) -> float | None:
        values = known(name)
        return float(np.mean(values)) if len(values) == len(parts) else None

    temperatures = [found["value"] for found in known("temperature_K")]
    temperature, off = None, False
    if len(temperatures) == len(parts):
        # Replicas are independent, so that their scatter is the error.
        error = float(np.std(temperatures, ddof=1) / np.sqrt(len(parts)))
        temperature = Mean(float(np.mean(temperatures)), error, True)
        off = misses_thermostat(
            temperature,
            description.settings,
            len(parts) * description.degrees_of_freedom,
            (1.0 - EQUILIBRATION) * parts[0]["time_ps"],
        )
    deviations = known("largest_bond_deviation_A")
    worst = parts[int(np.argmax(deviations))] if deviations else parts[0]
    return {
        "time_ps": parts[0]["time_ps"],
        "temperature_K": None if temperature is None else asdict(temperature),
        "temperature_off": off,
        "energy_drift_meV_per_atom_per_ps": mean("energy_drift_meV_per_atom_per_ps"),
        "energy_fluctuation_meV_per_atom": mean("energy_fluctuation_meV_per_atom"),
        "largest_bond_deviation_A": worst["largest_bond_deviation_A"],
        "bond": worst["bond"],
        "broken_at_ps": min(known("broken_at_ps"), default=None),
        "trajectory": _pattern(parts, "trajectory"),
        "plot": _pattern(parts, "plot"),
    }


def _pattern(parts: list[dict[str, Any]], name: str) -> str:
    first = Path(parts[0][name])
    return str(first.parent.with_name("replica-*") / first.name)
