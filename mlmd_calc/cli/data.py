"""`mlmd data`: generate training data with GFN2-xTB, and look into data files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from mlmd_calc.data import MoleculeFrames, read_dataset
from mlmd_calc.data.molecules import select_molecules
from mlmd_calc.data.sampling_settings import Mode, SamplingSettings

app = typer.Typer(help="Generate and inspect training data.", no_args_is_help=True)


@app.command("generate")
def generate_command(
    molecules: Annotated[
        list[str],
        typer.Argument(
            help="Names (ethanol), tags (md17, md22, alkane, tg80, extra, ion, radical, all), "
            "NAME=SMILES, or recipe files (.toml, .csv)."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for one npz per molecule.")],
    mode: Annotated[
        str, typer.Option(help="langevin: labels at several temperatures; nve: trajectories.")
    ] = "langevin",
    frames: Annotated[
        int | None, typer.Option(help="Frames of dynamics per molecule. (langevin 198, nve 1200)")
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(help="K; may be repeated. (langevin 300 500 900, nve 300)"),
    ] = None,
    conformers: Annotated[
        int | None, typer.Option(help="Start structures per molecule. (langevin 3, nve 2)")
    ] = None,
    stride: Annotated[
        float | None, typer.Option(help="fs between frames. (langevin 10, nve 2)")
    ] = None,
    thermalise: Annotated[
        float | None,
        typer.Option(help="fs of Langevin dynamics before a run. (langevin 200, nve 500)"),
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Single-threaded processes, one molecule each.")
    ] = os.cpu_count() or 1,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
) -> None:
    """Label molecules with GFN2-xTB; continues where an earlier run was stopped."""
    # Imports ASE's dynamics, which `mlmd --help` need not wait for.
    from mlmd_calc.data.generate import generate

    settings = SamplingSettings.for_mode(
        cast(Mode, mode),  # checked there
        frames=frames,
        temperatures=tuple(temperature) if temperature else None,
        conformers=conformers,
        stride_fs=stride,
        thermalise_fs=thermalise,
        seed=seed,
    )
    console = Console(stderr=True)
    paths = generate(select_molecules(molecules), out, settings, workers=workers, console=console)
    console.print(f"{len(paths)} molecules in {out}")


@app.command("info")
def info_command(
    paths: Annotated[list[Path], typer.Argument(help="Data files or directories.")],
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")] = False,
) -> None:
    """List the molecules in data files."""
    rows = [_summary(frames) for frames in read_dataset(paths)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("molecule", "atoms", "frames", "charge", "multiplicity", "force RMS (eV/Å)")
    for row in rows:
        rms = row["force_rms_eV_per_A"]
        table.add_row(
            row["molecule"],
            *(str(row[key]) for key in ("atoms", "frames", "charge", "multiplicity")),
            "" if rms is None else f"{rms:.3f}",
        )
    total = sum(row["frames"] for row in rows)
    table.caption = f"{len(rows)} entries, {total} frames"
    Console().print(table)


def _summary(frames: MoleculeFrames) -> dict[str, Any]:
    forces = frames.forces
    return {
        "molecule": frames.name,
        "atoms": len(frames.numbers),
        "frames": len(frames),
        "charge": frames.charge,
        "multiplicity": frames.multiplicity,
        "force_rms_eV_per_A": None
        if forces is None
        else float(np.sqrt(np.mean(np.square(forces, dtype=np.float64)))),
        "velocities": frames.velocities is not None,
        "metadata": frames.metadata,
    }
