"""`mlmd demo`: forces, jumps, OpenMM and a peptide in one picture, each with a verdict."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console

from mlmd_calc.cli.demo_results import LABELS, evaluate, print_summary
from mlmd_calc.cli.endings import advise, raise_on_signal
from mlmd_calc.cli.report import Json
from mlmd_calc.errors import ConfigError, MissingDependencyError
from mlmd_calc.io.files import json_text
from mlmd_calc.md.settings import Engine, Ensemble, JumpSettings, MDSettings
from mlmd_calc.optional import require

if TYPE_CHECKING:
    from mlmd_calc.cli.demo_runs import EthanolRun, PeptideFrames

_PROPAGATOR: Final = "atom-small-organics"
_JUMP_FS: Final = 8.0
_FRICTION: Final = 10.0
"""1/ps; what the propagator is good for. Averages of short runs need as much."""
_INTERVAL, _JUMP_INTERVAL = 10, 5
"""Steps and jumps between frames."""
_SEED: Final = 1

_PEPTIDE: Final = "alanine-dipeptide"


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for runs, picture, trajectories, summary.")
    ] = (Path("mlmd-demo")),
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Another force model than the default one.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few steps only, to see that everything works.")
    ] = False,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes, one run each. Default: one for each core.")
    ] = min(len(LABELS) + 1, os.cpu_count() or 1),
    as_json: Json = False,
) -> None:
    """Show force-based steps, jumps, OpenMM and frames of a peptide in one picture.

    Takes one to two minutes on two cores. A run that fails is part of the picture.
    """
    from mlmd_calc.data.pool import PoolTask, run_tasks

    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty; choose another folder with --out, or remove it")
    notes: list[str] = []
    runs = _plan_runs(out, model, quick, notes)
    peptide = _plan_peptide(out, quick, notes)
    (out / "runs").mkdir(parents=True)
    console = Console(stderr=True)
    for note in notes:
        console.print(note, markup=False, highlight=False)
    advise(f"what was done is in {out}; remove it, or choose another --out, and begin again")
    tasks: list[PoolTask] = [*runs.values(), *([] if peptide is None else [peptide])]
    # The longest first, so that no core waits for another at the end.
    tasks.sort(key=lambda task: -task.cost * task.steps)
    with raise_on_signal():
        run_tasks(tasks, kind="runs", workers=workers, console=console)
    summary = evaluate(out, runs, peptide, notes)
    if as_json:
        typer.echo(json_text(summary))
    else:
        print_summary(summary)


def _plan_runs(
    out: Path, model: str | None, quick: bool, notes: list[str]
) -> dict[str, EthanolRun]:
    """Return the runs of ethanol by name; note what is left out and why."""
    from mlmd_calc.cli.demo_runs import EthanolRun
    from mlmd_calc.cli.jumps import choose_propagator

    recommended, direct = _options(model), _options(model, "paper")
    of_jumps = _options(choose_propagator(_PROPAGATOR).recommended["potential"])
    if of_jumps["model"] != recommended["model"]:
        notes.append(
            f"Jumps of {_PROPAGATOR} follow {Path(of_jumps['model']).name}, whatever --model says."
        )
    common: dict[str, Any] = {"seed": _SEED, "interval": _INTERVAL}
    nvt = MDSettings(friction_per_ps=_FRICTION, **common)
    nve = MDSettings(Ensemble.NVE, **common)
    jumps = replace(nvt, interval=_JUMP_INTERVAL, jumps=JumpSettings(_PROPAGATOR, _JUMP_FS))
    kinds = {
        # Calculator, settings, engine, length, length with --quick, cost of a frame
        "steps": (recommended, nvt, Engine.ASE, 6000, 40, 60.0),
        "openmm": (recommended, nvt, Engine.OPENMM, 6000, 40, 60.0),
        "jumps": (of_jumps, jumps, Engine.ASE, 3000, 20, 85.0),
        "energy": (recommended, nve, Engine.ASE, 4000, 40, 60.0),
        "energy-direct": (direct, nve, Engine.ASE, 4000, 40, 35.0),
    }
    if direct == recommended:
        del kinds["energy-direct"]
    try:
        _require_openmm()
    except MissingDependencyError as error:
        del kinds["openmm"]
        notes.append(f"The run in OpenMM is left out: {error}")
    return {
        name: EthanolRun(
            path=out / "runs" / f"{name}.json",
            trajectory=out / f"{name}.extxyz",
            calculator=calculator,
            settings=settings,
            engine=engine,
            length=shortest if quick else length,
            cost=cost,
        )
        for name, (calculator, settings, engine, length, shortest, cost) in kinds.items()
    }


def _options(model: str | None, setting: str | None = None) -> dict[str, Any]:
    """Options of a calculator with all defaults filled in."""
    from mlmd_calc.calculator import MDETCalculator

    options = MDETCalculator(model, setting=setting).todict()
    del options["sha256"]
    return options


def _plan_peptide(out: Path, quick: bool, notes: list[str]) -> PeptideFrames | None:
    """Return the frames of the peptide to draw, or None and a note if it cannot be built."""
    from mlmd_calc.cli.demo_runs import PeptideFrames

    try:
        require("rdkit.Chem", extra="data", why="build the peptide")
    except MissingDependencyError as error:
        notes.append(f"The peptide is left out: {error}")
        return None
    return PeptideFrames(
        path=out / "runs" / f"{_PEPTIDE}.json",
        trajectory=out / f"{_PEPTIDE}.pdb",
        model="atmos-peptides",
        length=2 if quick else 200,
        seed=_SEED,
        cost=100.0,
    )


def _require_openmm() -> None:
    """Raise MissingDependencyError where no model can be put into OpenMM."""
    require("openmm", extra="openmm", why="run in OpenMM")
    from openmm_bridge.backends import choose_backend

    choose_backend("auto")
