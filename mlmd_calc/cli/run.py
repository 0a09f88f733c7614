"""`mlmd run`: molecular dynamics of one molecule."""

from __future__ import annotations

import secrets
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer
from rich.console import Console

from mlmd_calc.cli import shared_options as shared
from mlmd_calc.cli.endings import advise, end_of
from mlmd_calc.cli.given import is_given, refuse_with_restart
from mlmd_calc.cli.report import Html, Json, Report
from mlmd_calc.errors import ConfigError
from mlmd_calc.md.settings import Engine, Ensemble, InnerForces, MDSettings

if TYPE_CHECKING:
    import ase

    from mlmd_calc.cli.jumps import PropagatorChoice

_WITH_RESTART: Final = ("out", "duration", "proposals", "restart", "as_json", "html")
"""Options that make sense when a run is continued."""

_OF_CALCULATOR: Final = (
    *("model", "setting", "forces", "rotation", "n_rotations"),
    *("dtype", "max_spread", "on_spread"),
)
"""Options that the calculator takes as they are."""

_OF_STRUCTURE: Final = ("smiles", "charge", "multiplicity", "vacuum")
"""Options that the reader of structures takes as they are."""

_Molecule: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        metavar="MOLECULE",
        help="A structure file, a name of ASE's g2 collection (CH3CH2OH, trans-butane) or of the "
        "built-in table (ethanol, aspirin), or a SMILES: the first of these that fits. smiles:CO "
        "is a SMILES in any case, sequence:AAG a peptide.",
    ),
]
_Relax: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--relax/--no-relax",
        help="Start from the nearest minimum. Default: yes with conservative forces; direct forces "
        "have no minimum.",
    ),
]
_KeepVelocities: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--keep-velocities", help="Start with the velocities in the file instead of drawing them."
    ),
]
_Setting: TypeAlias = Annotated[
    str | None,
    typer.Option(help="recommended, or paper: as the paper of MD-ET has it, with direct forces."),
]
_MaxSpread: TypeAlias = Annotated[
    float | None,
    typer.Option(help="Largest spread of the forces in eV/Å. Default: as recommended."),
]
_OnSpread: TypeAlias = Annotated[
    str | None,
    typer.Option(help="What to do where it is larger: warn, raise or average. Default: nothing."),
]
_Engine: TypeAlias = Annotated[Engine, typer.Option(help="What moves the atoms.")]
_Platform: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="OpenMM's platform: Reference, CPU, or what else `mlmd doctor` lists. Default: "
        "Reference, which is the fastest for one molecule."
    ),
]
_Backend: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="How the model gets into OpenMM: auto, python, pytorch or torchscript. Default: auto."
    ),
]
_Propagator: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--propagator",
        help="Jump instead of taking time steps: atom-small-organics, a file, or verlet, the "
        "reference made of force-based steps. The force model then serves energies, rejected "
        "jumps and steps in between.",
    ),
]
_Jump: TypeAlias = Annotated[
    float | None,
    typer.Option("--jump", help="Length of a jump in fs. Default: as recommended."),
]
_StepsPerJump: TypeAlias = Annotated[
    int | None,
    typer.Option("--steps-per-jump", help="Force-based steps after each jump. Default: none."),
]
_FramesPerJump: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--frames-per-jump",
        help="Frames recorded of each jump, at equal spacing: its end and those inside it, which "
        "the same call predicts. --interval is then 1. Default: the end.",
    ),
]
_Replicas: TypeAlias = Annotated[
    int | None,
    typer.Option("--replicas", help="Copies that jump together, each with its own trajectory."),
]
_InnerSteps: TypeAlias = Annotated[
    int,
    typer.Option(
        "--mts",
        help="Multiple time stepping: this many time steps by cheap forces in each step, which the "
        "model's conservative forces correct.",
    ),
]
_InnerForces: TypeAlias = Annotated[
    InnerForces | None,
    typer.Option(
        "--mts-forces",
        help="Cheap forces of --mts: direct, the force head of the model, or fitted to the "
        "molecule at the start: bonded, a force field, or network, a better one that takes ten "
        "times as long to fit. Default: direct.",
    ),
]
_Metropolis: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--metropolis",
        help="Accept or reject every step of --mts, so that the ensemble is exact however long "
        "steps are.",
    ),
]
_Exact: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--exact",
        metavar="TARGET",
        help="Sample the exact canonical ensemble of TARGET with trajectories of --model as "
        "proposals: gfn2, so3lr, or package.module:name of what returns an ASE calculator.",
    ),
]
_Proposals: TypeAlias = Annotated[
    int | None,
    typer.Option(
        help="Trajectories to propose with --exact after the warm-up, counted from the start of "
        "the run. Default: 1000; with --restart that of the run."
    ),
]
_TrajectorySteps: TypeAlias = Annotated[
    int | None, typer.Option(help="Time steps of a trajectory of --exact. Default: 80.")
]
_Warmup: TypeAlias = Annotated[
    int | None,
    typer.Option(
        help="Trajectories before --proposals in which the time step is adapted such that four of "
        "five are accepted; 0 keeps --timestep. Default: 200."
    ),
]
_Ensemble: TypeAlias = Annotated[
    Ensemble,
    typer.Option(
        "--ensemble", "-e", help="Equations of motion. OpenMM has no bussi, jumps no nose-hoover."
    ),
]
_Temperature: TypeAlias = Annotated[
    float,
    typer.Option(
        "--temperature",
        "-T",
        help="K; of the thermostat and of the initial velocities. Without a "
        "thermostat half of it becomes potential energy when the start is a minimum.",
    ),
]
_Timestep: TypeAlias = Annotated[
    float, typer.Option("--timestep", help="Length of a force-based step in fs.")
]
_Duration: TypeAlias = Annotated[
    float,
    typer.Option(
        "--duration",
        "-d",
        help="ps, counted from the start of the run; with --restart the default "
        "is that of the run.",
    ),
]
_Friction: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--friction",
        help="1/ps; Langevin friction, or one over the relaxation time of the other thermostats; "
        "with --exact how fast velocities are forgotten between trajectories. Default: as "
        "recommended for the propagator, 20 with --exact, else 1.",
    ),
]
_Format: TypeAlias = Annotated[
    str, typer.Option("--format", "-f", help="Trajectory file: extxyz, traj, dcd or xtc.")
]
_Interval: TypeAlias = Annotated[
    int,
    typer.Option(
        help="Steps or jumps between recorded frames. With --exact all are, unless it is given."
    ),
]
_CheckpointInterval: TypeAlias = Annotated[
    int,
    typer.Option(
        help="Steps or jumps between checkpoints, from which --restart goes on. With --exact every "
        "tenth has one, unless it is given."
    ),
]
_Restart: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--restart",
        help="Continue the run in --out bit for bit; only --duration or --proposals may change.",
    ),
]


def run(
    context: typer.Context,
    molecule: _Molecule = None,
    smiles: shared.Smiles = False,
    charge: shared.Charge = None,
    multiplicity: shared.Multiplicity = None,
    vacuum: shared.Vacuum = False,
    relax: _Relax = None,
    keep_velocities: _KeepVelocities = False,
    model: shared.Model = None,
    setting: _Setting = None,
    forces: shared.Forces = None,
    rotation: shared.Rotation = None,
    n_rotations: shared.NRotations = None,
    dtype: shared.Dtype = None,
    max_spread: _MaxSpread = None,
    on_spread: _OnSpread = None,
    device: shared.Device = "auto",
    engine: _Engine = Engine.ASE,
    platform: _Platform = None,
    backend: _Backend = None,
    propagator: _Propagator = None,
    jump: _Jump = None,
    steps_per_jump: _StepsPerJump = None,
    frames_per_jump: _FramesPerJump = None,
    replicas: _Replicas = None,
    mts: _InnerSteps = 1,
    mts_forces: _InnerForces = None,
    metropolis: _Metropolis = False,
    exact: _Exact = None,
    proposals: _Proposals = None,
    trajectory_steps: _TrajectorySteps = None,
    warmup: _Warmup = None,
    beyond_training: shared.Beyond = False,
    ensemble: _Ensemble = Ensemble.LANGEVIN,
    temperature: _Temperature = 300.0,
    timestep: _Timestep = 0.5,
    duration: _Duration = 10.0,
    friction: _Friction = None,
    seed: shared.DrawnSeed = None,
    out: shared.Out = Path("mlmd-run"),
    trajectory_format: _Format = "extxyz",
    interval: _Interval = 10,
    checkpoint_interval: _CheckpointInterval = MDSettings.checkpoint_interval,
    restart: _Restart = False,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Run molecular dynamics of one molecule: trajectory, picture and summary in one folder.

    The trajectory grows with the run and can be looked at any time.
    """
    from mlmd_calc.biomolecules.pdb import format_structure
    from mlmd_calc.cli.exact import check_exact_options, exact_engine, exact_settings, intervals
    from mlmd_calc.cli.inner_forces import check_inner_options
    from mlmd_calc.cli.job import Job, begin, drive, resume, run_engine, steps_of
    from mlmd_calc.cli.jumps import check_jump_options, choose_propagator, jump_settings
    from mlmd_calc.cli.run_results import finish
    from mlmd_calc.cli.structure_input import bonded_structure_of
    from mlmd_calc.md.export import check_format

    console = Console(stderr=True)
    if restart:
        refuse_with_restart(context, _WITH_RESTART, "--duration, or --proposals with --exact,")
        wanted = duration if is_given(context, "duration") else None
        simulation, job = resume(out, wanted, proposals)
    else:
        if molecule is None:
            raise ConfigError("no molecule given; name one, or continue a run with --restart")
        check_format(trajectory_format)
        _check_friction(ensemble, friction)
        check_jump_options(context)
        check_inner_options(context)
        check_exact_options(context)
        chosen = run_engine(engine, platform=platform, backend=backend)
        seed = secrets.randbelow(2**31) if seed is None else seed
        choice = None if propagator is None else choose_propagator(propagator)
        atoms = _load_atoms(context, molecule, seed, choice, console)
        calculator = atoms.calc
        jumps, made, pdb = None, None, ""
        if choice is not None:
            if choice.of_one_molecule:
                # The file that --restart reads, so that both make the same propagator.
                pdb = format_structure(bonded_structure_of(molecule, atoms, seed))
            made = choice.make(calculator.potential, timestep, device, pdb, beyond_training)
            jumps = jump_settings(context, choice, made)
        settings = MDSettings(
            *(ensemble, temperature, timestep, friction, seed, *intervals(context)),
            jumps=jumps,
            inner_steps=mts,
            inner_forces=mts_forces or InnerForces.DIRECT,
            metropolis=metropolis,
            exact=exact_settings(exact, trajectory_steps, warmup),
        )
        if settings.exact is not None:
            chosen = exact_engine(settings.exact, calculator.state_of(atoms)._asdict())
        steps = steps_of(duration, settings, proposals)
        job = Job(molecule, calculator.todict(), trajectory_format, steps, pdb, beyond_training)
        simulation = begin(
            *(atoms, out, settings, job, console),
            engine=chosen,
            propagator=made,
            relaxed=relax,
            keep_velocities=keep_velocities,
        )
    go_on = f"go on with: mlmd run --restart --out {shlex.quote(str(out))}"
    advise(f"all up to the last checkpoint is kept in {out}; {go_on}")
    replica = "replica-*" if simulation.settings.replicas > 1 else ""
    growing = out / replica / f"trajectory.{job.trajectory_format}"
    note = f"Frames are added to {growing} as they come."
    console.print(note, markup=False, highlight=False, soft_wrap=True)
    with simulation:
        outcome, steps_per_second, stopped = drive(simulation, job.steps, console)
    advise(f"all {outcome.step} steps are kept in {out}; {go_on}")
    _report(finish(simulation, job, outcome, steps_per_second), stopped, as_json, html)


def _load_atoms(
    context: typer.Context,
    molecule: str,
    seed: int,
    choice: PropagatorChoice | None,
    console: Console,
) -> ase.Atoms:
    """Read or build the molecule, with the calculator that is asked for."""
    from mlmd_calc.calculator import MDETCalculator
    from mlmd_calc.cli.structure_input import load_structure

    options = context.params
    given = {name: options[name] for name in _OF_CALCULATOR if is_given(context, name)}
    if choice is not None and "potential" in choice.recommended:
        given.setdefault("model", choice.recommended["potential"])
    calculator = MDETCalculator(device=options["device"], seed=seed, **given)
    atoms = load_structure(
        molecule,
        seed=seed,
        report=lambda note: console.print(note, markup=False, highlight=False),
        **{name: options[name] for name in _OF_STRUCTURE},
    )
    atoms.calc = calculator
    return atoms


def _check_friction(ensemble: Ensemble, friction: float | None) -> None:
    if ensemble is Ensemble.NVE and friction is not None:
        raise ConfigError(
            f"--friction {friction:g} with --ensemble nve, which has no thermostat; leave it out, "
            "or choose another ensemble"
        )


def _report(summary: dict[str, Any], stopped: int, as_json: bool, html: Path | None) -> None:
    """Show the summary and end with the exit status that fits the verdict."""
    from mlmd_calc.cli.run_results import summary_table

    report = Report(f"Run of {summary['molecule']}")
    report.table(summary_table(summary))
    if html is not None:
        _illustrate(report, summary)
    report.deliver(summary, as_json, html)
    if summary["verdict"] == "interrupted":
        raise typer.Exit(end_of(stopped))
    if summary["verdict"] != "completed":
        raise typer.Exit(1)


def _illustrate(report: Report, summary: dict[str, Any]) -> None:
    """Add the picture of every replica, and the cards of the models."""
    from mlmd_calc.cli.jumps import VERLET
    from mlmd_calc.zoo import load_any_model

    for part in summary.get("replicas", [summary]):
        path = Path(part["plot"])
        title = path.parent.name if "replicas" in summary else summary["molecule"]
        report.picture(title, path.read_bytes())
    jumps = summary["settings"]["jumps"]
    names = [summary["calculator"]["model"], *([] if jumps is None else [jumps["propagator"]])]
    for name in names:
        if name != VERLET:
            report.card(load_any_model(name, device="cpu").card)
