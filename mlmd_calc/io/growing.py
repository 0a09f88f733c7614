"""Trajectory files that grow by whole frames, and can be cut back to what they were."""

from __future__ import annotations

import errno
import io
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import ase
import numpy as np
from ase.io.extxyz import write_extxyz
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.errors import ModelFileError
from mlmd_calc.io.files import naming
from mlmd_calc.optional import require

_AKMA_FS: Final = math.sqrt(1.0 / units.KCAL_PER_MOL) / units.FS
"""Unit of time of DCD files, in which mass is in amu, length in Å and energy in kcal/mol."""

_DCD_HEADER: Final = np.dtype(
    [
        *(("begin", "<i4"), ("magic", "S4"), ("frames", "<i4"), ("first", "<i4")),
        *(("every", "<i4"), ("last", "<i4"), ("zeros", "<i4", 5), ("interval", "<f4")),
        *(("cell", "<i4"), ("more_zeros", "<i4", 8), ("version", "<i4"), ("end", "<i4")),
        *(("title_begin", "<i4"), ("titles", "<i4"), ("title", "S80"), ("title_end", "<i4")),
        *(("atoms_begin", "<i4"), ("atoms", "<i4"), ("atoms_end", "<i4")),
    ]
)


class GrowingFile:
    """A file that grows.

    Parameters
    ----------
    path
        The file, which need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def cut(self, size: int) -> None:
        """Cut off what was written later.

        Raises
        ------
        ModelFileError
            If there is less than that.
        """
        if self.size < size:
            raise ModelFileError(
                f"{self.path} has {self.size} bytes, but the run that is to go on had written "
                f"{size}; bring back the file or start a new run"
            )
        with self.path.open("ab") as file:
            file.truncate(size)
        if size and self.path.suffix == ".dcd":
            self._count_dcd()

    def write(self, content: bytes) -> None:
        """Add whole frames, which a kill of this process does not tear."""
        with naming(self.path), self.path.open("ab") as file:
            file.write(content)

    def write_extxyz(self, frames: Iterable[ase.Atoms]) -> None:
        """Add frames as extended XYZ."""
        text = io.StringIO()
        for atoms in frames:
            write_extxyz(text, [atoms])
        self.write(text.getvalue().encode())

    def write_xtc(
        self, positions: NDArray[np.float64], times_ps: NDArray[Any], steps: NDArray[Any]
    ) -> None:
        """Add frames as XTC.

        Parameters
        ----------
        positions
            ``(f, n, 3)`` Å.
        times_ps, steps
            ``(f,)``, of each frame.
        """
        kind = mdtraj_formats().XTCTrajectoryFile
        part = self.path.with_name(f".{self.path.name}.part")
        try:
            with kind(str(part), "w", force_overwrite=True) as file:
                file.write(
                    (positions / units.NM).astype(np.float32),
                    times_ps.astype(np.float32),
                    steps.astype(np.int32),
                )
            with kind(str(part)) as file:
                complete = len(file) == len(positions)
            content = part.read_bytes()
        except RuntimeError:
            complete = False
        finally:
            part.unlink(missing_ok=True)
        if not complete:
            # All that mdtraj says of a full disk is a number, and nothing of one at closing.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self.write(content)

    def write_dcd(self, positions: NDArray[np.float64], interval_ps: float) -> None:
        """Add frames as DCD.

        Parameters
        ----------
        positions
            ``(f, n, 3)`` Å.
        interval_ps
            Time between frames of the file; 0 if there is none.
        """
        n = positions.shape[1]
        record = np.dtype([("begin", "<i4"), ("x", "<f4", n), ("end", "<i4")])
        records = np.zeros((len(positions), 3), dtype=record)
        records["begin"] = records["end"] = 4 * n
        records["x"] = positions.transpose(0, 2, 1)
        self.write((b"" if self.size else _dcd_header(n, interval_ps)) + records.tobytes())
        self._count_dcd()

    def _count_dcd(self) -> None:
        """Write the number of frames into the header, as readers go by it."""
        with self.path.open("r+b") as file:
            header = np.frombuffer(file.read(_DCD_HEADER.itemsize), dtype=_DCD_HEADER).copy()
            frame_bytes = 3 * 4 * (int(header["atoms"][0]) + 2)
            header["frames"] = header["last"] = (self.size - header.nbytes) // frame_bytes
            file.seek(0)
            file.write(header.tobytes())

    def sync(self) -> None:
        """Wait until all is on the disk."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())


def _dcd_header(atoms: int, interval_ps: float) -> bytes:
    header = np.zeros((), dtype=_DCD_HEADER)
    for name in ("begin", "end", "title_begin", "title_end"):
        header[name] = 84
    header["atoms_begin"] = header["atoms_end"] = 4
    header["magic"], header["every"], header["version"] = b"CORD", 1, 24
    header["titles"], header["title"], header["atoms"] = 1, b"mlmd", atoms
    header["interval"] = interval_ps * units.FS_PER_PS / _AKMA_FS
    return header.tobytes()


def mdtraj_formats() -> Any:
    """Files of mdtraj; MissingDependencyError if it is not installed."""
    return require("mdtraj.formats", extra="dcd", why="write DCD and XTC files")
