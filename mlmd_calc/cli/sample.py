"""`mlmd sample`: trajectories from a trained ATMOS model."""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer
from rich.console import Console
from rich.table import Table

from mlmd_calc.cli import shared_options as shared
from mlmd_calc.cli.endings import advise, end_of, stop_on_signal
from mlmd_calc.cli.given import is_given, refuse_with_restart
from mlmd_calc.cli.report import SUMMARY_FILE, Html, Json, Report
from mlmd_calc.cli.tables import details
from mlmd_calc.errors import ConfigError, RefusedFramesError
from mlmd_calc.io.files import write_json
from mlmd_calc.io.progress import LoggedProgress
from mlmd_calc.wording import counted

if TYPE_CHECKING:
    from mlmd_calc.sampling import SamplingJob, SamplingRun
    from mlmd_calc.sampling.quality import FrameQuality

_TOLERATED: Final = 0.05
"""Share of unsound frames up to which a run is not poor."""
_FAULTS: Final = {
    "flipped": "mirror images",
    "bonds": "bonds",
    "angles": "angles",
    "isomerised": "cis/trans",
    "contacts": "clashes",
}
"""What to call what is wrong with frames."""

_WITH_RESTART: Final = ("out", "frames", "restart", "as_json", "html")
"""Options that make sense when a run is continued."""

_OF_JOB: Final = (
    *("model", "interpolator", "frames", "replicas", "hydrogens", "keyframes_per_checkpoint"),
    *("sampler", "steps", "noise_scale", "step_scale", "steer", "beyond_training"),
    *("relax", "reference_ps", "device", "dtype"),
)
"""Options that the job takes as they are."""

_Input: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        metavar="INPUT",
        help="The start: a PDB or mmCIF file, a peptide as sequence:AAG for Ace-AAG-Nme or with "
        "free ends as sequence:H-AAG-OH, or a SMILES as smiles:CCO, for models that know small "
        "molecules.",
    ),
]
_Model: TypeAlias = Annotated[
    str, typer.Option("--model", "-m", help="ATMOS model: shipped name or file.")
]
_Interpolator: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="ATMOS model that fills the intervals between the frames of --model, many at once."
    ),
]
_Frames: TypeAlias = Annotated[
    int, typer.Option("--frames", "-n", help="Frames of each trajectory after the start.")
]
_Replicas: TypeAlias = Annotated[
    int, typer.Option("--replicas", "-b", help="Trajectories, all from the same start.")
]
_Redraws: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--redraws",
        help="Times that a frame that no simulation would visit (mirror images, changed bonds and "
        "angles, cis peptide bonds, clashes; with --relax too high an energy) is drawn again "
        "before the run ends; 0 keeps every frame. (100; with --relax 10)",
    ),
]
_RelaxBy: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--relax",
        metavar="FORCES",
        help="Relax every frame before the next is drawn: amber14 (Amber ff14SB in implicit "
        "solvent, for amino acids), the name or file of an MD-ET model, so3lr, or "
        "package.module:name of what returns an ASE calculator.",
    ),
]
_Reference: TypeAlias = Annotated[
    float,
    typer.Option(
        "--reference-ps",
        help="ps of dynamics at the start of a run with --relax; the energies of frames are "
        "compared with those of this.",
    ),
]
_Ligand: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--ligand", help="SMILES of a ligand in a file, as NAME=SMILES; may be repeated."),
]
_Hydrogens: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--hydrogens/--no-hydrogens",
        help="Write hydrogens where they follow from those of the start, or heavy atoms only.",
    ),
]
_Checkpoint: TypeAlias = Annotated[
    int,
    typer.Option(
        "--keyframes-per-checkpoint",
        help="Frames of --model after which everything is written. With --interpolator that many "
        "intervals are filled at once, which costs memory.",
    ),
]
_Dtype: TypeAlias = Annotated[str, typer.Option(help="float32 or float64.")]
_Restart: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--restart", help="Continue the run in --out bit for bit; only --frames may be changed."
    ),
]


def sample(
    context: typer.Context,
    start: _Input = None,
    model: _Model = "atmos-peptides",
    interpolator: _Interpolator = None,
    frames: _Frames = 100,
    replicas: _Replicas = 1,
    stride: shared.Stride = None,
    sampler: shared.Sampler = None,
    steps: shared.Steps = None,
    noise_scale: shared.NoiseScale = None,
    step_scale: shared.StepScale = None,
    steer: shared.Steer = True,
    redraws: _Redraws = None,
    beyond_training: shared.Beyond = False,
    relax: _RelaxBy = None,
    reference_ps: _Reference = 5.0,
    ligand: _Ligand = None,
    seed: shared.DrawnSeed = None,
    out: shared.Out = Path("mlmd-sample"),
    trajectory_format: shared.Format = "xtc",
    hydrogens: _Hydrogens = True,
    keyframes_per_checkpoint: _Checkpoint = 10,
    device: shared.Device = "auto",
    dtype: _Dtype = "float32",
    restart: _Restart = False,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Sample trajectories of a molecule with a trained ATMOS model."""
    from mlmd_calc.cli.relaxation import relaxation_forces
    from mlmd_calc.sampling import SamplingJob, SamplingRun
    from mlmd_calc.sampling.rollouts import REDRAWS, RELAXED_REDRAWS

    console = Console(stderr=True)
    if restart:
        refuse_with_restart(context, _WITH_RESTART, "--frames")
        longer = frames if is_given(context, "frames") else None
        run = SamplingRun.resume(out, longer, relaxation_forces)
    else:
        if start is None:
            raise ConfigError(
                "no start given; name a structure file or a peptide such as sequence:AAG, or "
                "continue a run with --restart"
            )
        if relax is None and is_given(context, "reference_ps"):
            raise ConfigError("--reference-ps is an option of relaxed frames; give --relax with it")
        seed = secrets.randbelow(2**31) if seed is None else seed
        usual = REDRAWS if relax is None else RELAXED_REDRAWS
        job = SamplingJob(
            input=start,
            stride_ps=stride,
            redraws=usual if redraws is None else redraws,
            seed=seed,
            format=trajectory_format,
            ligands=_ligands(ligand),
            **{name: context.params[name] for name in _OF_JOB},
        )
        run = _start(out, job, console)
    go_on = f"go on with: mlmd sample --restart --out {shlex.quote(str(out))}"
    advise(f"all up to the last checkpoint is kept in {out}; {go_on}")
    for note in run.notes:
        console.print(note, markup=False, highlight=False)
    summary, stopped = _finish(run, console)
    advise(f"{run.frame} frames of each trajectory are kept in {out}; {go_on}")
    write_json(out / SUMMARY_FILE, summary)
    run.close()
    report = Report(f"Frames of {run.job.input}")
    report.table(_table(summary))
    if html is not None:
        _illustrate(report, summary)
    report.deliver(summary, as_json, html)
    if stopped:
        raise typer.Exit(end_of(stopped))
    if summary["verdict"] != "completed":
        raise typer.Exit(1)


def _start(folder: Path, job: SamplingJob, console: Console) -> SamplingRun:
    from mlmd_calc.cli.relaxation import relaxation_forces
    from mlmd_calc.cli.structure_input import load_bonded
    from mlmd_calc.sampling import SamplingRun

    start = load_bonded(job.input, job.seed)
    if job.relax is not None:
        console.print(
            f"Measuring the energies that frames may have, in {job.reference_ps:g} ps of dynamics "
            f"with {job.relax} (--reference-ps).",
            markup=False,
            highlight=False,
        )
    with console.status("starting"):
        return SamplingRun.start(folder, job, start, relaxation_forces)


def _finish(run: SamplingRun, console: Console) -> tuple[dict[str, Any], int]:
    """Sample to the end; return the summary and the signal that stopped it, or 0."""
    refusal = None
    try:
        stopped, seconds_per_frame = _drive(run, console)
    except RefusedFramesError as error:
        stopped, seconds_per_frame, refusal = 0, None, str(error)
    summary = {
        "verdict": "interrupted" if stopped else _verdict(run.quality, refusal),
        "ended_early": refusal,
        **run.summary(),
        "seconds_per_frame": seconds_per_frame,
    }
    return summary, stopped


def _illustrate(report: Report, summary: dict[str, Any]) -> None:
    """Add pictures of the trajectories, and the cards of the models."""
    from mlmd_calc.analysis.rollouts import plot_sampled
    from mlmd_calc.data.biomolecules.trajectories import read_trajectories
    from mlmd_calc.sampling.run import START_FILE
    from mlmd_calc.zoo import load_any_model

    job, paths = summary["job"], [Path(path) for path in summary["trajectories"]]
    if job["format"] not in ("xtc", "dcd"):
        report.text(f"Pictures are drawn of xtc and dcd files, not of {job['format']}.")
    elif summary["frame"] > 0:
        trajectories = read_trajectories(
            paths,
            topology=paths[0].with_name(START_FILE),
            interval_ps=summary["interval_ps"],
        )
        with report.drawing(None) as folder:
            plot_sampled(trajectories, folder)
    for name in (job["model"], job["interpolator"]):
        if name is not None:
            report.card(load_any_model(name, device="cpu").card)


def _ligands(texts: list[str] | None) -> dict[str, str]:
    ligands = {}
    for text in texts or []:
        name, equals, smiles = text.partition("=")
        if not (name and equals and smiles):
            raise ConfigError(f"--ligand {text!r}; write it as NAME=SMILES, for example LIG=CCO")
        ligands[name] = smiles
    return ligands


def _verdict(quality: FrameQuality, refusal: str | None) -> str:
    """Judge a run by whether it came to its end, and by its frames."""
    poor = refusal is not None or quality.unsound > _TOLERATED * quality.frames
    return "poor" if poor else "completed"


def _drive(run: SamplingRun, console: Console) -> tuple[int, float | None]:
    """Sample under a progress bar; return the signal that stopped it, or 0, and s per frame."""
    first, begin = run.frame, time.perf_counter()
    with LoggedProgress(console=console) as progress, stop_on_signal() as should_stop:
        bar = progress.add_task("sampling", total=run.job.frames, completed=first)
        run.run(lambda frame: progress.update(bar, completed=frame), should_stop)
    count = (run.frame - first) * run.job.replicas
    stopped = should_stop.number if run.frame < run.job.frames else 0
    return stopped, (time.perf_counter() - begin) / count if count else None


def describe_faults(faults: Mapping[str, int]) -> str:
    """Say in parentheses what was wrong with how many frames, after a space; "" if nothing."""
    found = [f"{_FAULTS[name]} {count}" for name, count in faults.items() if count]
    return f" ({', '.join(found)})" if found else ""


def _energy(energy: dict[str, Any] | None) -> str:
    """Energies of frames beside those of dynamics."""
    if energy is None or "mean_kJ_per_mol" not in energy:
        return ""
    frames, dynamics = (
        f"{energy[f'{name}mean_kJ_per_mol']:.0f} ± {energy[f'{name}deviation_kJ_per_mol']:.0f}"
        for name in ("", "dynamics_")
    )
    return (
        f"{frames} kJ/mol; dynamics {dynamics} "
        f"({energy['deviations_above_dynamics']:+.1f} standard deviations)"
    )


def _again(energy: dict[str, Any] | None) -> str:
    if energy is None:
        return ""
    again = counted(energy["relaxed_again"], "frame")
    return f"{again}; refused for their energy: {energy['refused']}"


def _table(summary: dict[str, Any]) -> Table:
    quality, job = summary["quality"], summary["job"]
    seconds, paths = summary["seconds_per_frame"], summary["trajectories"]
    rows = {
        "verdict": summary["verdict"],
        "sampled": f"{job['replicas']} × {counted(summary['frame'], 'frame')}, "
        f"{summary['interval_ps']:g} ps apart",
        "ended early": summary["ended_early"] or "",
        "rejected": counted(summary["refused"], "frame") + describe_faults(summary["faults"]),
        "unsound": f"{quality['unsound']} of {counted(quality['frames'], 'frame')}"
        f"{describe_faults(quality['faults'])}",
        "potential energy": _energy(summary["energy"]),
        "relaxed again": _again(summary["energy"]),
        "largest bond deviation": f"{quality['bond_deviation']:.3f} Å",
        "speed": "" if seconds is None else f"{seconds:.3g} s per frame",
        "seed": str(job["seed"]),
        "trajectories": " … ".join(dict.fromkeys([paths[0], paths[-1]])),
    }
    return details(f"{job['input']}, {job['model']}", rows)
