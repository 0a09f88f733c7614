"""Trajectories of peptides, proteins and complexes at equal frame spacing, and their files.

Beside npz files, XTC and DCD files of other programs are read, with a topology.

==========  ================================================================================
layout      keys
==========  ================================================================================
heavy       x ``(f, a, 3)`` Å, heavy atoms in the order of the network; dt_ps; name; replica;
            temperature_K (NaN if unknown); ligands and metadata (JSON objects of strings); and
            the structure with its hydrogens: the fields of `BondedStructure`
all atoms   x ``(f, n, 3)`` Å, all atoms in the order of pdb; dt_ps; pdb (text, as of a PDB
            file); optional temperature_K
==========  ================================================================================

`write_biomolecular_trajectory` writes the first. A file of the second is named by its stem, whose
ending ``_rK`` is the number of the replica.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from mlmd_calc.biomolecules.reader import read_structure, structure_from_pdb
from mlmd_calc.biomolecules.residues import UNKNOWN
from mlmd_calc.biomolecules.structure import BondedStructure
from mlmd_calc.biomolecules.system import MolecularSystem, build_system
from mlmd_calc.data.biomolecules.consistency import check_hands
from mlmd_calc.data.biomolecules.frame_files import (
    FRAME_FILES,
    check_whole,
    frame_interval,
    read_frames,
)
from mlmd_calc.errors import InputError, MLMDError, ModelFileError
from mlmd_calc.io.npz import Arrays, Layouts, data_files, load_layout, reading, write_npz

PathLike: TypeAlias = str | os.PathLike[str]

LETTERS: Final = "ARNDCQEGHILKMFPSTWYV"
"""One-letter codes in the order of the residue classes."""

_LATER: Final = ("insertion_codes", "notes")
"""Fields that older files lack."""
_DRAWN: Final = 0.9
"""Share of frames of other programs that may have the other hand somewhere: a model drew them."""
_NAMES: Final = ("names", "residue_names", "chain_names", *_LATER)
_STRUCTURE: Final = tuple(
    entry.name for entry in fields(BondedStructure) if entry.name not in _LATER
)


@dataclass(frozen=True)
class BiomolecularTrajectory:
    """Frames of one system at equal spacing: one uninterrupted run of molecular dynamics.

    Attributes
    ----------
    name
        Name of the molecule or complex, the same for all its replicas; the unit by which data are
        split.
    structure
        The structure as the engine had it, with hydrogens if it had any.
    system
        What the network knows of it: `build_system` of ``structure`` and ``ligands``.
    positions
        ``(f, a, 3)`` Å, single precision: the atoms of ``system`` in their order. Molecules are
        whole; the pose is arbitrary.
    dt_ps
        Time between frames in ps.
    temperature_K
        Temperature of the run, or None if unknown.
    replica
        Number of the run among those of the same molecule and temperature.
    ligands
        SMILES by residue name, as given to `build_system`.
    metadata
        Provenance.

    Raises
    ------
    InputError
        If positions do not fit the system or are not finite, there is no frame, or ``dt_ps`` is not
        positive.
    """

    name: str
    structure: BondedStructure
    system: MolecularSystem
    positions: NDArray[np.float32]
    dt_ps: float
    temperature_K: float | None = None  # noqa: N815
    replica: int = 0
    ligands: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = (len(self.system.atoms), 3)
        if self.positions.shape[1:] != expected or len(self.positions) == 0:
            raise InputError(
                f"trajectory {self.name!r}: positions have shape {self.positions.shape}, expected "
                f"(frames, {expected[0]}, 3) with at least one frame"
            )
        finite = np.isfinite(self.positions).all(axis=(1, 2))
        if not finite.all():
            raise InputError(
                f"trajectory {self.name!r}: positions of frame {int(np.argmin(finite))} are not "
                "finite; remove the frames from there on"
            )
        if not 0.0 < self.dt_ps < np.inf:
            raise InputError(
                f"trajectory {self.name!r}: dt_ps is {self.dt_ps}; the time between frames must be "
                "positive"
            )

    @classmethod
    def from_frames(
        cls,
        name: str,
        structure: BondedStructure,
        frames: NDArray[np.floating],
        dt_ps: float,
        *,
        temperature_K: float | None = None,
        replica: int = 0,
        ligands: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> BiomolecularTrajectory:
        """Take the network's atoms out of frames with all atoms of a structure.

        Parameters
        ----------
        name, dt_ps, temperature_K, replica, ligands, metadata
            As the attributes.
        structure
            Names, bonds, and the positions that become the reference of the system.
        frames
            ``(f, n, 3)`` Å, in the order of the structure.

        Raises
        ------
        InputError
            If frames do not fit the structure, or `build_system` refuses it.
        """
        if frames.ndim != 3 or frames.shape[1:] != (len(structure), 3) or len(frames) == 0:
            raise InputError(
                f"trajectory {name!r}: frames have shape {frames.shape}, expected (frames, "
                f"{len(structure)}, 3) with at least one frame"
            )
        system = build_system(structure, ligands)
        return cls(
            name=name,
            structure=structure,
            system=system,
            positions=frames[:, system.atoms].astype(np.float32),
            dt_ps=dt_ps,
            temperature_K=temperature_K,
            replica=replica,
            ligands=dict(ligands or {}),
            metadata=dict(metadata or {}),
        )

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def sequence(self) -> str:
        """One-letter codes of the amino acids in the order of the tokens."""
        restypes = self.system.features.restype.tolist()
        return "".join(LETTERS[index] for index in restypes if index < UNKNOWN)


def read_trajectories(
    paths: PathLike | Iterable[PathLike],
    *,
    topology: PathLike | None = None,
    interval_ps: float | None = None,
) -> list[BiomolecularTrajectory]:
    """Read trajectories from npz files, or from those of other programs.

    Parameters
    ----------
    paths
        Files or directories of files; of a directory all files ending in .npz. Others are .xtc and
        .dcd files, whose molecules must be whole; each is a run of the molecule of the topology.
    topology
        PDB or mmCIF file with the atoms of the .xtc and .dcd files in their order.
    interval_ps
        Time between the frames of .dcd files, and of .xtc files without times.

    Returns
    -------
    list of BiomolecularTrajectory
        In the order of the paths, directories sorted by file name.

    Raises
    ------
    ModelFileError
        If a file does not exist, is damaged, or has an unknown layout.
    InputError
        If the content of a file contradicts itself, or there is no file.

    Examples
    --------
    >>> trajectories = read_trajectories("peptides")  # doctest: +SKIP
    >>> trajectories[0].positions.shape  # doctest: +SKIP
    (12500, 10, 3)
    """
    listed = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    files = [file for path in listed for file in data_files(Path(path), _is_npz, ".npz")]
    if not files:
        raise InputError("the list of trajectory files is empty; name at least one")
    return [
        _read_foreign(file, topology, interval_ps, replica)
        if file.suffix.lower() in FRAME_FILES
        else _read(file)
        for replica, file in enumerate(files)
    ]


def _read_foreign(
    path: Path, topology: PathLike | None, interval_ps: float | None, replica: int
) -> BiomolecularTrajectory:
    if topology is None:
        raise InputError(f"{path} has positions only; give the topology, a PDB or mmCIF file")
    structure = read_structure(topology)
    system = build_system(structure)
    frames, times = read_frames(path, len(structure), system.atoms)
    check_whole(path, frames, system.bonds, structure.numbers[system.atoms])
    check_hands(path, structure, system, frames, tolerated=_DRAWN)
    return BiomolecularTrajectory(
        name=Path(topology).stem,
        structure=structure,
        system=system,
        positions=frames,
        dt_ps=frame_interval(path, times, interval_ps),
        replica=replica,
        metadata={"source": path.name},
    )


def _is_npz(path: Path) -> bool:
    return path.suffix == ".npz"


def _read(path: Path) -> BiomolecularTrajectory:
    if not zipfile.is_zipfile(path):
        raise ModelFileError(
            f"{path} is neither an npz file, in which trajectories of ATMOS are kept, nor of "
            f"{' and '.join(FRAME_FILES)}, which are read with a topology; read other frames with "
            "mdtraj or MDAnalysis, the structure with read_structure, join them with "
            "BiomolecularTrajectory.from_frames, and write them with write_biomolecular_trajectory"
        )
    with reading(path):
        kind = "layout of biomolecular trajectories"
        parse, arrays = load_layout(path, _LAYOUTS, _OPTIONAL.__contains__, kind)
        try:
            return parse(path, arrays)
        except MLMDError as error:
            raise type(error)(f"{path}: {error}") from error


def _heavy(path: Path, arrays: Arrays) -> BiomolecularTrajectory:
    known: dict[str, Any] = {key: arrays[key] for key in (*_STRUCTURE, *_LATER) if key in arrays}
    known |= {key: tuple(known[key].tolist()) for key in _NAMES if key in known}
    structure = BondedStructure(**known)
    ligands = json.loads(str(arrays["ligands"]))
    system = build_system(structure, ligands)
    frames = arrays["x"].astype(np.float32)
    if len(frames) and frames.shape[1] == len(system.atoms):
        # Written when the order of atoms followed names that builders had given by chance.
        frames = system.exchange_arms(torch.from_numpy(frames)).numpy()
    return BiomolecularTrajectory(
        name=str(arrays["name"]),
        structure=structure,
        system=system,
        positions=frames,
        dt_ps=float(arrays["dt_ps"]),
        temperature_K=_temperature(arrays),
        replica=int(arrays["replica"]),
        ligands=ligands,
        metadata={"source": path.name, **json.loads(str(arrays["metadata"]))},
    )


def _all_atoms(path: Path, arrays: Arrays) -> BiomolecularTrajectory:
    # The text may hold a structure with overlapping atoms, from which no bond can be told.
    structure = structure_from_pdb(str(arrays["pdb"]), arrays["x"][0].astype(np.float64))
    numbered = re.fullmatch(r"(.+)_r(\d+)", path.stem)
    return BiomolecularTrajectory.from_frames(
        numbered[1] if numbered else path.stem,
        structure,
        arrays["x"],
        float(arrays["dt_ps"]),
        temperature_K=_temperature(arrays),
        replica=int(numbered[2]) if numbered else 0,
        metadata={"source": path.name},
    )


def _temperature(arrays: Arrays) -> float | None:
    value = float(arrays.get("temperature_K", np.nan))
    return None if np.isnan(value) else value


_LAYOUTS: Final[Layouts[BiomolecularTrajectory]] = (
    (frozenset({"x", "dt_ps", "name", "replica", "ligands", "metadata", *_STRUCTURE}), _heavy),
    (frozenset({"x", "dt_ps", "pdb"}), _all_atoms),
)
_OPTIONAL: Final = frozenset({"temperature_K", *_LATER})


def write_biomolecular_trajectory(path: PathLike, trajectory: BiomolecularTrajectory) -> None:
    """Write a trajectory as npz; the file appears complete or not at all.

    Parameters
    ----------
    path
        Ends in ``.npz``.
    trajectory
        What to write.

    Raises
    ------
    InputError
        If the path does not end in ``.npz``.
    """
    temperature = trajectory.temperature_K
    arrays = {
        **{key: np.asarray(getattr(trajectory.structure, key)) for key in _STRUCTURE},
        **{key: np.array(getattr(trajectory.structure, key), dtype=np.str_) for key in _LATER},
        "x": trajectory.positions,
        "dt_ps": np.float64(trajectory.dt_ps),
        "name": np.str_(trajectory.name),
        "replica": np.int64(trajectory.replica),
        "temperature_K": np.float64(np.nan if temperature is None else temperature),
        "ligands": np.str_(json.dumps(dict(trajectory.ligands), sort_keys=True)),
        "metadata": np.str_(json.dumps(dict(trajectory.metadata), sort_keys=True)),
    }
    write_npz(Path(path), arrays)
