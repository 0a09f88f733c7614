"""What a finished `mlmd run` leaves behind: trajectories, pictures and a summary."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.table import Table

import mlmd_calc
from mlmd_calc import units
from mlmd_calc.analysis import summarise
from mlmd_calc.analysis.plots import plot_run
from mlmd_calc.analysis.statistics import Mean
from mlmd_calc.analysis.trajectory import EQUILIBRATION, misses_thermostat
from mlmd_calc.cli.exact_results import (
    exact_table,
    far_frames_file,
    samples_of,
    summarise_samples,
)
from mlmd_calc.cli.job import Job, ns_per_day
from mlmd_calc.cli.report import SUMMARY_FILE
from mlmd_calc.cli.tables import describe_temperature, details
from mlmd_calc.io.files import write_json
from mlmd_calc.md import ExactNVT, Outcome, Run, read_record
from mlmd_calc.md.jump_engine import EVENTS_FILE
from mlmd_calc.md.record import Description, replica_folders
from mlmd_calc.md.settings import Ensemble, InnerForces, MDSettings
from mlmd_calc.wording import counted

PLOT_FILE: Final = "run.png"
_FEW_ACCEPTED: Final = 0.2
"""Share of accepted long steps below which short ones go farther in the same time."""
_RELAXATIONS: Final = 5
"""Relaxation times of a thermostat after which a start at rest or in a minimum is forgotten: the
mean over the rest of the run, as averages are taken, is then within 5 % of the thermostat's."""


def finish(run: Run, job: Job, outcome: Outcome, steps_per_second: float) -> dict[str, Any]:
    """Draw what a run has recorded, and summarise it.

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
    # An exact ensemble has none before the end of its warm-up.
    written = str(trajectory) if trajectory.exists() else ""
    return {**summary, "trajectory": written, "plot": str(plot)}


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


def summary_table(summary: dict[str, Any]) -> Table:
    """Lay out the summary of a run."""
    if "exact" in summary:
        return exact_table(summary)
    settings = summary["settings"]
    rows = {
        "verdict": summary["verdict"],
        "charge, multiplicity": f"{summary['charge']}, {summary['multiplicity']}",
        "reason": summary["reason"],
        "simulated": f"{summary['time_ps']:.3f} ps, {counted(summary['step'], 'step')}",
        "temperature, K": describe_temperature(summary["temperature_K"]) + _thermostat(settings),
        "warming up": _warming_up(summary),
        "energy drift": _number(summary["energy_drift_meV_per_atom_per_ps"], "meV/atom/ps"),
        "about the drift": _number(summary["energy_fluctuation_meV_per_atom"], "meV/atom RMS"),
        "largest bond deviation": _bond(summary),
        "jumps": _jumps(summary),
        "multiple time steps": _inner_steps(settings),
        "steps accepted": _acceptance(summary),
        "interventions": _interventions(summary),
        "engine": ", ".join(summary["engine"].values()),
        "speed": f"{summary['ns_per_day']:.3g} ns/day" if summary["ns_per_day"] else "",
        "seed": str(settings["seed"]),
        "trajectory": summary["trajectory"],
        "picture": summary["plot"],
    }
    return details(f"{summary['molecule']}, {settings['ensemble']}", rows)


def _number(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.3g} {unit}"


def _thermostat(settings: dict[str, Any]) -> str:
    if settings["ensemble"] == Ensemble.NVE.value:
        return ""
    return f" (thermostat {settings['temperature_K']:g})"


def _warming_up(summary: dict[str, Any]) -> str:
    """Say so if the run is too short for its mean temperature to tell anything."""
    settings = summary["settings"]
    if settings["ensemble"] == Ensemble.NVE.value:
        return ""
    relaxation_ps = 1.0 / settings["friction_per_ps"]
    needed_ps = _RELAXATIONS * relaxation_ps
    if summary["time_ps"] >= needed_ps:
        return ""
    return f"the thermostat acts within {relaxation_ps:.3g} ps; run {needed_ps:.3g} ps or more"


def _bond(summary: dict[str, Any]) -> str:
    if summary["largest_bond_deviation_A"] is None:
        return ""
    text = f"{summary['largest_bond_deviation_A']:.3f} Å ({summary['bond']})"
    broken = summary["broken_at_ps"]
    limit = summary["settings"]["bond_limit"]
    return text if broken is None else f"{text}, first beyond {limit:g} Å at {broken:.3f} ps"


def _inner_steps(settings: dict[str, Any]) -> str:
    count = settings.get("inner_steps", 1)
    if count == 1:
        return ""
    forces = settings.get("inner_forces", InnerForces.DIRECT.value)
    return f"{count} of {settings['timestep_fs']:g} fs in a step, by {forces} forces"


def _acceptance(summary: dict[str, Any]) -> str:
    accepted = summary["acceptance"]
    return "" if accepted is None else f"{accepted:.1%}"


def _jumps(summary: dict[str, Any]) -> str:
    jumps = summary["settings"]["jumps"]
    if jumps is None:
        return ""
    steps = (
        f", {counted(jumps['md_steps_per_jump'], 'step')} after each"
        if jumps["md_steps_per_jump"]
        else ""
    )
    frames = f", {jumps['frames_per_jump']} frames of each" if "frames_per_jump" in jumps else ""
    copies = f", {jumps['replicas']} replicas" if jumps["replicas"] > 1 else ""
    return f"{jumps['stride_fs']:g} fs by {jumps['propagator']}{steps}{frames}{copies}"


def _interventions(summary: dict[str, Any]) -> str:
    if "jumps" not in summary:
        return ""
    counts = [
        f"{name} {count}" for name, count in summary["jumps"].items() if isinstance(count, int)
    ]
    checks = [f"{name} {count}" for name, count in summary["jumps"]["tripped"].items()]
    rejected = (
        f"; rejected by: {', '.join(checks)}, see {summary['jumps']['events']}" if checks else ""
    )
    return ", ".join(counts) + rejected
