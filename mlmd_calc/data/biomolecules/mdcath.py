"""Protein domains of mdCATH: Mirarchi, Giorgino and De Fabritiis, Sci. Data 11, 1299 (2024).

One HDF5 file per CATH domain, with five runs at each of five temperatures and a frame every ns.
What is taken is what ATMOS was trained on (arXiv:2603.17633): runs at 320 K, the first 400 frames,
heavy atoms without the caps of the termini.

The published split has 1000 domains for training, 50 for validation and 64 for tests, the latter
with a mean sequence similarity of 19 % to the former. Which ones is not public.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import ase
import numpy as np
from numpy.typing import NDArray

from mlmd_calc.biomolecules.structure import BondedStructure
from mlmd_calc.data.biomolecules.consistency import check_bonds, check_simulation
from mlmd_calc.data.biomolecules.trajectories import BiomolecularTrajectory
from mlmd_calc.data.hdf5 import open_hdf5, read_array
from mlmd_calc.errors import ConfigError, ModelFileError
from mlmd_calc.geometry.bonds import find_bonds
from mlmd_calc.options import whole_number
from mlmd_calc.wording import counted

DT_PS: Final = 1000.0
"""Time between frames."""

_CAP_RESIDUES: Final = ("ACE", "NME", "NMA", "CT2", "CT3")
_CAP_ATOMS: Final = ("CAY", "CY", "OY", "NT", "CAT")
"""Heavy atoms of caps that CHARMM counts among the atoms of the first and last residue."""


def read_mdcath(
    path: str | os.PathLike[str],
    *,
    temperature_K: int = 320,
    frames: int = 400,
) -> list[BiomolecularTrajectory]:
    """Read the runs of one domain.

    Without hydrogens and caps, amino acids get the charges of pH 7 and ends of chains are charged.

    Parameters
    ----------
    path
        ``mdcath_dataset_DOMAIN.h5``.
    temperature_K
        320, 348, 379, 413 or 450.
    frames
        Frames to read from the beginning of a run, fewer if it is shorter.

    Returns
    -------
    list of BiomolecularTrajectory
        One per run, called by the domain.

    Raises
    ------
    ConfigError
        If the temperature is not in the file, or ``frames`` is not positive.
    ModelFileError
        If the file is missing, damaged, or not of mdCATH.
    InputError
        If a residue is incomplete or another than it is called, or molecules are not whole or
        mirror images.
    MissingDependencyError
        If h5py is not installed.
    """
    whole_number("frames", frames, 1)
    path = Path(path)
    with open_hdf5(path) as file:
        domains = [name for name in file if f"{name}/pdbProteinAtoms" in file]
        if len(domains) != 1:
            raise ModelFileError(
                f"{path} holds {len(domains)} groups with 'pdbProteinAtoms'; a file of mdCATH has "
                "exactly one, called by its domain"
            )
        domain = file[domains[0]]
        runs = _member(domain, str(temperature_K), "temperature")
        structure, kept = _structure(domain)
        trajectories = []
        for replica in sorted(int(key) for key in runs if key.isdigit()):
            run = _member(runs, str(replica), "replica")
            coords = read_array(run, "coords", np.float32, (None, len(kept), 3), rows=frames)
            trajectory = BiomolecularTrajectory.from_frames(
                domains[0],
                structure,
                coords[:, kept],
                DT_PS,
                temperature_K=float(temperature_K),
                replica=replica,
                metadata={"source": path.name, "data_set": "mdCATH"},
            )
            check_bonds(trajectory.name, trajectory.positions, trajectory.system.bonds)
            check_simulation(path, structure, trajectory.system, trajectory.positions)
            trajectories.append(trajectory)
    return trajectories


def _member(group: Any, key: str, kind: str) -> Any:
    if not hasattr(group.get(key), "keys"):
        there = ", ".join(name for name in group if name.isdigit()) or "none"
        raise ConfigError(
            f"{group.file.filename} has no {kind} {key} in {group.name}; there are {there}"
        )
    return group[key]


def _structure(domain: Any) -> tuple[BondedStructure, NDArray[np.bool_]]:
    """Heavy atoms of the protein where the simulation started, and which of the stored they are."""
    numbers = read_array(domain, "z", np.int64, (None,))
    count = len(numbers)
    names, positions = _pdb_atoms(domain, count)
    residue_names = read_array(domain, "resname", str, (count,))
    residue_numbers = read_array(domain, "resid", np.int64, (count,))
    chains = read_array(domain, "chain", str, (count,))
    kept = (numbers > 1) & ~np.isin(residue_names, _CAP_RESIDUES) & ~np.isin(names, _CAP_ATOMS)
    numbers, positions, names = numbers[kept], positions[kept], names[kept]
    places = list(zip(chains[kept], residue_numbers[kept], residue_names[kept], strict=True))
    begins = np.array([i == 0 or places[i - 1] != place for i, place in enumerate(places)])
    first = np.flatnonzero(begins)
    chain_names, chain_of = np.unique(chains[kept][first], return_inverse=True)
    structure = BondedStructure(
        names=tuple(names.tolist()),
        numbers=numbers,
        residues=np.cumsum(begins) - 1,
        residue_names=tuple(residue_names[kept][first].tolist()),
        residue_numbers=residue_numbers[kept][first],
        chains=chain_of.astype(np.int64),
        chain_names=tuple(chain_names.tolist()),
        bonds=find_bonds(ase.Atoms(numbers, positions)).pairs,
        charges=np.zeros(len(numbers), dtype=np.int64),
        positions=positions,
    )
    return structure, kept


def _pdb_atoms(domain: Any, count: int) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
    """Names and start positions from the PDB text, whose columns are fixed."""
    text = str(read_array(domain, "pdbProteinAtoms", str, ()))
    lines = [line for line in text.splitlines() if line.startswith(("ATOM", "HETATM"))]
    if len(lines) != count:
        raise ModelFileError(
            f"{domain.file.filename}: pdbProteinAtoms has {counted(len(lines), 'atom')}, z has "
            f"{count}; the file is damaged"
        )
    names = np.array([line[12:16].strip() for line in lines])
    try:
        positions = np.array([[line[i : i + 8] for i in (30, 38, 46)] for line in lines], float)
    except ValueError as error:
        raise ModelFileError(
            f"{domain.file.filename}: pdbProteinAtoms has no positions in columns 31-54 ({error})"
        ) from error
    return names, positions
