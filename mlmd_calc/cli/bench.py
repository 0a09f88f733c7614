"""`mlmd bench`: the benchmarks of a source checkout."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import typer

from mlmd_calc.cli.endings import advise, raise_on_signal
from mlmd_calc.errors import ConfigError
from mlmd_calc.optional import require

app = typer.Typer(help="Measure speed; needs a source checkout.", no_args_is_help=True)

_FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"

_BENCHMARKS: Final = {
    "mdet": (False, "Time and memory of an MD-ET force call as ratios to the literal form"),
    "forces": (False, "Time of a force call and of a step, against the network as loaded"),
    "overhead": (True, "Time per step that ASE, OpenMM and their bridges take"),
    "table": (False, "Time and memory of everything, over sizes and precisions, in one run"),
    "jump": (False, "Speed and ensemble of a jump propagator against force-based steps"),
    "rollout": (False, "Time and memory per frame of a long ATMOS roll-out"),
    "sampling": (True, "Cost of 10 ps of peptides by dynamics, ATMOS and relaxation"),
}
"""By name, that of its script after "bench_": whether it needs OpenMM, and what it measures."""


@app.callback()
def bench() -> None:
    """Measure speed and overhead."""


def _passed_on(script: str, needs_openmm: bool) -> Callable[[typer.Context], None]:
    """Make a command that leaves all options to its script."""

    def command(context: typer.Context) -> None:
        if needs_openmm:
            require("openmm", extra="openmm", why="compare with it")
        _run(script, context.args)

    return command


for _name, (_needs_openmm, _help) in _BENCHMARKS.items():
    app.command(
        _name,
        help=f"{_help} (--help for options).",
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(_passed_on(f"bench_{_name}.py", _needs_openmm))


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
