"""Options of all commands that read labels: what the files do not say themselves."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias, cast, get_type_hints

import typer

from mlmd_calc.data import MoleculeFrames, read_dataset

if TYPE_CHECKING:
    from mlmd_calc.data.ase_files import VelocityUnit

Data: TypeAlias = Annotated[
    list[Path], typer.Argument(help="Label or trajectory files, or directories.")
]
Seed: TypeAlias = Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")]
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
    typer.Option(
        help="fs between the frames of extxyz and ASE trajectories without times, and of MD17 "
        "(0.5), MD22 and TG80 (1); velocities that are missing are taken from the positions."
    ),
]


class Reading(NamedTuple):
    """Values of these options, None where they are not given."""

    energy_key: EnergyKey = None
    forces_key: ForcesKey = None
    velocity_unit: VelocityUnitOption = None
    frame_spacing: FrameSpacing = None

    def read(self, paths: list[Path]) -> list[MoleculeFrames]:
        """Read data files; errors as `read_dataset`."""
        return read_dataset(
            paths,
            velocity_unit=cast("VelocityUnit | None", self.velocity_unit),  # checked there
            energy_key=self.energy_key,
            forces_key=self.forces_key,
            frame_spacing_fs=self.frame_spacing,
        )


def with_reading(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of :class:`Reading` in the place of its parameter ``reading``."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for name, p in signature.parameters.items() if name != "reading"]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in get_type_hints(Reading, include_extras=True).items()
    ]

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        reading = Reading(**{name: given.pop(name) for name in Reading._fields})
        command(**given, reading=reading)

    parameters = [*own, *options]
    with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_options
