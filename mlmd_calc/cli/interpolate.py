"""`mlmd interpolate`: trajectories between two given structures."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.console import Console

from mlmd_calc.cli import shared_options as shared
from mlmd_calc.cli.report import SUMMARY_FILE, Json
from mlmd_calc.cli.sample import describe_faults
from mlmd_calc.cli.tables import details, print_table
from mlmd_calc.errors import ConfigError
from mlmd_calc.io.files import json_text, write_json
from mlmd_calc.options import one_of
from mlmd_calc.wording import counted

_End: TypeAlias = Annotated[
    str, typer.Argument(help="PDB or mmCIF file, or what else mlmd sample takes.")
]


def interpolate(
    first: _End,
    last: _End,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Interpolator of ATMOS: shipped name or file.")
    ] = "atmos-peptides-interpolator",
    replicas: Annotated[int, typer.Option("--replicas", "-b", help="Trajectories.")] = 1,
    steps: shared.Steps = None,
    steer: shared.Steer = True,
    redraws: Annotated[
        int,
        typer.Option(help="Times that a frame no simulation would visit is drawn again; 0: never."),
    ] = 100,
    beyond_training: shared.Beyond = False,
    seed: shared.DrawnSeed = None,
    out: shared.Out = Path("mlmd-interpolate"),
    trajectory_format: shared.Format = "xtc",
    device: shared.Device = "auto",
    as_json: Json = False,
) -> None:
    """Draw trajectories from one structure of a molecule to another, both ends as given."""
    from mlmd_calc.cli.structure_input import load_bonded
    from mlmd_calc.sampling.between import draw_between
    from mlmd_calc.sampling.rollouts import SamplerOptions
    from mlmd_calc.sampling.trajectory_file import FORMATS, TrajectoryFile, write_start
    from mlmd_calc.zoo import load_atmos

    one_of("format", trajectory_format, FORMATS)
    if (out / SUMMARY_FILE).exists():
        raise ConfigError(f"{out} holds a run already; give another folder")
    console = Console(stderr=True)
    seed = secrets.randbelow(2**31) if seed is None else seed
    start, end = load_bonded(first, seed), load_bonded(last, seed)
    network = load_atmos(model, device=device, dtype="float32")
    with console.status("drawing"):
        drawn = draw_between(
            network,
            start,
            end,
            count=replicas,
            seed=seed,
            redraws=redraws,
            sampler=SamplerOptions(steps=steps, steer=steer),
            beyond_training=beyond_training,
        )
    for note in drawn.notes:
        console.print(note, markup=False, highlight=False)
    out.mkdir(parents=True, exist_ok=True)
    write_start(out / "start.pdb", drawn.structure, drawn.structure.positions)
    paths = [out / f"trajectory-{index}.{trajectory_format}" for index in range(replicas)]
    for path, frames in zip(paths, drawn.frames, strict=True):
        path.unlink(missing_ok=True)
        TrajectoryFile(path, drawn.structure, drawn.interval_ps).append(frames, 0)
    quality = drawn.quality.state_dict()
    summary = {
        "model": network.source,
        "sha256": network.sha256,
        "first": first,
        "last": last,
        "seed": seed,
        "frames": drawn.frames.shape[1],
        "interval_ps": drawn.interval_ps,
        "step_rmsd_A": drawn.steps[:, :-1].mean(axis=1).tolist(),
        "last_step_rmsd_A": drawn.steps[:, -1].tolist(),
        **drawn.guard.state_dict(),
        "quality": quality,
        "trajectories": [str(path) for path in paths],
    }
    write_json(out / SUMMARY_FILE, summary)
    if as_json:
        typer.echo(json_text(summary))
        return
    rows = {
        "trajectories": f"{replicas} × {drawn.frames.shape[1]} frames with both ends, "
        f"{drawn.interval_ps:g} ps apart",
        "RMSD from frame to frame": f"{drawn.steps[:, :-1].mean():.2f} Å",
        "RMSD of the last step": f"{drawn.steps[:, -1].mean():.2f} Å",
        "rejected": counted(drawn.guard.refused, "frame"),
        "unsound": f"{quality['unsound']} of {counted(quality['frames'], 'frame')}"
        f"{describe_faults(quality['faults'])}",
        "seed": str(seed),
        "files": " … ".join(dict.fromkeys([str(paths[0]), str(paths[-1])])),
    }
    print_table(details(f"{first} to {last}, {model}", rows))
