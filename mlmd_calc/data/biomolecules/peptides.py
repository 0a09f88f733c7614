"""Start structures of capped peptides from their sequence, with RDKit."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mlmd_calc.biomolecules.hydrogen_names import with_hydrogen_names
from mlmd_calc.biomolecules.prochirality import with_arm_names
from mlmd_calc.biomolecules.residues import EXCHANGED
from mlmd_calc.biomolecules.structure import BondedStructure
from mlmd_calc.errors import InputError
from mlmd_calc.geometry.stereochemistry import clashes, dihedrals
from mlmd_calc.optional import require

AMINO_ACIDS: Final = "ACDEFGHIKLMNPQRSTVWY"

_CHARGES: Final = {
    ("ASP", "OD2"): -1,
    ("GLU", "OE2"): -1,
    ("LYS", "NZ"): 1,
    ("ARG", "NH1"): 1,
}
"""Charges at pH 7 of atoms that RDKit's templates leave neutral; histidine stays so."""

_FIRST_CAP: Final = {"CA": "CH3", "C": "C", "O": "O"}
_LAST_CAP: Final = {"N": "N", "CA": "C"}
"""Atoms of a glycine that remain as ACE and NME, and what they are called there."""

_WHY: Final = "build peptides"
_ATTEMPTS: Final = 100
_MMFF_STEPS: Final = 100
"""Enough for bonds and angles; the torsions stay about what was embedded."""
_TRANS: Final = np.deg2rad(150.0)
"""Smallest |ω| of a peptide bond that counts as trans."""


def peptide_name(sequence: str) -> str:
    """Name of a capped peptide, e.g. ``"Ace-AGSV-Nme"``.

    Raises
    ------
    InputError
        If the sequence is empty or has other letters than those of the 20 amino acids.
    """
    if not sequence or set(sequence) - set(AMINO_ACIDS):
        raise InputError(
            f"{sequence!r} is no sequence; write it in one-letter codes, which are "
            f"{', '.join(AMINO_ACIDS)}"
        )
    return f"Ace-{sequence}-Nme"


def capped_peptide(sequence: str, seed: int) -> BondedStructure:
    """Build a peptide of L-amino acids between acetyl and N-methyl, protonated as at pH 7.

    All peptide bonds are trans, histidine is neutral with its hydrogen on NE2, no atoms overlap,
    and all atoms have the names of the Protein Data Bank. The conformer is a random one of ETKDGv3
    (Wang, Witek, Landrum and Riniker, J. Chem. Inf. Model. 60, 2044 (2020)), whose bonds and angles
    a few steps of MMFF94 put right, and depends on the version of RDKit.

    Parameters
    ----------
    sequence
        One-letter codes, ``n`` residues; with the caps the structure has ``n`` + 2.
    seed
        Of the conformer, 0 ≤ seed < 2³¹.

    Raises
    ------
    InputError
        If the sequence is not valid, or no such conformer is found.
    MissingDependencyError
        If rdkit is not installed.

    Examples
    --------
    >>> len(capped_peptide("A", 0))
    22
    """
    name = peptide_name(sequence)
    molecule = _molecule(sequence)
    embedding = require("rdkit.Chem.rdDistGeom", extra="data", why=_WHY)
    force_fields = require("rdkit.Chem.rdForceFieldHelpers", extra="data", why=_WHY)
    parameters = embedding.ETKDGv3()
    for attempt_seed in np.random.default_rng(seed).integers(2**31, size=_ATTEMPTS).tolist():
        parameters.randomSeed = attempt_seed
        if embedding.EmbedMolecule(molecule, parameters) == 0:
            force_fields.MMFFOptimizeMolecule(molecule, maxIters=_MMFF_STEPS)
            structure = _structure(molecule)
            heavy = structure.positions[None, structure.numbers > 1]
            if _is_trans(structure) and clashes(heavy)[0] == 0:
                return structure
    raise InputError(
        f"{name}: none of {_ATTEMPTS} conformers has all peptide bonds trans and no overlapping "
        "atoms; choose another seed"
    )


def _molecule(sequence: str) -> Any:
    """``rdkit.Chem.Mol`` with hydrogens; the caps are what is left of two glycines."""
    chem = require("rdkit.Chem", extra="data", why=_WHY)
    molecule = chem.RWMol(chem.MolFromSequence(f"G{sequence}G"))
    chem.Kekulize(molecule, clearAromaticFlags=True)
    caps = {1: ("ACE", _FIRST_CAP), len(sequence) + 2: ("NME", _LAST_CAP)}
    molecule.BeginBatchEdit()
    for atom in molecule.GetAtoms():
        info = atom.GetPDBResidueInfo()
        name = info.GetName().strip()
        atom.SetFormalCharge(_CHARGES.get((info.GetResidueName(), name), 0))
        atom.SetNoImplicit(False)
        atom.SetNumExplicitHs(0)
        if info.GetResidueNumber() in caps:
            residue, kept = caps[info.GetResidueNumber()]
            if name in kept:
                info.SetResidueName(residue)
                info.SetName(kept[name])
            else:
                molecule.RemoveAtom(atom.GetIdx())
    molecule.CommitBatchEdit()
    chem.SanitizeMol(molecule)
    return chem.AddHs(molecule, addResidueInfo=True)


def _structure(molecule: Any) -> BondedStructure:
    """Atoms of the conformer, residue by residue."""
    residue_of = [atom.GetPDBResidueInfo().GetResidueNumber() for atom in molecule.GetAtoms()]
    order = np.argsort(residue_of, kind="stable")
    atoms = [molecule.GetAtomWithIdx(i) for i in order.tolist()]
    info = [atom.GetPDBResidueInfo() for atom in atoms]
    residue_names = {entry.GetResidueNumber(): entry.GetResidueName() for entry in info}
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in molecule.GetBonds()]
    structure = BondedStructure(
        names=tuple(
            # RDKit has the names that the networks have.
            EXCHANGED.get(
                (entry.GetResidueName(), entry.GetName().strip()), entry.GetName().strip()
            )
            for entry in info
        ),
        numbers=np.array([atom.GetAtomicNum() for atom in atoms], dtype=np.int64),
        residues=np.array([entry.GetResidueNumber() - 1 for entry in info], dtype=np.int64),
        residue_names=tuple(residue_names.values()),
        residue_numbers=np.array(list(residue_names), dtype=np.int64),
        chains=np.zeros(len(residue_names), dtype=np.int64),
        chain_names=("A",),
        bonds=np.argsort(order)[np.array(bonds, dtype=np.int64)],
        charges=np.array([atom.GetFormalCharge() for atom in atoms], dtype=np.int64),
        positions=np.array(molecule.GetConformer().GetPositions())[order],
    )
    return with_hydrogen_names(with_arm_names(structure))


def _is_trans(structure: BondedStructure) -> bool:
    place = {
        (int(residue), name): atom
        for atom, (residue, name) in enumerate(
            zip(structure.residues, structure.names, strict=True)
        )
    }
    last = len(structure.residue_names) - 1
    torsions = [
        (
            place[residue, "CA" if residue > 0 else "CH3"],
            place[residue, "C"],
            place[residue + 1, "N"],
            place[residue + 1, "CA" if residue + 1 < last else "C"],
        )
        for residue in range(last)
    ]
    omega = dihedrals(structure.positions[None], np.array(torsions))
    return bool((np.abs(omega) > _TRANS).all())
