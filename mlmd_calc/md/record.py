"""What a run is, and what it has recorded, read back."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import ase
import numpy as np
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.errors import ModelFileError
from mlmd_calc.geometry.bonds import Bonds
from mlmd_calc.io.files import read_json, write_json
from mlmd_calc.md.frames import FRAMES_FILE, read_frames
from mlmd_calc.md.settings import Engine, MDSettings
from mlmd_calc.wording import counted

DESCRIPTION_FILE: Final = "simulation.json"
STOPPED_FILE: Final = "stopped.extxyz"
"""The geometry that stopped a failed run."""


def replica_folders(folder: Path, settings: MDSettings) -> list[Path]:
    """Folders with the frames of each replica of a run; that of the run if there is but one."""
    if settings.replicas == 1:
        return [folder]
    return [folder / f"replica-{index}" for index in range(settings.replicas)]


@dataclass(frozen=True)
class Description:
    """What the frames of a run are frames of.

    Attributes
    ----------
    numbers
        Atomic numbers, ``(n,)``.
    masses
        ``(n,)`` amu.
    bonds
        Bonds with their reference lengths.
    settings
        Settings of the run.
    degrees_of_freedom
        Number of degrees of freedom that share the kinetic energy.
    info
        Charge and multiplicity, as they belong into ``atoms.info``.
    engine
        What moves the atoms.
    engine_options
        Options of the engine, by name.
    """

    numbers: NDArray[np.int64]
    masses: NDArray[np.float64]
    bonds: Bonds
    settings: MDSettings
    degrees_of_freedom: int
    info: dict[str, Any]
    engine: Engine = Engine.ASE
    engine_options: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the description as JSON-able values."""
        arrays = {"numbers": self.numbers, "masses": self.masses, **asdict(self.bonds)}
        return {
            **{name: array.tolist() for name, array in arrays.items()},
            "settings": self.settings.to_dict(),
            "degrees_of_freedom": self.degrees_of_freedom,
            "info": self.info,
            "engine": self.engine.value,
            "engine_options": self.engine_options,
        }

    def write(self, folder: Path) -> None:
        """Write the description into the folder of a run."""
        write_json(folder / DESCRIPTION_FILE, self.to_dict())

    @classmethod
    def read(cls, folder: Path) -> Description:
        """Read the description from the folder of a run.

        Raises
        ------
        ModelFileError
            If there is none, or it is damaged.
        """
        path = folder / DESCRIPTION_FILE
        try:
            content = read_json(path)
            return cls(
                numbers=np.array(content["numbers"], dtype=np.int64),
                masses=np.array(content["masses"], dtype=np.float64),
                bonds=Bonds(
                    np.array(content["pairs"], dtype=np.int64).reshape(-1, 2),
                    np.array(content["lengths"], dtype=np.float64),
                ),
                settings=MDSettings.from_dict(content["settings"]),
                degrees_of_freedom=int(content["degrees_of_freedom"]),
                info=dict(content["info"]),
                engine=Engine(content.get("engine", Engine.ASE)),
                engine_options=dict(content.get("engine_options", {})),
            )
        except FileNotFoundError as error:
            raise ModelFileError(f"{folder} holds no run: {path.name} is missing") from error
        except ModelFileError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelFileError(f"{path} is damaged: {error!r}") from error


@dataclass(frozen=True)
class RunRecord:
    """Frames of a run, read back.

    Attributes
    ----------
    description
        What they are frames of.
    frames
        ``(f,)`` with the fields of :func:`frame_dtype`.
    failed
        Whether the run came to a bad end.
    """

    description: Description
    frames: NDArray[np.void]
    failed: bool

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        # Not the frames, which fill pages.
        formula = ase.Atoms(self.description.numbers).get_chemical_formula()
        end = ", failed" if self.failed else ""
        return f"<RunRecord of {formula}: {counted(len(self), 'frame')}{end}>"

    @property
    def timed(self) -> bool:
        """Whether frames lie inside steps, too."""
        return self.description.settings.frames_per_jump > 1

    @property
    def at_steps(self) -> RunRecord:
        """The record without frames inside steps, which have no potential energy."""
        if not self.timed:
            return self
        # Frames inside a step follow the end of the step before, and have its number.
        ends = np.diff(self.frames["step"], prepend=-1) > 0
        return replace(self, frames=self.frames[ends])

    @property
    def times_ps(self) -> NDArray[np.float64]:
        """Time of each frame in ps, ``(f,)``; ConfigError for samples of an exact ensemble."""
        if self.timed:
            return np.asarray(self.frames["time"] / units.FS_PER_PS)
        timestep = self.description.settings.step_fs / units.FS_PER_PS
        return np.asarray(self.frames["step"] * timestep)

    @property
    def progress(self) -> tuple[NDArray[np.float64], str]:
        """What frames are drawn against, ``(f,)``, and what it is called: steps without time."""
        if self.description.settings.exact is None:
            return self.times_ps, "time (ps)"
        return self.frames["step"].astype(np.float64), "step"

    @property
    def temperatures(self) -> NDArray[np.float64]:
        """Kinetic temperature of each frame in K, ``(f,)``."""
        degrees = self.description.degrees_of_freedom
        return np.asarray(2.0 * self.frames["kinetic"] / (degrees * units.KB))

    @property
    def total_energies(self) -> NDArray[np.float64]:
        """Potential plus kinetic energy of each frame in eV, ``(f,)``."""
        return np.asarray(self.frames["potential"] + self.frames["kinetic"])


def read_record(folder: str | os.PathLike[str]) -> RunRecord:
    """Read what a run has recorded.

    Parameters
    ----------
    folder
        Folder of the run.

    Raises
    ------
    ModelFileError
        If there is none, or it is damaged.
    """
    path = Path(folder)
    return RunRecord(
        description=Description.read(path),
        frames=read_frames(path / FRAMES_FILE),
        failed=(path / STOPPED_FILE).exists(),
    )
