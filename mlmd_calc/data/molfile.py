"""Structures from MDL files (.mol, .sdf), with their formal charges, radicals and isotopes."""

from __future__ import annotations

import io
import lzma
import re
import zlib
from pathlib import Path
from typing import Any, Final

import ase
import numpy as np
from ase.io.formats import open_with_compression

from mlmd_calc.electrons import electronic_state, is_total, store_state
from mlmd_calc.errors import InputError
from mlmd_calc.optional import require

MOLFILE_SUFFIXES: Final = (".mol", ".sdf", ".sd")

_RADICALS: Final = re.compile(rb"^M  RAD +\d+((?: +\d+ +\d+)+)", re.MULTILINE)
_RADICAL: Final = re.compile(rb"^M  V30 .* RAD=(\d+)", re.MULTILINE)
_SINGLET: Final = 1
"""What stands for two electrons that are paired; 2 is a doublet, 3 a triplet."""


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
        with all unpaired electrons parallel; those of a singlet carbene are paired. Data fields of
        names such as ``charge`` and ``multiplicity`` must agree, by the rule of
        `mlmd_calc.electrons`. Isotopes have their masses.

    Raises
    ------
    InputError
        If the file cannot be read, holds several molecules or a drawing in the plane, lacks
        hydrogens, or has valences or data fields that contradict its charges.
    MissingDependencyError
        If rdkit is not installed.
    """
    chem = require("rdkit.Chem", extra="data", why="read MDL files with their charges")
    base = require("rdkit.rdBase", extra="data", why="read MDL files with their charges")
    with base.BlockLogs():  # the reasons are in our own messages
        try:
            with open_with_compression(str(path), "rb") as file:
                # Empty lines at the end would pass for one more molecule.
                content = file.read().rstrip() + b"\n"
            records = list(
                chem.ForwardSDMolSupplier(io.BytesIO(content), sanitize=False, removeHs=False)
            )
        except (OSError, RuntimeError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise InputError(f"{path} cannot be read as an MDL file: {error}") from error
        if len(records) > 1:
            raise InputError(
                f"{path} holds {len(records)} molecules; write the one that is meant into a file "
                "of its own"
            )
        if not records or records[0] is None or records[0].GetNumAtoms() == 0:
            raise InputError(f"{path} cannot be read as an MDL file; write it again")
        return _atoms(path, chem, records[0], singlets=_singlets(content))


def _singlets(content: bytes) -> int:
    """Count the atoms with two paired electrons; RDKit does not tell them from triplets."""
    kinds = [int(kind) for kind in _RADICAL.findall(content)]
    for pairs in _RADICALS.findall(content):
        kinds += map(int, pairs.split()[1::2])
    return kinds.count(_SINGLET)


def _atoms(path: Path, chem: Any, graph: Any, singlets: int) -> ase.Atoms:
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
    if _is_drawing(graph):
        raise InputError(
            f"{path} holds a drawing in the plane, not a structure; give coordinates in three "
            "dimensions, or the molecule as a SMILES, from which they are made"
        )
    atoms = ase.Atoms(
        [atom.GetAtomicNum() for atom in graph.GetAtoms()],
        graph.GetConformer().GetPositions(),
        info={"charge": sum(atom.GetFormalCharge() for atom in graph.GetAtoms())},
    )
    unpaired = sum(atom.GetNumRadicalElectrons() for atom in graph.GetAtoms()) - 2 * singlets
    if unpaired > 0:
        atoms.info["multiplicity"] = 1 + unpaired
    fields = {name: graph.GetProp(name) for name in graph.GetPropNames() if is_total(name)}
    if fields:
        stated = ase.Atoms(info={name: _number(text) for name, text in fields.items()})
        try:
            store_state(atoms, electronic_state(stated, **atoms.info))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    isotope = np.array([atom.GetIsotope() > 0 for atom in graph.GetAtoms()])
    if isotope.any():
        masses = np.array([atom.GetMass() for atom in graph.GetAtoms()])
        atoms.set_masses(np.where(isotope, masses, atoms.get_masses()))
    return atoms


def _number(text: str) -> float | str:
    """Return the number that a data field holds, or its text."""
    try:
        return float(text)
    except ValueError:
        return text


def _is_drawing(graph: Any) -> bool:
    """Tell whether a file says that it is one, or atoms with four neighbours lie in one plane."""
    if graph.GetConformer().GetPositions()[:, 2].any():
        return False
    says_so = graph.HasProp("_MolFileInfo") and graph.GetProp("_MolFileInfo")[20:22] == "2D"
    return says_so or any(atom.GetDegree() > 3 for atom in graph.GetAtoms())
