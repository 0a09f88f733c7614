"""`mlmd run --exact`: options, and the target whose ensemble is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import typer

from mlmd_calc.cli.given import is_given
from mlmd_calc.data.reference import reference_calculator
from mlmd_calc.errors import ConfigError
from mlmd_calc.md.ase_engine import ASEEngine
from mlmd_calc.md.settings import Engine, Ensemble, ExactSettings

PROPOSALS: Final = 1000
"""Trajectories after the warm-up, where no number is given."""

_INTERVAL: Final = 1
_CHECKPOINT_INTERVAL: Final = 10
"""Steps between frames and checkpoints where none are given: steps are few and expensive."""


def check_exact_options(context: typer.Context) -> None:
    """Refuse options that make no sense with an exact ensemble, or without one.

    Raises
    ------
    ConfigError
        With the first of them.
    """
    given = context.params
    if given["exact"] is None:
        for name in ("proposals", "trajectory_steps", "warmup"):
            if given[name] is not None:
                raise ConfigError(
                    f"--{name.replace('_', '-')} is an option of exact ensembles; give --exact "
                    "with it"
                )
        return
    engine, ensemble = Engine(given["engine"]), Ensemble(given["ensemble"])
    wrong = {
        f"--engine {engine.value}": (
            engine is not Engine.ASE,
            "which runs with ASE; leave it out, or use ExactNVTIntegrator in a script of OpenMM",
        ),
        f"--propagator {given['propagator']}": (
            given["propagator"] is not None,
            "whose proposals are trajectories of --model; leave it out",
        ),
        f"--mts {given['mts']}": (
            given["mts"] != 1,
            "whose target corrects at the end of a trajectory, not in every step; leave it out",
        ),
        f"--ensemble {ensemble.value}": (
            ensemble is not Ensemble.LANGEVIN,
            "which is the canonical one; leave it out",
        ),
        f"--duration {given['duration']:g}": (
            is_given(context, "duration"),
            "in which no physical time passes; say how many trajectories with --proposals",
        ),
        "--format xtc": (
            given["trajectory_format"] == "xtc",
            "whose frames have no time, which XTC stores; use extxyz, traj or dcd",
        ),
    }
    for option, (refused, why) in wrong.items():
        if refused:
            raise ConfigError(f"{option} with --exact, {why}")


def exact_settings(
    target: str | None, trajectory_steps: int | None, warmup: int | None
) -> ExactSettings | None:
    """Fill in the defaults of options that were not given; None without a target.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """
    if target is None:
        return None
    values = {"trajectory_steps": trajectory_steps, "warmup": warmup}
    return ExactSettings(target, **{k: v for k, v in values.items() if v is not None})


def intervals(context: typer.Context) -> tuple[int, int]:
    """Return the steps between frames and between checkpoints, as given or usual.

    Frames inside jumps are recorded of every jump.
    """
    usual = {"interval": _INTERVAL, "checkpoint_interval": _CHECKPOINT_INTERVAL}
    exact = context.params["exact"] is not None
    frames, checkpoints = (
        value if exact and not is_given(context, name) else int(context.params[name])
        for name, value in usual.items()
    )
    if (context.params["frames_per_jump"] or 1) > 1 and not is_given(context, "interval"):
        frames = 1
    return frames, checkpoints


def exact_engine(settings: ExactSettings, info: Mapping[str, Any]) -> ASEEngine:
    """Engine with the target of a run.

    Raises
    ------
    ConfigError
        If there is no such target.
    InputError
        If it does not know the multiplicity.
    MissingDependencyError
        If its package is not installed.
    """
    target = reference_calculator(settings.target, info["charge"], info["multiplicity"])
    return ASEEngine(target=target)
