"""Commands of `mlmd data` that convert published trajectories of biomolecules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer
from rich.console import Console
from rich.progress import track

from mlmd_calc.cli.endings import advise
from mlmd_calc.errors import ConfigError, InputError, ModelFileError
from mlmd_calc.io.files import FolderLock

if TYPE_CHECKING:
    from mlmd_calc.data.biomolecules.trajectories import BiomolecularTrajectory

_Out: TypeAlias = Annotated[
    Path, typer.Option("--out", "-o", help="Directory for one npz per run.")
]
_Every: TypeAlias = Annotated[int, typer.Option(help="Take the first of so many frames.")]
_Interval: TypeAlias = Annotated[
    float | None,
    typer.Option(help="ps between the frames of the files, where these do not tell it."),
]


def mdcath_command(
    files: Annotated[list[Path], typer.Argument(help="mdcath_dataset_DOMAIN.h5")],
    out: _Out,
    temperature: Annotated[int, typer.Option(help="320, 348, 379, 413 or 450 K.")] = 320,
    frames: Annotated[int, typer.Option(help="Frames to take of a run, 1 ns apart.")] = 400,
) -> None:
    """Convert protein domains of mdCATH to trajectories of heavy atoms."""
    from mlmd_calc.data.biomolecules.mdcath import read_mdcath

    read = partial(read_mdcath, temperature_K=temperature, frames=frames)
    _convert({str(file): partial(read, file) for file in files}, out)


def misato_command(
    file: Annotated[Path, typer.Argument(help="MD.hdf5")],
    names: Annotated[list[str] | None, typer.Argument(help="PDB codes. (all in the file)")] = None,
    *,
    topologies: Annotated[
        Path, typer.Option(help="Directory with PDBID/production.top, in small letters.")
    ],
    out: _Out,
) -> None:
    """Convert protein-ligand complexes of MISATO to trajectories of heavy atoms."""
    from mlmd_calc.data.biomolecules.misato import misato_names, read_misato

    def read(name: str) -> list[BiomolecularTrajectory]:
        return [read_misato(file, name, topologies / name.lower() / "production.top")]

    _convert({name: partial(read, name) for name in names or misato_names(file)}, out)


def atlas_command(
    folders: Annotated[list[Path], typer.Argument(help="Unpacked folders of chains.")],
    out: _Out,
    every: _Every = 1,
) -> None:
    """Convert protein chains of ATLAS to trajectories of heavy atoms."""
    from mlmd_calc.data.biomolecules.published import read_atlas

    _convert({str(folder): partial(read_atlas, folder, every=every) for folder in folders}, out)


def mdgen_command(
    paths: Annotated[
        list[Path], typer.Argument(help="Folders NAME with NAME.pdb and NAME.xtc, or NAME.npy.")
    ],
    out: _Out,
    every: _Every = 1,
    interval: _Interval = None,
    sequence: Annotated[
        str | None,
        typer.Option(
            help="One-letter codes of the residues of one array that is not called after them."
        ),
    ] = None,
) -> None:
    """Convert peptides and proteins of MDGen to trajectories of heavy atoms."""
    from mlmd_calc.data.biomolecules.published import read_mdgen

    if sequence is not None and len(paths) > 1:
        raise ConfigError(f"--sequence is for one array, but {len(paths)} paths are given")

    def read(path: Path) -> list[BiomolecularTrajectory]:
        return [read_mdgen(path, every=every, interval_ps=interval, sequence=sequence)]

    _convert({str(path): partial(read, path) for path in paths}, out)


def timewarp_command(
    files: Annotated[
        list[Path], typer.Argument(help="NAME-traj-arrays.npz, beside NAME-traj-state0.pdb.")
    ],
    out: _Out,
    every: _Every = 1,
    interval: _Interval = None,
) -> None:
    """Convert peptides of Timewarp to trajectories of heavy atoms."""
    from mlmd_calc.data.biomolecules.published import read_timewarp

    def read(path: Path) -> list[BiomolecularTrajectory]:
        return [read_timewarp(path, every=every, interval_ps=interval)]

    _convert({str(path): partial(read, path) for path in files}, out)


def _convert(sources: Mapping[str, Callable[[], list[BiomolecularTrajectory]]], out: Path) -> None:
    """Write what can be read, and say why the rest cannot."""
    from mlmd_calc.data.biomolecules.trajectories import write_biomolecular_trajectory

    console = Console(stderr=True)
    out.mkdir(parents=True, exist_ok=True)
    with FolderLock(out):
        advise(f"files in {out} are complete; give the command again for all")
        left_out = []
        for label, read in track(sources.items(), "converting", console=console):
            try:
                trajectories = read()
            except (ConfigError, InputError, ModelFileError) as error:
                left_out.append(f"{label}: {error}")
                continue
            for trajectory in trajectories:
                temperature = f"{trajectory.temperature_K:g}K"
                stem = f"{trajectory.name}_{temperature}_r{trajectory.replica}"
                write_biomolecular_trajectory(out / f"{stem}.npz", trajectory)
        if len(left_out) == len(sources):
            raise InputError(f"nothing could be converted; the first: {left_out[0]}")
    for reason in left_out:
        console.print(f"left out: {reason}", highlight=False, markup=False)
    console.print(f"{len(sources) - len(left_out)} of {len(sources)} converted to {out}")


CONVERSIONS: Final[Mapping[str, Callable[..., None]]] = {
    "mdcath": mdcath_command,
    "misato": misato_command,
    "atlas": atlas_command,
    "mdgen": mdgen_command,
    "timewarp": timewarp_command,
}
"""Commands by name."""
