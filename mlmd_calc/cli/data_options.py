"""Options of all commands that read labels: what the files do not say themselves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias, cast

import typer

from mlmd_calc.data import MoleculeFrames, read_dataset

if TYPE_CHECKING:
    from mlmd_calc.data.ase_files import VelocityUnit

EnergyKey: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Name of the energies (eV) in extxyz and ASE files, if it is not energy."),
]
ForcesKey: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Name of the forces (eV/Å) in extxyz and ASE files, if it is not forces."),
]
VelocityUnitOption: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Unit of a column velocities: angstrom/fs or ase (Å per ASE time unit)."),
]
FrameSpacing: TypeAlias = Annotated[
    float | None,
    typer.Option(help="fs between the frames of extxyz and ASE trajectories without times."),
]


def read_with(
    paths: list[Path],
    *,
    energy_key: str | None,
    forces_key: str | None,
    velocity_unit: str | None,
    frame_spacing: float | None,
) -> list[MoleculeFrames]:
    """Read data files with these options; errors as `read_dataset`."""
    return read_dataset(
        paths,
        velocity_unit=cast("VelocityUnit | None", velocity_unit),  # checked there
        energy_key=energy_key,
        forces_key=forces_key,
        frame_spacing_fs=frame_spacing,
    )
