"""One `mlmd run`: what was asked for, how it is driven, and what it leaves behind."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import ase
import numpy as np
from ase.optimize import BFGS
from rich.console import Console

from mlmd_calc import units
from mlmd_calc.calculator import MDETCalculator
from mlmd_calc.cli.endings import stop_on_signal
from mlmd_calc.cli.exact import PROPOSALS, exact_engine
from mlmd_calc.cli.inner_forces import fit_inner_forces
from mlmd_calc.cli.jumps import choose_propagator
from mlmd_calc.errors import ConfigError, ModelFileError, PredictionError
from mlmd_calc.geometry.bonds import find_bonds
from mlmd_calc.io.files import read_json, write_json
from mlmd_calc.io.progress import progress_bar
from mlmd_calc.md import Engine, MDSettings, Outcome, Run
from mlmd_calc.md.ase_engine import ASE, ASEEngine
from mlmd_calc.md.engine import RunEngine
from mlmd_calc.md.export import check_format
from mlmd_calc.md.record import Description
from mlmd_calc.md.run import JOB_FILE
from mlmd_calc.md.start import refuse_run
from mlmd_calc.optional import require
from mlmd_calc.options import check_types
from mlmd_calc.propagation import Propagator, state_from_ase
from mlmd_calc.wording import counted

_RELAXED_FORCE: Final = 0.02
"""eV/Å; a start structure this close to its minimum is relaxed."""
_MOST_STEPS: Final = 2.0**53
"""Larger whole numbers are not exact in double precision."""

_RELAXATION_STEPS: Final = 300


@dataclass(frozen=True)
class Job:
    """What `mlmd run` was asked to do, as far as the simulation itself does not store it.

    Attributes
    ----------
    molecule
        What the user called the molecule.
    calculator
        Options of the calculator with all defaults filled in, and the checksum of the model.
    trajectory_format
        Suffix of the trajectory.
    steps
        Length of the run.
    pdb
        The molecule as PDB records, for propagators that are made for one molecule.
    beyond_training
        Whether the molecule may be unlike those the propagator was trained on.
    """

    molecule: str
    calculator: dict[str, Any]
    trajectory_format: str
    steps: int
    pdb: str = ""
    beyond_training: bool = False

    def write(self, folder: Path) -> None:
        """Write the job into the folder of its run, replacing an older one."""
        write_json(folder / JOB_FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Job:
        """Read the job from the folder of a run.

        Raises
        ------
        ConfigError
            If there is none.
        ModelFileError
            If it is damaged.
        """
        path = folder / JOB_FILE
        try:
            job = cls(**read_json(path))
            check_types(job)
        except FileNotFoundError as error:
            raise ConfigError(
                f"{folder} holds no run to continue ({JOB_FILE} is missing, which mlmd run writes "
                "before the first step); give the --out of the run, or start one without --restart"
            ) from error
        except (TypeError, ConfigError) as error:
            raise ModelFileError(f"{path} is damaged: {error}") from error
        check_format(job.trajectory_format)
        return job

    def make_calculator(self) -> MDETCalculator:
        """Build the calculator of the run again.

        Raises
        ------
        ModelFileError
            If the model has changed since.
        """
        options = dict(self.calculator)
        checksum = options.pop("sha256", None)
        try:
            calculator = MDETCalculator(**options)
        except TypeError as error:
            raise ModelFileError(
                f"{JOB_FILE} is damaged: its calculator cannot be made ({error})"
            ) from error
        calculator.potential.model.check_unchanged(
            checksum, "the run was started with", "start a new run"
        )
        return calculator


def steps_of(duration_ps: float, settings: MDSettings, proposals: int | None = None) -> int:
    """Count the steps of a run.

    Parameters
    ----------
    duration_ps
        What the steps cover.
    settings
        Settings of the run.
    proposals
        Trajectories after the warm-up of an exact ensemble, which has no duration. None: the usual
        number.

    Raises
    ------
    ConfigError
        If the duration is less than a step, or there are no proposals.
    """
    if settings.exact is not None:
        if proposals is not None and proposals < 1:
            raise ConfigError(f"--proposals {proposals}; there must be at least 1")
        return settings.exact.warmup + (PROPOSALS if proposals is None else proposals)
    steps = duration_ps * units.FS_PER_PS / settings.step_fs
    if not steps >= 1:
        raise ConfigError(
            f"a duration of {duration_ps:g} ps is shorter than one step of "
            f"{settings.step_fs:g} fs; give a longer one"
        )
    if steps > _MOST_STEPS:
        raise ConfigError(
            f"a duration of {duration_ps:g} ps has no end: more than {_MOST_STEPS:g} steps of "
            f"{settings.step_fs:g} fs cannot be counted; give fewer ps"
        )
    # The duration is covered; 125 steps of 8 fs are one ps whatever the last digit says.
    return math.ceil(steps - 1e-6)


def run_engine(engine: Engine, **options: str | None) -> RunEngine:
    """Engine of a run, with those options of OpenMM that are given.

    Raises
    ------
    ConfigError
        If options are given to another engine.
    MissingDependencyError
        If the engine is not installed.
    """
    given = [name for name, value in options.items() if value is not None]
    if engine is Engine.OPENMM:
        require("openmm", extra="openmm", why="run with engine 'openmm'")
        from openmm_bridge.engine import OpenMMEngine

        return OpenMMEngine(**options)
    if given:
        raise ConfigError(f"--{given[0]} is an option of OpenMM; give --engine openmm with it")
    return ASE


def begin(
    atoms: ase.Atoms,
    folder: Path,
    settings: MDSettings,
    job: Job,
    console: Console,
    *,
    engine: RunEngine,
    propagator: Propagator | None,
    relaxed: bool | None,
    keep_velocities: bool,
) -> Run:
    """Relax the start structure, fit what has to be fitted, and begin the run.

    Parameters
    ----------
    atoms
        The molecule with its calculator.
    folder
        Folder of the run.
    settings, job
        What is wanted.
    console
        Where to say what is done.
    engine, propagator
        As for :meth:`mlmd_calc.md.Run.start`.
    relaxed, keep_velocities
        See :func:`relax_start`.

    Raises
    ------
    ConfigError, InputError, PredictionError
        As :func:`relax_start`, :func:`fit_inner_forces` and :meth:`mlmd_calc.md.Run.start`.
    """
    refuse_run(folder)
    console.print(f"{atoms.get_chemical_formula()}: {atoms.calc.state_of(atoms)}", highlight=False)
    if propagator is not None:
        # A molecule that it cannot move need not be relaxed first.
        propagator.check(state_from_ase(atoms))
    relax_start(atoms, relaxed, keep_velocities, console)
    fitted = fit_inner_forces(atoms, settings, console)
    return Run.start(
        atoms,
        folder,
        settings,
        engine=engine if fitted is None else ASEEngine(fitted),
        propagator=propagator,
        keep_velocities=keep_velocities,
        job=asdict(job),
        trajectory=job.trajectory_format,
    )


def resume(
    folder: Path, duration_ps: float | None, proposals: int | None = None
) -> tuple[Run, Job]:
    """Continue the run in a folder.

    Parameters
    ----------
    folder
        Folder of the run.
    duration_ps
        New length of the run; None keeps the old one.
    proposals
        The same of a run that samples an exact ensemble.

    Raises
    ------
    ConfigError
        If there is no run, the new length is of another kind of run, or shorter than what is done.
    ModelFileError
        If the files of the run are damaged or its model has changed.
    """
    job = Job.read(folder)
    description = Description.read(folder)
    jumps, exact = description.settings.jumps, description.settings.exact
    if (duration_ps if exact is not None else proposals) is not None:
        raise ConfigError(
            "--duration of a run in which no physical time passes; give --proposals"
            if exact is not None
            else "--proposals is the length of runs with --exact; give --duration"
        )
    steps = job.steps
    if duration_ps is not None or proposals is not None:
        steps = steps_of(duration_ps or 0.0, description.settings, proposals)
    calculator = job.make_calculator()
    propagator = None
    if jumps is not None:
        propagator = choose_propagator(jumps.propagator).make(
            calculator.potential,
            description.settings.timestep_fs,
            job.calculator["device"],
            job.pdb,
            job.beyond_training,
        )
    engine = run_engine(description.engine)
    if exact is not None:
        engine = exact_engine(exact, description.info)
    run = Run.resume(
        *(folder, calculator),
        engine=engine,
        propagator=propagator,
        trajectory=job.trajectory_format,
    )
    if steps != job.steps:
        if steps < run.step:
            run.close()
            asked = (
                f"--duration {duration_ps:g} ps"
                if proposals is None
                else f"--proposals {proposals} with the warm-up"
            )
            done = counted(run.step, "step")
            if proposals is None:
                done += f" ({run.step * description.settings.step_fs / units.FS_PER_PS:g} ps)"
            raise ConfigError(
                f"{asked} is {counted(steps, 'step')}, but the run has done {done} already; give a "
                "longer one"
            )
        job = replace(job, steps=steps)
        job.write(folder)
    return run, job


def relax_start(
    atoms: ase.Atoms, wanted: bool | None, keep_velocities: bool, console: Console
) -> None:
    """Relax the start structure if that is wanted, or possible and not refused; say what was done.

    Raises
    ------
    ConfigError
        If it is wanted but makes no sense.
    PredictionError
        If a bond breaks on the way.
    """
    potential = atoms.calc.potential
    obstacle = None
    if not potential.conservative:
        obstacle = "direct forces are not the slope of an energy, so there is no minimum"
    if keep_velocities:
        obstacle = "the velocities belong to the structure as it is"
    if wanted and obstacle:
        raise ConfigError(f"--relax is not possible: {obstacle}; use --no-relax")
    if obstacle and wanted is None:
        console.print(f"The start structure is taken as it is: {obstacle}.")
    elif wanted is not False:
        with console.status("relaxing the start structure"):
            note = relax(atoms)
        console.print(note)


def relax(atoms: ase.Atoms) -> str:
    """Move atoms to the nearest minimum of a conservative calculator; return how that went.

    Raises
    ------
    PredictionError
        If a bond breaks on the way.
    """
    before = find_bonds(atoms)
    optimiser: Any = BFGS(atoms, logfile=None)
    converged = optimiser.run(fmax=_RELAXED_FORCE, steps=_RELAXATION_STEPS)
    changes = np.abs(before.deviations(atoms.positions))
    if len(before) and changes.max() > MDSettings().bond_limit:
        worst = int(changes.argmax())
        raise PredictionError(
            f"relaxation changed bond {before.label(worst, atoms.numbers)} by "
            f"{changes[worst]:.2f} Å; the model does not know this molecule. Use another model, or "
            "--no-relax"
        )
    force = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
    steps = f"{counted(optimiser.nsteps, 'step')}, largest force {force:.3f} eV/Å"
    return f"Relaxed in {steps}." if converged else f"Relaxation not converged after {steps}."


def drive(run: Run, last_step: int, console: Console) -> tuple[Outcome, float, int]:
    """Continue a run under a progress bar until it ends or the user stops it.

    Returns
    -------
    outcome, steps_per_second, signal
        How it ended, its speed, and the signal that stopped it, or 0.
    """
    first, begin = run.step, time.perf_counter()

    def steps_per_second() -> float:
        return (run.step - first) / (time.perf_counter() - begin)

    with progress_bar(console, bar_width=12) as progress, stop_on_signal() as should_stop:
        bar = progress.add_task("starting", total=last_step, completed=first)

        def on_frame(running: Run) -> None:
            text = _progress_text(running, steps_per_second())
            progress.update(bar, completed=running.step, description=text)

        outcome = run.run(last_step, on_frame=on_frame, should_stop=should_stop)
    return outcome, steps_per_second(), should_stop.number


def ns_per_day(settings: MDSettings, steps_per_second: float) -> float:
    """Return the speed of a run in simulated time, of all replicas together."""
    per_second = steps_per_second * settings.replicas * settings.step_fs / units.FS_PER_NS
    return per_second * units.SECONDS_PER_DAY


def _progress_text(run: Run, steps_per_second: float) -> str:
    """Say how far a run is, and how fast."""
    sampler, settings = run.sampler, run.settings
    if sampler is not None:
        state = (
            f"{counted(len(sampler.samples), 'sample')}  {sampler.acceptance:.0%} accepted"
            if len(sampler.samples)
            else f"warm-up, time step {sampler.dt / units.FS:.2f} fs"
        )
        return f"{state}  {units.SECONDS_PER_HOUR * steps_per_second:.3g} per hour"
    step_ps = settings.step_fs / units.FS_PER_PS
    speed = f"{steps_per_second * settings.replicas * step_ps:.3g} ps/s"
    per_day = f"{ns_per_day(settings, steps_per_second):.3g} ns/day"
    text = f"{run.step * step_ps:.2f} ps  {run.temperature:.0f} K  {speed}  {per_day}"
    found = {} if run.counts is None else asdict(run.counts)
    counts = "  ".join(f"{name} {count}" for name, count in found.items())
    return f"{text}\n{counts}" if counts else text
