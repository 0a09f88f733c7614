"""`mlmd data`: generate and convert training data, and look into data files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from mlmd_calc import units
from mlmd_calc.cli.data_conversions import CONVERSIONS
from mlmd_calc.cli.data_options import Reading, Seed, with_reading
from mlmd_calc.cli.endings import advise, raise_on_signal
from mlmd_calc.cli.report import Json
from mlmd_calc.cli.tables import print_table
from mlmd_calc.data import MoleculeFrames, read_dataset
from mlmd_calc.data.molecules import select_molecules
from mlmd_calc.data.sampling_settings import Mode, SamplingSettings
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.io.files import FolderLock, json_text
from mlmd_calc.io.progress import LoggedProgress
from mlmd_calc.optional import require
from mlmd_calc.options import positive_number, whole_steps
from mlmd_calc.wording import counted

app = typer.Typer(help="Generate, convert and inspect training data.", no_args_is_help=True)


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
    reference: Annotated[
        str,
        typer.Option(
            help="Method of the labels: gfn2, so3lr, or package.module:name of what returns an ASE "
            "calculator. Geometries are sampled with GFN2-xTB in any case."
        ),
    ] = "gfn2",
    workers: Annotated[
        int, typer.Option(help="Single-threaded processes, one molecule each.")
    ] = os.cpu_count() or 1,
    seed: Seed = 0,
) -> None:
    """Sample molecules and label them; continues where an earlier run was stopped."""
    from mlmd_calc.data.generate import generate

    settings = SamplingSettings.for_mode(
        cast(Mode, mode),  # checked there
        frames=frames,
        temperatures=tuple(temperature) if temperature else None,
        conformers=conformers,
        stride_fs=stride,
        thermalise_fs=thermalise,
        seed=seed,
        reference=reference,
    )
    console = Console(stderr=True)
    chosen = select_molecules(molecules)
    _advise_to_repeat("molecules", out)
    with raise_on_signal():
        paths = generate(chosen, out, settings, workers=workers, console=console)
    console.print(f"{counted(len(paths), 'molecule')} in {out}")


@app.command("propagate")
def propagate_command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for one npz per molecule.")],
    molecules: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names, tags, NAME=SMILES, or recipe files, as for mlmd data generate; not with "
            "--starts."
        ),
    ] = None,
    starts: Annotated[
        Path | None,
        typer.Option(
            help="Labels of mlmd data generate, a file or a folder: runs start from their "
            "structures, which is faster than to find minima and to heat them."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Force model to follow. Default: the default shipped model."
        ),
    ] = None,
    runs: Annotated[int, typer.Option(help="Starts per molecule, which advance together.")] = 32,
    frames: Annotated[int, typer.Option(help="Frames of each run, the start included.")] = 40,
    stride: Annotated[float, typer.Option(help="fs between frames.")] = 2.0,
    timestep: Annotated[float, typer.Option(help="fs of a time step.")] = 0.5,
    max_drift: Annotated[
        float,
        typer.Option(help="meV/atom/ps; runs whose energy drifts faster are dropped and counted."),
    ] = 2.0,
    conformers: Annotated[int, typer.Option(help="Minima that the runs start from in turn.")] = 4,
    hottest: Annotated[
        float,
        typer.Option(help="K; velocities start with 0 to so many, positions with nine tenths."),
    ] = 1000.0,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda if there is one.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float64, float32 or mixed.")] = "float32",
) -> None:
    """Follow a force model at constant energy; continues where an earlier command was stopped."""
    from mlmd_calc.data.propagate import PropagationSettings, molecules_of, propagate
    from mlmd_calc.zoo import load_model

    settings = PropagationSettings(
        runs=runs,
        frames=frames,
        stride_fs=stride,
        timestep_fs=timestep,
        max_drift=max_drift,
        conformers=conformers,
        hottest_K=hottest,
        seed=seed,
    )
    if (molecules is None) == (starts is None):
        raise ConfigError(
            "name molecules to follow, or give --starts, their structures; one of both"
        )
    structures = None
    if starts is not None:
        labelled = read_dataset(starts)
        structures = {frames.name: frames for frames in labelled}
        if len(structures) < len(labelled):
            raise InputError(
                f"{starts} has {len(labelled)} sets of structures of {len(structures)} names; give "
                "a folder with one file per molecule"
            )
    chosen = (
        select_molecules(molecules or [])
        if structures is None
        else molecules_of(structures.values())
    )
    force_field = load_model(model, device="cpu")
    console = Console(stderr=True)
    _advise_to_repeat("molecules", out)
    with raise_on_signal():
        paths = propagate(
            chosen,
            out,
            settings,
            force_field,
            starts=structures,
            device=device,
            dtype=dtype,
            console=console,
        )
    console.print(f"{counted(len(paths), 'molecule')} in {out}")


@app.command("peptides")
def peptides_command(
    sequences: Annotated[
        list[str],
        typer.Argument(
            help="Amino acids between caps in one-letter codes (A, AGSV), with free ends as "
            "H-AGSV-OH, or all20 for each of the 20 amino acids by itself, capped."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for one npz per run.")],
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            help="K; may be repeated. Left-handed conformers need hotter runs, such as 300, 400 "
            "and 500 K. (300)"
        ),
    ] = None,
    nanoseconds: Annotated[float, typer.Option("--ns", help="Length of a run in ns.")] = 2.0,
    interval: Annotated[float, typer.Option(help="ps between frames.")] = 2.0,
    equilibrate: Annotated[float, typer.Option(help="ps before the first frame.")] = 50.0,
    replicas: Annotated[
        int, typer.Option(help="Runs per peptide and temperature, from different conformers.")
    ] = 1,
    workers: Annotated[
        int, typer.Option(help="Single-threaded processes, one run each.")
    ] = os.cpu_count() or 1,
    seed: Seed = 0,
) -> None:
    """Simulate peptides with OpenMM; continues where an earlier run was stopped."""
    require("openmm", extra="openmm", why="simulate peptides")
    from mlmd_calc.data.biomolecules.peptides import AMINO_ACIDS
    from openmm_bridge.peptides import PeptideSettings, generate_peptides

    interval_ns = positive_number("interval", interval) * units.FS_PER_PS / units.FS_PER_NS
    settings = PeptideSettings(
        frames=whole_steps("ns", nanoseconds, interval_ns),
        interval_ps=interval,
        equilibration_ps=equilibrate,
        seed=seed,
    )
    console = Console(stderr=True)
    named = {"all20": list(AMINO_ACIDS)}
    _advise_to_repeat("runs", out)
    with raise_on_signal():
        paths = generate_peptides(
            [sequence for entry in sequences for sequence in named.get(entry, [entry])],
            out,
            settings,
            temperatures_K=temperature or [300.0],
            replicas=replicas,
            workers=workers,
            console=console,
        )
    console.print(f"{counted(len(paths), 'run')} in {out}")


def _advise_to_repeat(kind: str, out: Path) -> None:
    advise(f"finished {kind} are kept in {out}; the same command goes on with the rest")


for _name, _command in CONVERSIONS.items():
    app.command(_name)(_command)


@app.command("label")
@with_reading
def label_command(
    paths: Annotated[list[Path], typer.Argument(help="Trajectory files or directories.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for one npz per molecule.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Force model. Default: the default shipped model."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float64, float32 or mixed.")] = "float32",
    *,
    reading: Reading,
) -> None:
    """Replace the forces of trajectories by those of a model; molecules that are done are kept."""
    from mlmd_calc.data.label import file_stems, is_labelled, label_forces
    from mlmd_calc.data.npz import check_trajectory, write_trajectory
    from mlmd_calc.potential import Potential

    molecules = reading.read(paths)
    for molecule in molecules:
        check_trajectory(molecule)
    potential = Potential(model, dtype=dtype)
    sha256 = potential.model.sha256
    files = {
        out / f"{stem}.npz": m for stem, m in zip(file_stems(molecules), molecules, strict=True)
    }
    out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    with FolderLock(out), LoggedProgress(console=console) as progress:
        pending = {path: m for path, m in files.items() if not is_labelled(path, m, sha256)}
        bar = progress.add_task("labelling", total=sum(map(len, pending.values())))
        for path, molecule in pending.items():
            labelled = label_forces(molecule, potential, lambda n: progress.advance(bar, n))
            metadata = {
                **molecule.metadata,
                "name": molecule.name,
                "forces": potential.model.card.name,
                "teacher_sha256": sha256,
            }
            write_trajectory(path, replace(labelled, metadata=metadata))
    console.print(
        f"{counted(len(pending), 'molecule')} labelled in {out}, {counted(len(files), 'file')} in "
        "all"
    )


@app.command("info")
@with_reading
def info_command(
    paths: Annotated[list[Path], typer.Argument(help="Data files or directories.")],
    as_json: Json = False,
    *,
    reading: Reading,
) -> None:
    """List the molecules in data files."""
    molecules = reading.read(paths)
    rows = [_summary(frames) for frames in molecules]
    if as_json:
        typer.echo(json_text(rows))
        return
    labels = ("energies", "force RMS (eV/Å)")
    table = Table("molecule", "atoms", "frames", "charge", "multiplicity", *labels)
    for row in rows:
        rms = row["force_rms_eV_per_A"]
        table.add_row(
            row["molecule"],
            *(str(row[key]) for key in ("atoms", "frames", "charge", "multiplicity")),
            "yes" if row["energies"] else "none",
            "none" if rms is None else f"{rms:.3f}",
        )
    total = sum(row["frames"] for row in rows)
    table.caption = f"{counted(len(rows), 'entry', 'entries')}, {counted(total, 'frame')}"
    print_table(table)


def _summary(frames: MoleculeFrames) -> dict[str, Any]:
    forces = frames.forces
    return {
        "molecule": frames.name,
        "atoms": len(frames.numbers),
        "frames": len(frames),
        "charge": frames.charge,
        "multiplicity": frames.multiplicity,
        "energies": frames.energies is not None,
        "force_rms_eV_per_A": None
        if forces is None
        else float(np.sqrt(np.mean(np.square(forces, dtype=np.float64)))),
        "velocities": frames.velocities is not None,
        "frame_spacing_fs": frames.dt_fs,
        "metadata": frames.metadata,
    }
