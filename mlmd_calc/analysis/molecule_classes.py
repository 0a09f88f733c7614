"""Classes of molecules by which errors are listed: functional groups, or else elements."""

from __future__ import annotations

import functools
from typing import Any, Final

from ase.data import chemical_symbols

from mlmd_calc.data.frames import MoleculeFrames

_GROUPS: Final = {
    "alcohol": "[CX4][OX2H]",
    "phenol": "c[OX2H]",
    "ether": "[OD2]([#6;!$(C=[O,S,N])])[#6;!$(C=[O,S,N])]",
    "aldehyde": "[$([CX3H1][#6,#1]),$([CX3H2])]=O",
    "ketone": "[#6][CX3](=O)[#6]",
    "carboxylic acid": "[CX3](=O)[OX2H]",
    "carboxylate": "[CX3](=O)[O-]",
    "ester": "[CX3](=O)[OX2][#6]",
    "amide": "[CX3](=O)[NX3]",
    "amine": "[NX3;H2,H1,H0;!$(N[#6]=[O,S,N]);!$(N~[!#6;!#1])]",
    "nitrile": "C#N",
    "nitro": "[NX3+](=O)[O-]",
    "alkene": "[CX3]=[CX3]",
    "cumulene": "C=[CX2]=C",
    "alkyne": "C#C",
    "benzene ring": "c1ccccc1",
    "heteroaromatic ring": "[n,o,s]",
    "thiol": "[SX2H]",
    "sulfide": "[#6][SX2][#6]",
    "S(=O)": "[SX3,SX4](=O)",
    "fluoride": "[#6]F",
    "chloride": "[#6]Cl",
}
"""SMARTS patterns."""

_NOT_SATURATED_CARBON: Final = "[!$([CX4])]"

ALKANE: Final = "alkane"
ION: Final = "ion"
OTHER: Final = "other"


def classes_of(molecule: MoleculeFrames) -> tuple[str, ...]:
    """Name the classes of a molecule.

    These are the functional groups in its SMILES, of which it may have several, "alkane" for
    saturated hydrocarbons and "other" if it has none that is listed; and "ion" if it is charged.
    Without a SMILES, or without RDKit, its elements, like "C H O", stand in for the groups.

    Parameters
    ----------
    molecule
        Frames whose metadata may have a SMILES.
    """
    groups = _functional_groups(molecule.metadata.get("smiles", ""))
    if groups is None:
        groups = (" ".join(sorted({chemical_symbols[z] for z in molecule.numbers})),)
    return (*groups, ION) if molecule.charge else groups


def _functional_groups(smiles: str) -> tuple[str, ...] | None:
    """Functional groups by name; None if there is no SMILES that RDKit understands, or no RDKit."""
    if not smiles:
        return None
    try:
        from rdkit import Chem
    except ImportError:
        return None
    molecule: Any = Chem.MolFromSmiles(smiles)
    if molecule is None:
        return None
    groups = tuple(
        name for name, pattern in _patterns().items() if molecule.HasSubstructMatch(pattern)
    )
    if groups:
        return groups
    other_atoms = molecule.HasSubstructMatch(Chem.MolFromSmarts(_NOT_SATURATED_CARBON))
    return (OTHER,) if other_atoms else (ALKANE,)


@functools.cache
def _patterns() -> dict[str, Any]:
    from rdkit import Chem

    return {name: Chem.MolFromSmarts(text) for name, text in _GROUPS.items()}
