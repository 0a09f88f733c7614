"""Trajectories of ATLAS, MDGen and Timewarp in the layouts in which they are published.

=========  ================================================================================
data       what is read
=========  ================================================================================
ATLAS      ``CHAIN/CHAIN.pdb`` with ``CHAIN_R1.xtc`` to ``_R3.xtc`` (100 ps between frames) or
           ``CHAIN_prod_R1_fit.xtc`` to ``_R3_fit.xtc`` (10 ps): Vander Meersche et al.,
           Nucleic Acids Res. 52, D384 (2024); 300 K
MDGen      ``NAME/NAME.pdb`` with ``NAME.xtc`` (0.1 ps), heavy atoms; or ``NAME.npy`` and
           ``NAME_i100.npy``, ``(f, residues, 14, 3)`` Å in half precision, of which residues and
           times must be known: Jing, Stärk, Jaakkola and Berger, arXiv:2409.17808; 350 K.
           ``NAME_R1.npy`` to ``_R3`` are made of the runs of ATLAS, at 300 K
Timewarp   ``NAME-traj-arrays.npz`` with positions in nm and times in ps, and
           ``NAME-traj-state0.pdb``: Klein et al., arXiv:2302.01170; 310 K
=========  ================================================================================

No file states a temperature; it is that of the publication.
"""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.biomolecules.pdb import format_pdb
from mlmd_calc.biomolecules.reader import read_structure, structure_from_pdb
from mlmd_calc.biomolecules.residues import RESIDUES, UNKNOWN
from mlmd_calc.biomolecules.structure import BondedStructure
from mlmd_calc.biomolecules.system import build_system
from mlmd_calc.data.biomolecules.consistency import check_simulation
from mlmd_calc.data.biomolecules.frame_files import (
    POSITION_BYTES,
    check_whole,
    frame_interval,
    read_frames,
)
from mlmd_calc.data.biomolecules.trajectories import LETTERS, BiomolecularTrajectory
from mlmd_calc.errors import ConfigError, InputError, ModelFileError
from mlmd_calc.io.files import refuse_huge_array
from mlmd_calc.wording import counted

PathLike: TypeAlias = str | os.PathLike[str]

_TEMPERATURES_K: Final = {"atlas": 300.0, "mdgen": 350.0, "timewarp": 310.0}
_RUNS: Final = (1, 2, 3)
_ATLAS: Final = ("{name}_prod_R{run}_fit.xtc", "{name}_R{run}.xtc")
"""Names of the runs of ATLAS, that with more frames first."""
_ARRAYS: Final = "-traj-arrays.npz"
_SLOTS: Final = 14
"""Places for heavy atoms of a residue in the arrays of MDGen; OXT has none."""
_SLOT_NAMES: Final = {
    letter: (name, [atom for atom in residue.atoms if atom != "OXT"])
    for letter, (name, residue) in zip(LETTERS, RESIDUES.items(), strict=False)
    if residue.restype < UNKNOWN
}
"""Amino acid and atoms in the order of these places, that of names in PDB files."""
_OF_ATLAS: Final = re.compile(r"_R([123])(?:_|$)")
"""In the names of arrays that MDGen made of ATLAS: the run."""


def read_atlas(folder: PathLike, *, every: int = 1) -> list[BiomolecularTrajectory]:
    """Read the runs of one chain of ATLAS.

    Parameters
    ----------
    folder
        Has the name of the chain, e.g. ``16pk_A``, perhaps followed by ``_protein`` or
        ``_analysis``.
    every
        Take the first of so many frames.

    Returns
    -------
    list of BiomolecularTrajectory
        Replicas 1 to 3, as many as there are.

    Raises
    ------
    ConfigError
        If ``every`` is not positive.
    ModelFileError
        If files are missing or damaged.
    InputError
        If a residue is incomplete or another than it is called, molecules are not whole or mirror
        images, or frames not at equal spacing.
    MissingDependencyError
        If mdtraj is not installed.
    """
    _check_every(every)
    folder = Path(folder).resolve()
    topologies = sorted(folder.glob("*.pdb"))
    named = [path for path in topologies if folder.name.startswith(path.stem)]
    if len(named) != 1:
        raise ModelFileError(
            f"the folder {folder} has {len(named)} structures CHAIN.pdb that it is called after "
            f"(found: {', '.join(path.name for path in topologies) or 'no .pdb'}); give the "
            "unpacked folder of one chain"
        )
    name = named[0].stem
    for pattern in _ATLAS:
        runs = {run: folder / pattern.format(name=name, run=run) for run in _RUNS}
        found = {run: path for run, path in runs.items() if path.is_file()}
        if found:
            return [
                _with_topology(path, named[0], "atlas", replica=run, every=every)
                for run, path in found.items()
            ]
    wanted = " or ".join(pattern.format(name=name, run=1) for pattern in _ATLAS)
    raise ModelFileError(f"the folder {folder} has no run such as {wanted}")


def read_mdgen(
    path: PathLike,
    *,
    every: int = 1,
    interval_ps: float | None = None,
    sequence: str | None = None,
) -> BiomolecularTrajectory:
    """Read one peptide or protein of MDGen.

    Parameters
    ----------
    path
        A folder ``NAME`` with ``NAME.pdb`` and ``NAME.xtc``, or an array ``NAME.npy``.
    every
        Take the first of so many frames.
    interval_ps
        Time between the frames of the file, which arrays do not tell.
    sequence
        One-letter codes of the residues of an array; None for what its name has before the first
        ``_``, as peptides have it.

    Raises
    ------
    ConfigError
        If ``every`` is not positive, or there is a sequence for a folder.
    ModelFileError
        If files are missing, damaged, or of another kind.
    InputError
        If the content does not fit the sequence, molecules are not whole or mirror images, or
        nobody tells the time between frames.
    MissingDependencyError
        If mdtraj is needed but not installed.
    """
    _check_every(every)
    path = Path(path).resolve()
    if path.suffix == ".npy":
        return _slots(path, every, interval_ps, sequence)
    if sequence is not None:
        raise ConfigError(
            f"the sequence {sequence} is given, but {path} has its residues in a PDB file; leave "
            "it out"
        )
    frames, topology = (path / f"{path.name}{suffix}" for suffix in (".xtc", ".pdb"))
    if missing := [file.name for file in (frames, topology) if not file.is_file()]:
        raise ModelFileError(
            f"{path} is not a folder of MDGen, which would have {' and '.join(missing)}, and no "
            ".npy array"
        )
    return _with_topology(frames, topology, "mdgen", every=every, interval_ps=interval_ps)


def read_timewarp(
    path: PathLike, *, every: int = 1, interval_ps: float | None = None
) -> BiomolecularTrajectory:
    """Read one peptide of Timewarp.

    Parameters
    ----------
    path
        ``NAME-traj-arrays.npz``; ``NAME-traj-state0.pdb`` is beside it.
    every
        Take the first of so many frames.
    interval_ps
        Time between the frames of the file; needed only where it has no times.

    Raises
    ------
    ConfigError
        If ``every`` is not positive.
    ModelFileError
        If files are missing, damaged, or of another kind.
    InputError
        If positions do not fit the structure, molecules are not whole or mirror images, or frames
        are not at equal spacing.
    """
    _check_every(every)
    path = Path(path)
    if not path.name.endswith(_ARRAYS):
        raise ModelFileError(f"{path} is none of Timewarp by its name, which is NAME{_ARRAYS}")
    name = path.name.removesuffix(_ARRAYS)
    structure = read_structure(path.with_name(f"{name}-traj-state0.pdb"))
    try:
        with zipfile.ZipFile(path) as archive:
            keys = {entry.removesuffix(".npy") for entry in archive.namelist()}
            if "positions" not in keys:
                raise ModelFileError(
                    f"{path} has the arrays {sorted(keys)}, but Timewarp has positions"
                )
            refuse_huge_array(path, archive.getinfo("positions.npy").file_size)
        with np.load(path, allow_pickle=False) as arrays:
            positions = arrays["positions"]
            times = arrays["time"].astype(np.float64) if "time" in keys else np.zeros(0)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"{path} cannot be read ({error}); copy it again") from error
    if positions.ndim != 3 or positions.shape[1:] != (len(structure), 3):
        raise InputError(
            f"the positions of {path} have shape {positions.shape}, expected (frames, "
            f"{len(structure)}, 3) by the structure beside it"
        )
    if len(times) not in (0, len(positions)):
        raise InputError(
            f"{path} has {counted(len(times), 'time')} for {counted(len(positions), 'frame')}"
        )
    interval = frame_interval(path, times, interval_ps)
    frames = positions[::every].astype(np.float32) * np.float32(units.NM)
    return _trajectory(path, name, structure, frames, interval * every, "timewarp")


def _check_every(every: int) -> None:
    if every < 1:
        raise ConfigError(f"every is {every}; take at least every frame, 1")


def _with_topology(
    path: Path,
    topology: Path,
    source: str,
    *,
    every: int,
    replica: int = 0,
    interval_ps: float | None = None,
) -> BiomolecularTrajectory:
    structure = read_structure(topology)
    system = build_system(structure)
    frames, times = read_frames(path, len(structure), system.atoms, every)
    check_whole(path, frames, system.bonds, structure.numbers[system.atoms])
    interval = frame_interval(path, times, None if interval_ps is None else interval_ps * every)
    trajectory = BiomolecularTrajectory(
        name=topology.stem,
        structure=structure,
        system=system,
        positions=frames,
        dt_ps=interval,
        temperature_K=_TEMPERATURES_K[source],
        replica=replica,
        metadata={"source": path.name},
    )
    check_simulation(path, trajectory.structure, trajectory.system, trajectory.positions)
    return trajectory


def _slots(
    path: Path, every: int, interval_ps: float | None, sequence: str | None
) -> BiomolecularTrajectory:
    """Read an array with fourteen places for the atoms of each residue."""
    name = path.stem
    letters = name.partition("_")[0] if sequence is None else sequence
    if not letters or set(letters) - set(_SLOT_NAMES):
        raise InputError(
            f"{letters!r} is not a sequence of amino acids for {path}; give it in one-letter codes"
        )
    try:
        # Only what is taken out of it is read.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ModelFileError(f"{path} cannot be read ({error}); copy it again") from error
    expected = (len(letters), _SLOTS, 3)
    if array.ndim != 4 or array.shape[1:] != expected or len(array) == 0:
        raise InputError(
            f"{path} has shape {array.shape}, expected (frames, {', '.join(map(str, expected))}) "
            f"for {letters}; give its sequence"
        )
    names = [_SLOT_NAMES[letter][1] for letter in letters]
    filled = [residue * _SLOTS + k for residue, own in enumerate(names) for k in range(len(own))]
    refuse_huge_array(path, len(array) // every * len(filled) * POSITION_BYTES)
    frames = array[::every].reshape(-1, expected[0] * _SLOTS, 3)[:, filled].astype(np.float32)
    is_atom = np.zeros(expected[:2], dtype=bool)
    is_atom.flat[filled] = True
    there = np.any(array[[0, len(array) // 2, -1]] != 0.0, axis=(0, 3))
    if (there != is_atom).any():
        residue = int((there != is_atom).any(axis=1).argmax())
        raise InputError(
            f"{path} has {there[residue].sum()} atoms of residue {residue + 1}, which is "
            f"{_SLOT_NAMES[letters[residue]][0]} in the sequence {letters} and has "
            f"{is_atom[residue].sum()}; give the sequence of this very array"
        )
    structure = _heavy_structure(letters, frames[0].astype(np.float64))
    interval = frame_interval(path, np.zeros(0), interval_ps) * every
    run = _OF_ATLAS.search(name)
    if run is None:
        return _trajectory(path, name, structure, frames, interval, "mdgen")
    return _trajectory(path, name, structure, frames, interval, "atlas", int(run[1]))


def _heavy_structure(letters: str, positions: NDArray[np.float64]) -> BondedStructure:
    """Chain of amino acids, heavy atoms without OXT, with the bonds that a file would have."""
    atoms = [
        (residue, name) for residue, letter in enumerate(letters) for name in _SLOT_NAMES[letter][1]
    ]
    count = len(letters)
    bare = BondedStructure(
        names=tuple(name for _, name in atoms),
        numbers=np.array([atomic_numbers[name[0]] for _, name in atoms], dtype=np.int64),
        residues=np.array([residue for residue, _ in atoms], dtype=np.int64),
        residue_names=tuple(_SLOT_NAMES[letter][0] for letter in letters),
        residue_numbers=np.arange(1, count + 1),
        chains=np.zeros(count, dtype=np.int64),
        chain_names=("A",),
        bonds=np.zeros((0, 2), dtype=np.int64),
        charges=np.zeros(len(atoms), dtype=np.int64),
        positions=positions,
    )
    return structure_from_pdb(format_pdb(bare), positions)


def _trajectory(
    path: Path,
    name: str,
    structure: BondedStructure,
    frames: NDArray[np.float32],
    dt_ps: float,
    source: str,
    replica: int = 0,
) -> BiomolecularTrajectory:
    """Join frames with all atoms of a structure to it."""
    trajectory = BiomolecularTrajectory.from_frames(
        name,
        structure,
        frames,
        dt_ps,
        temperature_K=_TEMPERATURES_K[source],
        replica=replica,
        metadata={"source": path.name},
    )
    system = trajectory.system
    check_whole(path, trajectory.positions, system.bonds, structure.numbers[system.atoms])
    check_simulation(path, structure, system, trajectory.positions)
    return trajectory
