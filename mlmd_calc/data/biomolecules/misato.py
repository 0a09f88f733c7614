"""Protein-ligand complexes of MISATO: Siebenmorgen et al., Nat. Comput. Sci. 4, 367 (2024).

``MD.hdf5`` holds 100 frames, 80 ps apart at 300 K, of every complex, without water and ions and
without names of atoms. The names come from the Amber topologies that are published beside it, as
``PDBID/production.top``, from which water, Na+ and Cl- are taken out.

What is taken is what ATMOS was trained on (arXiv:2603.17633): complexes with a ligand that stays
within 12 Å of the protein; heavy atoms.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from mlmd_calc.biomolecules.structure import BondedStructure
from mlmd_calc.data.biomolecules.consistency import check_bonds, check_natural, check_residues
from mlmd_calc.data.biomolecules.trajectories import BiomolecularTrajectory
from mlmd_calc.data.hdf5 import open_hdf5, read_array
from mlmd_calc.errors import ConfigError, InputError, ModelFileError
from mlmd_calc.optional import require

DT_PS: Final = 80.0
"""Time between frames."""

TEMPERATURE_K: Final = 300.0

LIGAND: Final = "MOL"
"""Residue name of ligands."""

_SOLVENT: Final = ("WAT", "Na+", "Cl-")
_FARTHEST: Final = 12.0
"""Å from the ligand to the protein."""


def misato_names(path: str | os.PathLike[str]) -> list[str]:
    """List the complexes of a file by their PDB codes.

    Raises
    ------
    ModelFileError
        If the file is missing or no HDF5 file.
    MissingDependencyError
        If h5py is not installed.
    """
    with open_hdf5(Path(path)) as file:
        return sorted(file)


def read_misato(
    path: str | os.PathLike[str], name: str, topology: str | os.PathLike[str]
) -> BiomolecularTrajectory:
    """Read the run of one complex; the ligand's conformer is that of the first frame, uncharged.

    Parameters
    ----------
    path
        ``MD.hdf5``.
    name
        PDB code, in capital letters.
    topology
        ``production.top`` of the complex, with or without solvent.

    Raises
    ------
    ConfigError
        If the file has no such complex.
    ModelFileError
        If a file is missing or damaged, or the two do not have the same atoms.
    InputError
        If the complex is none that ATMOS was trained on: it has no residue MOL, the ligand leaves
        the protein, there are residues the features do not know, or the protein is a mirror image.
    MissingDependencyError
        If h5py or mdtraj is not installed.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        if name not in file:
            raise ConfigError(f"{path} holds no complex {name!r}; misato_names lists those it has")
        group = file[name]
        numbers = read_array(group, "atoms_number", np.int64, (None,))
        frames = read_array(group, "trajectory_coordinates", np.float32, (None, len(numbers), 3))
        begins = read_array(group, "molecules_begin_atom_index", np.int64, (None,))
    if len(frames) == 0 or len(begins) == 0 or begins[0] != 0:
        raise ModelFileError(
            f"{path}: {name} has no frames or no first molecule; download it again"
        )
    structure = _structure(Path(topology), numbers, frames[0], begins)
    if LIGAND not in structure.residue_names:
        raise InputError(
            f"{name}: no residue is called {LIGAND}; complexes whose ligand is a peptide are left "
            "out"
        )
    trajectory = BiomolecularTrajectory.from_frames(
        name,
        structure,
        frames,
        DT_PS,
        temperature_K=TEMPERATURE_K,
        metadata={"source": path.name, "data_set": "MISATO"},
    )
    check_bonds(trajectory.name, trajectory.positions, trajectory.system.bonds)
    check_residues(path, trajectory.structure, trajectory.system, trajectory.positions)
    check_natural(path, trajectory.system)
    _check_bound(trajectory)
    return trajectory


def _structure(
    path: Path,
    numbers: NDArray[np.int64],
    start: NDArray[np.float32],
    begins: NDArray[np.int64],
) -> BondedStructure:
    """Names, residues and bonds of the topology for the atoms of the HDF5 file."""
    top = _read_topology(path)
    atoms = [atom for atom in top.atoms if atom.residue.name not in _SOLVENT]
    found = np.array([atom.element.atomic_number for atom in atoms], dtype=np.int64)
    if not np.array_equal(found, numbers):
        raise ModelFileError(
            f"{path} has {len(found)} atoms without solvent, MD.hdf5 has {len(numbers)} or other "
            "elements in another order; take the topology of the same complex"
        )
    place = {atom.index: i for i, atom in enumerate(atoms)}
    bonds = [(place[a.index], place[b.index]) for a, b in top.bonds if a.index in place]
    residue_of = [atom.residue.index for atom in atoms]
    first, residues = np.unique(residue_of, return_index=True, return_inverse=True)[1:]
    kept = [atoms[i].residue for i in first]
    return BondedStructure(
        names=tuple(atom.name for atom in atoms),
        numbers=numbers,
        residues=residues.astype(np.int64),
        residue_names=tuple(residue.name for residue in kept),
        residue_numbers=np.array([residue.index + 1 for residue in kept], dtype=np.int64),
        chains=np.searchsorted(begins, first, side="right") - 1,
        chain_names=tuple(str(index + 1) for index in range(len(begins))),
        bonds=np.array(bonds, dtype=np.int64).reshape(-1, 2),
        charges=np.zeros(len(numbers), dtype=np.int64),
        positions=start.astype(np.float64),
    )


def _read_topology(path: Path) -> Any:
    mdtraj = require("mdtraj", extra="dcd", why="read Amber topologies")
    if not path.is_file():
        raise ModelFileError(f"the topology {path} does not exist")
    try:
        # Standard names would hide the protonation states of histidine.
        return mdtraj.load_prmtop(str(path), standard_names=False)
    except Exception as error:  # mdtraj raises whatever its parser meets
        raise ModelFileError(f"{path} cannot be read as an Amber topology: {error}") from error


def _check_bound(trajectory: BiomolecularTrajectory) -> None:
    ligand = trajectory.system.features.is_ligand.numpy()
    for frame, positions in enumerate(trajectory.positions):
        distance = KDTree(positions[~ligand]).query(positions[ligand])[0].min()
        if distance > _FARTHEST:
            raise InputError(
                f"{trajectory.name}: in frame {frame} the ligand is {distance:.1f} Å from the "
                f"protein, allowed are {_FARTHEST:g} Å; complexes that come apart are left out"
            )
