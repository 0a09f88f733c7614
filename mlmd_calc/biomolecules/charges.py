"""Total charge of a structure with all its hydrogens, for models that see every atom."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.biomolecules.bond_graph import BondGraph
from mlmd_calc.biomolecules.parts import standard_part
from mlmd_calc.biomolecules.residues import RESIDUES
from mlmd_calc.biomolecules.structure import (
    LIGAND,
    WATER,
    BondedStructure,
    residue_kind,
)
from mlmd_calc.errors import InputError
from mlmd_calc.geometry.bonds import CARBON
from mlmd_calc.geometry.lewis import implied_charge

_ADD: Final = "add hydrogens and what else is missing first, for example with PDBFixer"
_WATER_HYDROGENS: Final = 2


def total_charge(structure: BondedStructure) -> int | None:
    """Add up the charges of all residues.

    Amino acids and caps have the charges their hydrogens tell, other residues those of the source;
    a residue without stated charges counts as neutral, unless it has groups that are ions.

    Parameters
    ----------
    structure
        Whole molecules with all hydrogens.

    Returns
    -------
    int or None
        In e; None if there are ions, ionic ligands or nucleotides whose charge the source does not
        state.

    Raises
    ------
    InputError
        If an amino acid, a cap or a water lacks atoms or has foreign ones, or the source states
        another charge of it.
    """
    kinds = [residue_kind(structure, residue) for residue in range(len(structure.residue_names))]
    linked = [residue for residue, kind in enumerate(kinds) if kind in (*RESIDUES, LIGAND)]
    graph = BondGraph(structure, linked)
    total, known = 0, True
    for residue, kind in enumerate(kinds):
        atoms = np.flatnonzero(structure.residues == residue)
        if kind in RESIDUES:
            told = _standard_charge(graph, residue, kind)
            stated = int(structure.charges[atoms].sum())
            if structure.charges[atoms].any() and stated != told:
                raise InputError(
                    f"{structure.residue_label(residue)} has the charge {told:+d} by its hydrogens,"
                    f" but the file states {stated:+d}; correct hydrogens or charges, or leave the "
                    "charges out"
                )
            total += told
            continue
        if kind == WATER and (structure.numbers[atoms] == 1).sum() != _WATER_HYDROGENS:
            raise InputError(f"{structure.residue_label(residue)} lacks hydrogens; {_ADD}")
        stated = int(structure.charges[atoms].sum())
        neutral = kind == WATER or (kind == LIGAND and not _has_ionic_groups(graph, atoms))
        known &= neutral or bool(structure.charges[atoms].any())
        total += stated
    return total if known else None


def _has_ionic_groups(graph: BondGraph, atoms: NDArray[np.int64]) -> bool:
    """Tell whether the charges of ionic groups of a residue, which has hydrogens, do not cancel."""
    numbers = graph.structure.numbers[atoms]
    own = graph.bonds[np.isin(graph.bonds, atoms).any(axis=1)]
    used, pairs = np.unique(own, return_inverse=True)
    # Atoms of other residues end the residue as hydrogens would.
    capped = np.where(np.isin(used, atoms), graph.structure.numbers[used], 1)
    charge = implied_charge(capped, pairs.reshape(-1, 2))
    return charge != 0 and bool((numbers == 1).any())


def _standard_charge(graph: BondGraph, residue: int, kind: str) -> int:
    structure = graph.structure
    part = standard_part(graph, residue, kind)
    carbons = [atom for atom in part.atoms if structure.numbers[atom] == CARBON]
    if graph.hydrogens_on(carbons) == 0:
        raise InputError(f"{structure.residue_label(residue)} lacks hydrogens; {_ADD}")
    if part.is_amino_acid and "OXT" not in part.names and not graph.across(part.atom("C")):
        raise InputError(
            f"{structure.residue_label(residue)} ends the chain without OXT or a next residue; "
            f"{_ADD}"
        )
    return int(part.charges.sum())
