"""The recorded frames of a run: one ``.npy`` file that grows, and a description beside it."""

from __future__ import annotations

import io
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.bonds import Bonds
from mlmd_calc.errors import ModelFileError
from mlmd_calc.files import read_json, write_json
from mlmd_calc.md.settings import Engine, MDSettings

DESCRIPTION_FILE: Final = "simulation.json"
FRAMES_FILE: Final = "frames.npy"
STOPPED_FILE: Final = "stopped.extxyz"
"""The geometry that stopped a failed run."""


def replica_folders(folder: Path, settings: MDSettings) -> list[Path]:
    """Folders with the frames of each replica of a run; that of the run if there is but one."""
    if settings.replicas == 1:
        return [folder]
    return [folder / f"replica-{index}" for index in range(settings.replicas)]


def frame_dtype(n_atoms: int) -> np.dtype[np.void]:
    """Layout of one recorded frame.

    ``step``; ``potential`` and ``kinetic`` energy in eV (potential NaN if the model has none);
    ``bond_deviation``, the largest deviation in Å of any bond at any step since the frame before;
    ``positions`` in Å and ``velocities`` in Å/fs; ``forces`` in eV/Å, NaN where the engine does not
    tell them.

    Parameters
    ----------
    n_atoms
        Number of atoms.
    """
    return np.dtype(
        [
            ("step", "<i8"),
            ("potential", "<f8"),
            ("kinetic", "<f8"),
            ("bond_deviation", "<f8"),
            ("positions", "<f8", (n_atoms, 3)),
            ("velocities", "<f8", (n_atoms, 3)),
            ("forces", "<f8", (n_atoms, 3)),
        ]
    )


class FrameWriter:
    """Append frames to a ``.npy`` file that ``numpy.load`` can read at any time after a flush.

    Parameters
    ----------
    path
        File to write.
    n_atoms
        Number of atoms.
    keep
        Number of frames of an existing file to keep; whatever follows is dropped. With 0 the file
        is made anew.

    Raises
    ------
    ModelFileError
        If there are fewer frames than are to be kept, or they do not fit the molecule.
    """

    def __init__(self, path: Path, n_atoms: int, keep: int = 0) -> None:
        self.count = keep
        self._dtype = frame_dtype(n_atoms)
        if keep:
            found = read_frames(path)
            if found.dtype != self._dtype or len(found) < keep:
                raise ModelFileError(
                    f"{path} holds {len(found)} frames of layout {found.dtype}, but the checkpoint "
                    f"beside it belongs to {keep} frames of {n_atoms} atoms; bring back the "
                    "original file or start a new run"
                )
            del found
        self._file = path.open("r+b" if keep else "w+b")
        # The header first: a kill in between must not leave one that promises more than there is.
        self.drop(keep)

    def _header(self) -> bytes:
        """Header of the file; NumPy pads it so that its size does not depend on the count."""
        buffer = io.BytesIO()
        description = np.lib.format.dtype_to_descr(self._dtype)
        np.lib.format.write_array_header_1_0(
            buffer, {"descr": description, "fortran_order": False, "shape": (self.count,)}
        )
        return buffer.getvalue()

    def append(self, frame: tuple[Any, ...]) -> None:
        """Add one frame: the fields of :func:`frame_dtype` in their order."""
        self._file.write(np.array(frame, dtype=self._dtype).tobytes())
        self.count += 1

    def flush(self) -> None:
        """Make everything appended so far readable."""
        # What is in the buffer goes to the disk first: where that is full the header stays true.
        self._file.flush()
        self._file.seek(0)
        self._file.write(self._header())
        self._file.seek(0, io.SEEK_END)
        self._file.flush()

    def drop(self, keep: int) -> None:
        """Drop all but a number of frames."""
        self.count = keep
        self.flush()
        self._file.truncate(len(self._header()) + keep * self._dtype.itemsize)
        self._file.seek(0, io.SEEK_END)

    def close(self) -> None:
        """Flush and close the file."""
        try:
            self.flush()
        finally:
            self._file.close()


def read_frames(path: Path) -> NDArray[np.void]:
    """Map the frames of a file into memory.

    Raises
    ------
    ModelFileError
        If the file is missing or damaged.
    """
    try:
        frames: NDArray[np.void] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} is not a readable file of frames: {error}") from error
    return frames


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

    @property
    def times_ps(self) -> NDArray[np.float64]:
        """Time of each frame in ps, ``(f,)``."""
        timestep = self.description.settings.step_fs / units.FS_PER_PS
        return np.asarray(self.frames["step"] * timestep)

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
