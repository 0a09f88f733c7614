"""Trajectory files that grow while frames are drawn, and can be cut back to what they were."""

from __future__ import annotations

import errno
import io
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import ase
import numpy as np
from ase.io.extxyz import write_extxyz
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.biomolecules import BondedStructure
from mlmd_calc.biomolecules.pdb import format_pdb, format_structure
from mlmd_calc.errors import ModelFileError
from mlmd_calc.optional import require
from mlmd_calc.options import one_of

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


class TrajectoryFile:
    """A trajectory file that grows.

    Parameters
    ----------
    path
        File to write; its suffix, one of `FORMATS`, decides. ``.xtc`` holds positions to 0.01 Å,
        ``.dcd`` in single precision, ``.pdb`` to 0.001 Å, ``.extxyz`` to 8 digits after the point.
    topology
        Names and residues of the atoms.
    interval_ps
        Time between frames.

    Raises
    ------
    ConfigError
        If the suffix is none of these.
    """

    def __init__(self, path: Path, topology: BondedStructure, interval_ps: float) -> None:
        self.path = path
        self.topology = topology
        self.interval_ps = interval_ps
        self._encode = _ENCODERS[one_of("format", path.suffix.removeprefix("."), _ENCODERS)]

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

    def append(self, frames: NDArray[np.float64], first: int) -> None:
        """Add frames, and wait until they are on the disk.

        Parameters
        ----------
        frames
            ``(f, n, 3)`` Å.
        first
            Index of the first of them in the trajectory.
        """
        content = self._encode(self, frames, first)
        with self.path.open("ab") as file:
            file.write(content)
        if self.path.suffix == ".dcd":
            self._count_dcd(first + len(frames))
        with self.path.open("rb") as file:
            os.fsync(file.fileno())

    def _encode_extxyz(self, frames: NDArray[np.float64], first: int) -> bytes:
        text = io.StringIO()
        for index, frame in enumerate(frames, start=first):
            info = {"frame": index, "time_ps": index * self.interval_ps}
            write_extxyz(text, [ase.Atoms(self.topology.numbers, frame, info=info)])
        return text.getvalue().encode()

    def _encode_xtc(self, frames: NDArray[np.float64], first: int) -> bytes:
        steps = np.arange(first, first + len(frames))

        def write(path: str) -> None:
            kind = _mdtraj_formats().XTCTrajectoryFile
            try:
                with kind(path, "w", force_overwrite=True) as file:
                    file.write(
                        (frames / units.NM).astype(np.float32),
                        (steps * self.interval_ps).astype(np.float32),
                        steps.astype(np.int32),
                    )
                with kind(path) as file:
                    complete = len(file) == len(frames)
            except RuntimeError:
                complete = False
            if not complete:
                # All that mdtraj says of a full disk is a number, and nothing of one at closing.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

        return self._written(write)

    def _encode_pdb(self, frames: NDArray[np.float64], first: int) -> bytes:
        return "".join(
            f"MODEL{index:9d}\n{format_pdb(self.topology, frame)}ENDMDL\n"
            for index, frame in enumerate(frames, start=first)
        ).encode()

    def _encode_dcd(self, frames: NDArray[np.float64], first: int) -> bytes:
        n = frames.shape[1]
        record = np.dtype([("begin", "<i4"), ("x", "<f4", n), ("end", "<i4")])
        records = np.zeros((len(frames), 3), dtype=record)
        records["begin"] = records["end"] = 4 * n
        records["x"] = frames.transpose(0, 2, 1)
        return (b"" if first else self._dcd_header(n)) + records.tobytes()

    def _dcd_header(self, atoms: int) -> bytes:
        header = np.zeros((), dtype=_DCD_HEADER)
        for name in ("begin", "end", "title_begin", "title_end"):
            header[name] = 84
        header["atoms_begin"] = header["atoms_end"] = 4
        header["magic"], header["every"], header["version"] = b"CORD", 1, 24
        header["titles"], header["title"], header["atoms"] = 1, b"mlmd sample", atoms
        header["interval"] = self.interval_ps * units.FS_PER_PS / _AKMA_FS
        return header.tobytes()

    def _count_dcd(self, frames: int) -> None:
        """Write the number of frames into the header."""
        number = np.array(frames, dtype="<i4").tobytes()
        with self.path.open("r+b") as file:
            for name in ("frames", "last"):
                file.seek(_DCD_HEADER.fields[name][1])  # type: ignore[index]
                file.write(number)

    def _written(self, write: Callable[[str], None]) -> bytes:
        """Bytes that a function writes into a file."""
        part = self.path.with_name(f".{self.path.name}.part")
        try:
            write(str(part))
            return part.read_bytes()
        finally:
            part.unlink(missing_ok=True)


_ENCODERS: Final[Mapping[str, Callable[[TrajectoryFile, NDArray[np.float64], int], bytes]]] = (
    MappingProxyType(
        {
            "xtc": TrajectoryFile._encode_xtc,
            "dcd": TrajectoryFile._encode_dcd,
            "extxyz": TrajectoryFile._encode_extxyz,
            "pdb": TrajectoryFile._encode_pdb,
        }
    )
)

FORMATS: Final = tuple(_ENCODERS)
"""Suffixes of the files that can be written."""


def topology_of(structure: BondedStructure, atoms: NDArray[np.int64]) -> BondedStructure:
    """Names, residues and bonds of some atoms of a structure; its residues stay numbered."""
    place = np.full(len(structure), -1)
    place[atoms] = np.arange(len(atoms))
    bonds = place[structure.bonds]
    return replace(
        structure,
        names=tuple(structure.names[atom] for atom in atoms.tolist()),
        numbers=structure.numbers[atoms],
        residues=structure.residues[atoms],
        bonds=bonds[(bonds >= 0).all(axis=1)],
        charges=structure.charges[atoms],
        positions=structure.positions[atoms],
    )


def write_start(path: Path, topology: BondedStructure, positions: NDArray[np.float64]) -> None:
    """Write one structure ``(n, 3)`` Å as PDB, which tells other programs what the atoms are."""
    path.write_text(format_structure(topology, positions))


def _mdtraj_formats() -> Any:
    return require("mdtraj.formats", extra="dcd", why="write trajectories")
