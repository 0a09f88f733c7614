"""`mlmd bench`: the benchmarks of a source checkout."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from mlmd_calc.cli.endings import advise, raise_on_signal
from mlmd_calc.errors import ConfigError
from mlmd_calc.optional import require

app = typer.Typer(help="Measure speed; needs a source checkout.", no_args_is_help=True)

_FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@app.callback()
def bench() -> None:
    """Measure speed and overhead."""


def _passed_on(name: str) -> Callable[[Callable[[typer.Context], None]], Any]:
    """Make a command that leaves all options to its script."""
    return app.command(
        name,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )


@_passed_on("mdet")
def mdet_command(context: typer.Context) -> None:
    """Time and memory of an MD-ET force call as ratios to the literal form (--help for options)."""
    _run("bench_mdet.py", context.args)


@_passed_on("forces")
def forces_command(context: typer.Context) -> None:
    """Time of a force call and of a step, against the network as loaded (--help for options)."""
    _run("bench_forces.py", context.args)


@_passed_on("overhead")
def overhead_command(context: typer.Context) -> None:
    """Time per step that ASE, OpenMM and their bridges take (--help for options)."""
    require("openmm", extra="openmm", why="measure its overhead")
    _run("bench_overhead.py", context.args)


@_passed_on("table")
def table_command(context: typer.Context) -> None:
    """Time and memory of everything, over sizes and precisions, in one run (--help for options)."""
    _run("bench_table.py", context.args)


@_passed_on("jump")
def jump_command(context: typer.Context) -> None:
    """Speed and ensemble of a jump propagator against force-based steps (--help for options)."""
    _run("bench_jump.py", context.args)


@_passed_on("rollout")
def rollout_command(context: typer.Context) -> None:
    """Time and memory per frame of a long ATMOS roll-out (--help for options)."""
    _run("bench_rollout.py", context.args)


@_passed_on("sampling")
def sampling_command(context: typer.Context) -> None:
    """Cost of 10 ps of peptides by dynamics, ATMOS and relaxation (--help for options)."""
    require("openmm", extra="openmm", why="compare with its dynamics")
    _run("bench_sampling.py", context.args)


def _run(script: str, arguments: list[str]) -> None:
    for folder in (_FOLDER, Path.cwd() / "benchmarks"):
        if (folder / script).is_file():
            advise("nothing was kept; give the command again")
            with (
                raise_on_signal(),
                subprocess.Popen([sys.executable, str(folder / script), *arguments]) as process,
            ):
                try:
                    status = process.wait()
                finally:
                    process.terminate()
            raise typer.Exit(status)
    raise ConfigError(
        f"benchmarks/{script} is part of the source checkout and is not installed; run this "
        "command in a checkout"
    )
