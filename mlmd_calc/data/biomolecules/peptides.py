"""Start structures of peptides, capped or with free ends, from their sequence, with RDKit."""

from __future__ import annotations

import re
from dataclasses import dataclass
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
_LONGEST: Final = 16
"""Amino acids; of 20, none of a hundred conformers is free of overlap."""
_MMFF_STEPS: Final = 100
"""Enough for bonds and angles; the torsions stay about what was embedded."""
_TRANS: Final = np.deg2rad(150.0)
"""Smallest |ω| of a peptide bond that counts as trans."""


_NOTATION: Final = re.compile(r"(?:(Ace|H)-)?([^-]*)(?:-(Nme|OH))?")


@dataclass(frozen=True)
class Peptide:
    """A peptide of L-amino acids, protonated as at pH 7.

    Attributes
    ----------
    letters
        Amino acids in one-letter codes.
    is_capped
        Whether acetyl is before and N-methyl after them; else the ends are free: NH₃⁺ and COO⁻.

    Raises
    ------
    InputError
        If there are no letters, or others than those of the 20 amino acids.
    """

    letters: str
    is_capped: bool = True

    def __post_init__(self) -> None:
        if not self.letters or set(self.letters) - set(AMINO_ACIDS):
            raise InputError(
                f"{self.letters!r} is not a sequence; write it in one-letter codes, which are "
                f"{', '.join(AMINO_ACIDS)}, and with free ends as H-AAG-OH"
            )

    @classmethod
    def parse(cls, text: str) -> Peptide:
        """Read a sequence as people write it.

        Parameters
        ----------
        text
            ``"AGSV"`` or ``"Ace-AGSV-Nme"`` with caps, ``"H-AGSV-OH"`` with free ends.

        Raises
        ------
        InputError
            If it is none of these.
        """
        match = _NOTATION.fullmatch(text)
        ends = match.group(1, 3) if match else None
        if match is None or ends not in ((None, None), ("Ace", "Nme"), ("H", "OH")):
            raise InputError(
                f"{text!r} is not a peptide; write AAG or Ace-AAG-Nme for one with caps, H-AAG-OH "
                "for one with free ends"
            )
        return cls(match[2], is_capped=ends != ("H", "OH"))

    @property
    def name(self) -> str:
        """For instance ``"Ace-AGSV-Nme"`` or ``"H-AGSV-OH"``."""
        return f"Ace-{self.letters}-Nme" if self.is_capped else f"H-{self.letters}-OH"

    def __str__(self) -> str:
        """Shortest text of which :meth:`parse` makes this peptide."""
        return self.letters if self.is_capped else self.name


def capped_peptide(letters: str, seed: int) -> BondedStructure:
    """Build a peptide between acetyl and N-methyl, see :func:`build_peptide`.

    Parameters
    ----------
    letters
        One-letter codes, ``n`` residues; with the caps the structure has ``n`` + 2.
    seed
        Of the conformer, 0 ≤ seed < 2³¹.

    Examples
    --------
    >>> len(capped_peptide("A", 0))
    22
    """
    return build_peptide(Peptide(letters), seed)


def build_peptide(peptide: Peptide, seed: int) -> BondedStructure:
    """Build a peptide.

    All peptide bonds are trans, histidine is neutral with its hydrogen on NE2, no atoms overlap,
    and all atoms have the names of the Protein Data Bank. The conformer is a random one of ETKDGv3
    (Wang, Witek, Landrum and Riniker, J. Chem. Inf. Model. 60, 2044 (2020)), whose bonds and angles
    a few steps of MMFF94 put right, and depends on the version of RDKit.

    Parameters
    ----------
    peptide
        What to build.
    seed
        Of the conformer, 0 ≤ seed < 2³¹.

    Raises
    ------
    InputError
        If no such conformer is found, or the peptide is too long for one.
    MissingDependencyError
        If rdkit is not installed.
    """
    if len(peptide.letters) > _LONGEST:
        raise InputError(
            f"a peptide of {len(peptide.letters)} amino acids cannot be built from its sequence: "
            f"random conformers of more than {_LONGEST} overlap; give a structure file, for "
            "example a prediction with hydrogens by PDBFixer"
        )
    molecule = _molecule(peptide)
    embedding = require("rdkit.Chem.rdDistGeom", extra="data", why=_WHY)
    parameters = embedding.ETKDGv3()
    for attempt_seed in np.random.default_rng(seed).integers(2**31, size=_ATTEMPTS).tolist():
        parameters.randomSeed = attempt_seed
        if embedding.EmbedMolecule(molecule, parameters) == 0:
            _mend(molecule, with_charges=peptide.is_capped)
            structure = _structure(molecule)
            heavy = structure.positions[None, structure.numbers > 1]
            if _is_trans(structure) and clashes(heavy)[0] == 0:
                return structure
    raise InputError(
        f"{peptide.name}: none of {_ATTEMPTS} conformers has all peptide bonds trans and no "
        "overlapping atoms; choose another seed"
    )


def _molecule(peptide: Peptide) -> Any:
    """``rdkit.Chem.Mol`` with hydrogens; the caps are what is left of two glycines."""
    chem = require("rdkit.Chem", extra="data", why=_WHY)
    sequence = f"G{peptide.letters}G" if peptide.is_capped else peptide.letters
    molecule = chem.RWMol(chem.MolFromSequence(sequence))
    chem.Kekulize(molecule, clearAromaticFlags=True)
    last = len(sequence)
    caps = {1: ("ACE", _FIRST_CAP), last: ("NME", _LAST_CAP)} if peptide.is_capped else {}
    free = {} if peptide.is_capped else {(1, "N"): 1, (last, "OXT"): -1}
    molecule.BeginBatchEdit()
    for atom in molecule.GetAtoms():
        info = atom.GetPDBResidueInfo()
        name = info.GetName().strip()
        number = info.GetResidueNumber()
        charge = _CHARGES.get((info.GetResidueName(), name), 0)
        atom.SetFormalCharge(charge + free.get((number, name), 0))
        atom.SetNoImplicit(False)
        atom.SetNumExplicitHs(0)
        if number in caps:
            residue, kept = caps[number]
            if name in kept:
                info.SetResidueName(residue)
                info.SetName(kept[name])
            else:
                molecule.RemoveAtom(atom.GetIdx())
    molecule.CommitBatchEdit()
    chem.SanitizeMol(molecule)
    return chem.AddHs(molecule, addResidueInfo=True)


def _mend(molecule: Any, *, with_charges: bool) -> None:
    """Put bonds and angles of a conformer right. In vacuum free ends would close a ring."""
    force_fields = require("rdkit.Chem.rdForceFieldHelpers", extra="data", why=_WHY)
    properties = force_fields.MMFFGetMoleculeProperties(molecule)
    properties.SetMMFFEleTerm(with_charges)
    field = force_fields.MMFFGetMoleculeForceField(molecule, properties)
    field.Initialize()
    field.Minimize(maxIts=_MMFF_STEPS)


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
            place[residue, "CH3" if (residue, "CH3") in place else "CA"],
            place[residue, "C"],
            place[residue + 1, "N"],
            place[residue + 1, "CA" if (residue + 1, "CA") in place else "C"],
        )
        for residue in range(last)
    ]
    atoms = np.array(torsions, dtype=np.int64).reshape(-1, 4)
    omega = dihedrals(structure.positions[None], atoms)
    return bool((np.abs(omega) > _TRANS).all())
