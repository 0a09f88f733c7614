"""Trajectory files of frames that are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import ase
import numpy as np
from numpy.typing import NDArray

from mlmd_calc.biomolecules import BondedStructure
from mlmd_calc.biomolecules.pdb import format_pdb, format_structure
from mlmd_calc.io.growing import GrowingFile
from mlmd_calc.options import one_of


class TrajectoryFile(GrowingFile):
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
        super().__init__(path)
        self.topology = topology
        self.interval_ps = interval_ps
        self._append = _WRITERS[one_of("format", path.suffix.removeprefix("."), _WRITERS)]

    def append(self, frames: NDArray[np.float64], first: int) -> None:
        """Add frames, and wait until they are on the disk.

        Parameters
        ----------
        frames
            ``(f, n, 3)`` Å.
        first
            Index of the first of them in the trajectory.
        """
        self._append(self, frames, first)
        self.sync()

    def _append_extxyz(self, frames: NDArray[np.float64], first: int) -> None:
        self.write_extxyz(
            ase.Atoms(
                self.topology.numbers,
                frame,
                info={"frame": index, "time_ps": index * self.interval_ps},
            )
            for index, frame in enumerate(frames, start=first)
        )

    def _append_xtc(self, frames: NDArray[np.float64], first: int) -> None:
        steps = np.arange(first, first + len(frames))
        self.write_xtc(frames, steps * self.interval_ps, steps)

    def _append_pdb(self, frames: NDArray[np.float64], first: int) -> None:
        text = "".join(
            f"MODEL{index:9d}\n{format_pdb(self.topology, frame)}ENDMDL\n"
            for index, frame in enumerate(frames, start=first)
        )
        self.write(text.encode())

    def _append_dcd(self, frames: NDArray[np.float64], _: int) -> None:
        self.write_dcd(frames, self.interval_ps)


_WRITERS: Final[Mapping[str, Callable[[TrajectoryFile, NDArray[np.float64], int], None]]] = (
    MappingProxyType(
        {
            "xtc": TrajectoryFile._append_xtc,
            "dcd": TrajectoryFile._append_dcd,
            "extxyz": TrajectoryFile._append_extxyz,
            "pdb": TrajectoryFile._append_pdb,
        }
    )
)

FORMATS: Final = tuple(_WRITERS)
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
