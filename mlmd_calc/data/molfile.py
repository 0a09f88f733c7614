"""Structures from MDL files (.mol, .sdf), with their formal charges, radicals and isotopes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import ase
import numpy as np
from ase.io.formats import open_with_compression

from mlmd_calc.errors import InputError
from mlmd_calc.optional import require

MOLFILE_SUFFIXES: Final = (".mol", ".sdf", ".sd")


def read_molfile(path: Path) -> ase.Atoms:
    """Read the molecule of a V2000 or V3000 file.

    Parameters
    ----------
    path
        File with one molecule and all its hydrogens; may be compressed.

    Returns
    -------
    ase.Atoms
        ``info`` holds the sum of the formal charges and, if there are radicals, the multiplicity
        with all unpaired electrons parallel. Isotopes have their masses.

    Raises
    ------
    InputError
        If the file cannot be read, holds several molecules, lacks hydrogens, or has valences that
        contradict its charges.
    MissingDependencyError
        If rdkit is not installed.
    """
    chem = require("rdkit.Chem", extra="data", why="read MDL files with their charges")
    base = require("rdkit.rdBase", extra="data", why="read MDL files with their charges")
    with base.BlockLogs():  # the reasons are in our own messages
        try:
            with open_with_compression(str(path), "rb") as file:
                records = list(chem.ForwardSDMolSupplier(file, sanitize=False, removeHs=False))
        except (OSError, RuntimeError) as error:
            raise InputError(f"{path} cannot be read as an MDL file: {error}") from error
        if len(records) > 1:
            raise InputError(
                f"{path} holds {len(records)} molecules; write the one that is meant into a file "
                "of its own"
            )
        if not records or records[0] is None or records[0].GetNumAtoms() == 0:
            raise InputError(f"{path} cannot be read as an MDL file; write it again")
        return _atoms(path, chem, records[0])


def _atoms(path: Path, chem: Any, graph: Any) -> ase.Atoms:
    problems = chem.DetectChemistryProblems(graph)
    if problems:
        raise InputError(
            f"{path}: {problems[0].Message().rstrip()}; correct the bonds or the formal charges"
        )
    chem.SanitizeMol(graph)
    missing = sum(atom.GetTotalNumHs() for atom in graph.GetAtoms())
    if missing:
        raise InputError(
            f"{path} lacks {missing} hydrogen atoms by its bonds and charges; add them with "
            "coordinates, or state the charges (M  CHG) and radicals (M  RAD)"
        )
    atoms = ase.Atoms(
        [atom.GetAtomicNum() for atom in graph.GetAtoms()],
        graph.GetConformer().GetPositions(),
        info={"charge": sum(atom.GetFormalCharge() for atom in graph.GetAtoms())},
    )
    unpaired = sum(atom.GetNumRadicalElectrons() for atom in graph.GetAtoms())
    if unpaired:
        atoms.info["multiplicity"] = 1 + unpaired
    isotope = np.array([atom.GetIsotope() > 0 for atom in graph.GetAtoms()])
    if isotope.any():
        masses = np.array([atom.GetMass() for atom in graph.GetAtoms()])
        atoms.set_masses(np.where(isotope, masses, atoms.get_masses()))
    return atoms
