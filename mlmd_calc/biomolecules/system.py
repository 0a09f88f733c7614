"""A molecular system as ATMOS sees it, and the way back to the atoms of the engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlmd_calc.biomolecules.bond_graph import BondGraph
from mlmd_calc.biomolecules.domain import ResidueState, describe_residues, peptide_bonds
from mlmd_calc.biomolecules.hydrogens import HydrogenFrames
from mlmd_calc.biomolecules.parts import Part, ligand_part, standard_part
from mlmd_calc.biomolecules.structure import (
    ION,
    LIGAND,
    NUCLEOTIDE,
    WATER,
    BondedStructure,
    residue_kind,
)
from mlmd_calc.biomolecules.tokens import token_features
from mlmd_calc.errors import InputError
from mlmd_calc.geometry.bonds import CARBON, neighbour_lists
from mlmd_calc.geometry.stereochemistry import handedness
from mlmd_calc.models.atmos.features import Features

_LEFT_OUT: Final = (WATER, ION)
_FLAT: Final = 0.5
"""Triple product of unit vectors to three neighbours: 0.77 for a tetrahedron, 0 in a plane."""


@dataclass(frozen=True)
class MolecularSystem:
    """Heavy atoms of proteins, peptides, ligands and small molecules, without water and ions.

    Indices are those of the network's atoms unless said otherwise.

    Attributes
    ----------
    features
        What the network knows of the system.
    atoms
        ``(a,)`` index of each atom in the engine's order.
    size
        Number of atoms of the engine.
    hydrogens
        How hydrogens follow the heavy atoms, in the engine's order.
    left_out
        Indices of water and ions in the engine's order.
    bonds
        ``(b, 2)`` bonds between heavy atoms, the smaller index first.
    reference
        ``(a, 3)`` Å, the structure the system was built from.
    chirality_centres
        ``(k, 4)`` tetrahedral carbon atoms, each with three heavy neighbours. Their handedness
        never changes as long as bonds last, whether they are stereocentres or not.
    equal_arms
        ``(m, 6)`` those chirality centres of which two neighbours, the last two, are the same
        group of atoms, as the methyl groups of valine: only names tell one hand from the other.
    alpha_carbons
        ``(c,)`` atoms CA of amino acids.
    phi_psi
        ``(r, 2, 4)`` atoms of the dihedral angles φ and ψ of every amino acid that has both.
    omega
        ``(p, 4)`` atoms of the dihedral angle ω of every peptide bond.
    residues
        What decides whether a model knows the residues, in the order of the tokens.
    notes
        Sentences on what was left out or assumed.
    """

    features: Features
    atoms: NDArray[np.int64]
    size: int
    hydrogens: HydrogenFrames
    left_out: NDArray[np.int64]
    bonds: NDArray[np.int64]
    reference: NDArray[np.float64]
    chirality_centres: NDArray[np.int64]
    equal_arms: NDArray[np.int64]
    alpha_carbons: NDArray[np.int64]
    phi_psi: NDArray[np.int64]
    omega: NDArray[np.int64]
    residues: tuple[ResidueState, ...]
    notes: tuple[str, ...]

    @property
    def handed_centres(self) -> NDArray[np.int64]:
        """Chirality centres without equal arms, ``(h, 4)``; their hand is no matter of names."""
        equal = {tuple(centre) for centre in self.equal_arms[:, :4].tolist()}
        kept = [tuple(centre) not in equal for centre in self.chirality_centres.tolist()]
        centres: NDArray[np.int64] = self.chirality_centres[np.array(kept, dtype=bool)]
        return centres

    def select(self, positions: NDArray[np.floating]) -> NDArray[np.float64]:
        """Pick the network's atoms: ``(..., n, 3)`` of the engine to ``(..., a, 3)``.

        Raises
        ------
        InputError
            If the number of atoms is not that of the engine.
        """
        _check(positions, self.size, "engine")
        return np.asarray(positions[..., self.atoms, :], dtype=np.float64)

    def restore(
        self, positions: NDArray[np.floating], engine_positions: NDArray[np.floating]
    ) -> NDArray[np.float64]:
        """Put the network's atoms back among those of the engine, and hydrogens with them.

        Parameters
        ----------
        positions
            ``(..., a, 3)`` Å of the network's atoms.
        engine_positions
            ``(..., n, 3)`` Å, structures of the engine, with leading axes that broadcast. Hydrogens
            keep their place relative to the heavy atoms next to them (:class:`HydrogenFrames`),
            water and ions their positions.

        Returns
        -------
        ndarray
            ``(..., n, 3)`` Å.

        Raises
        ------
        InputError
            If a number of atoms is wrong.
        """
        _check(positions, len(self.atoms), "network")
        _check(engine_positions, self.size, "engine")
        before = np.asarray(engine_positions, dtype=np.float64)
        leading = np.broadcast_shapes(positions.shape[:-2], before.shape[:-2])
        restored: NDArray[np.float64] = np.broadcast_to(before, (*leading, self.size, 3)).copy()
        restored[..., self.atoms, :] = positions
        restored[..., self.hydrogens.hydrogens, :] = self.hydrogens.place(restored, before)
        return restored

    def exchange_arms(self, frames: Tensor) -> Tensor:
        """Exchange equal arms where this gives a centre the hand that it has in the reference.

        A network that has drawn them the other way round has drawn the same molecule and other
        names.

        Parameters
        ----------
        frames
            ``(f, a, 3)`` of the network's atoms.
        """
        if len(self.equal_arms) == 0:
            return frames
        centres = self.equal_arms[:, :4]
        found, expected = (
            handedness(each, centres) for each in (frames.double().numpy(), self.reference[None])
        )
        exchanged = frames.clone()
        for wrong, (first, second) in zip(
            torch.from_numpy(found != expected).T, self.equal_arms[:, 4:].tolist(), strict=True
        ):
            exchanged[wrong, first], exchanged[wrong, second] = (
                exchanged[wrong, second],
                exchanged[wrong, first],
            )
        return exchanged


def _check(positions: NDArray[np.floating], count: int, whose: str) -> None:
    if positions.ndim < 2 or positions.shape[-2:] != (count, 3):
        raise InputError(
            f"positions have shape {positions.shape}; with the atoms of the {whose} the last two "
            f"axes are ({count}, 3)"
        )


def build_system(
    structure: BondedStructure, ligands: Mapping[str, str] | None = None
) -> MolecularSystem:
    """Turn a structure into what ATMOS computes with.

    Amino acids and the caps ACE and NME are one token each, every other residue is one token per
    heavy atom; water and single ions are left out. Amino acids have the formal charges their
    hydrogens tell, or without any those of pH 7.

    Build a system once, from the structure a simulation or a data set starts with, and keep it:
    reference conformers of ligands without a SMILES come from that structure.

    Parameters
    ----------
    structure
        From a file, ASE, SMILES, or `openmm_bridge.topology_features`.
    ligands
        SMILES by residue name; gives formal charges and a reference conformer that does not depend
        on the structure.

    Raises
    ------
    InputError
        If amino acids lack heavy atoms or have foreign ones, there are nucleotides, hydrogens
        belong to no heavy atom, a SMILES does not fit or is given for a residue that does not
        occur, or nothing is left.

    Examples
    --------
    >>> from mlmd_calc.biomolecules import build_system
    >>> from mlmd_calc.data.biomolecules import structure_from_smiles
    >>> build_system(structure_from_smiles("CC(=O)O")).features.n_tokens
    4
    """
    ligands = dict(ligands or {})
    kinds = [residue_kind(structure, residue) for residue in range(len(structure.residue_names))]
    if NUCLEOTIDE in kinds:
        raise InputError(
            f"{structure.residue_label(kinds.index(NUCLEOTIDE))} is a nucleotide; proteins, "
            "peptides and ligands are supported, nucleic acids are not"
        )
    kept = [residue for residue, kind in enumerate(kinds) if kind not in _LEFT_OUT]
    if not kept:
        raise InputError("the structure holds nothing but water and ions; nothing is left to move")
    names = {structure.residue_names[residue] for residue in kept if kinds[residue] == LIGAND}
    if unknown := sorted(ligands.keys() - names):
        raise InputError(
            f"a SMILES is given for {unknown[0]}, but no ligand has that name; the ligands are "
            f"{', '.join(sorted(names)) or 'none'}"
        )
    graph = BondGraph(structure, kept)
    hydrogens = graph.hydrogen_frames()
    parts = [
        ligand_part(graph, residue, ligands.get(structure.residue_names[residue]))
        if kinds[residue] == LIGAND
        else standard_part(graph, residue, kinds[residue])
        for residue in kept
    ]
    return _assemble(graph, parts, hydrogens, [*_notes(structure, kinds, parts), *graph.notes])


def _notes(structure: BondedStructure, kinds: Sequence[str], parts: Sequence[Part]) -> list[str]:
    left_out = Counter(
        name for name, kind in zip(structure.residue_names, kinds, strict=True) if kind in _LEFT_OUT
    )
    notes = [f"Left out: {count} {name}." for name, count in left_out.items()]
    return [*structure.notes, *notes] + [
        f"{structure.residue_label(part.residue)} is not a standard residue; its {len(part.atoms)} "
        "heavy atoms are one token each."
        for part in parts
        if part.kind is None
    ]


def _assemble(
    graph: BondGraph, parts: Sequence[Part], hydrogens: HydrogenFrames, notes: Sequence[str]
) -> MolecularSystem:
    structure = graph.structure
    atoms = np.array([atom for part in parts for atom in part.atoms], dtype=np.int64)
    model_index = np.full(len(structure), -1)
    model_index[atoms] = np.arange(len(atoms))
    bonds = np.sort(model_index[graph.bonds], axis=1)
    bonds = np.unique(bonds[(bonds >= 0).all(axis=1)], axis=0)
    reference = structure.positions[atoms]
    amino_acids = [part for part in parts if part.is_amino_acid]
    omega = [bond.omega for bond in peptide_bonds(graph, parts)]
    centres = _chirality_centres(structure.numbers[atoms], bonds, reference)
    carried = np.bincount(hydrogens.parents, minlength=len(structure))
    groups = np.stack([structure.numbers, structure.charges, carried], axis=1)[atoms]
    return MolecularSystem(
        features=token_features(graph, parts, bonds, model_index),
        atoms=atoms,
        size=len(structure),
        hydrogens=hydrogens,
        left_out=np.flatnonzero(~np.isin(structure.residues, [part.residue for part in parts])),
        bonds=bonds,
        reference=reference,
        chirality_centres=centres,
        equal_arms=_equal_arms(centres, bonds, groups),
        alpha_carbons=model_index[[part.atom("CA") for part in amino_acids]],
        phi_psi=_phi_psi(graph, amino_acids, model_index),
        omega=model_index[np.array(omega, dtype=np.int64).reshape(-1, 4)],
        residues=describe_residues(graph, parts),
        notes=tuple(notes),
    )


def _chirality_centres(
    numbers: NDArray[np.int64], bonds: NDArray[np.int64], reference: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Carbon atoms with three or four heavy neighbours that are not in a plane."""
    centres = []
    for atom in np.flatnonzero(numbers == CARBON):
        neighbours = np.sort(bonds[(bonds == atom).any(axis=1)].sum(axis=1) - atom)
        if len(neighbours) < 3:
            continue
        arms = reference[neighbours[:3]] - reference[atom]
        volume = np.linalg.det(arms / np.linalg.norm(arms, axis=1, keepdims=True))
        if abs(volume) > _FLAT:
            centres.append([atom, *neighbours[:3]])
    return np.array(centres, dtype=np.int64).reshape(-1, 4)


def _equal_arms(
    centres: NDArray[np.int64], bonds: NDArray[np.int64], groups: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Centres with two arms of one heavy atom each that are alike; see :class:`MolecularSystem`.

    Parameters
    ----------
    centres, bonds
        See :class:`MolecularSystem`.
    groups
        ``(a, 3)`` element, formal charge and number of hydrogens of each atom.
    """
    neighbours = neighbour_lists(len(groups), bonds.tolist())
    found = []
    for centre in centres:
        ends = [atom for atom in neighbours[centre[0]] if len(neighbours[atom]) == 1]
        alike = [
            pair for pair in combinations(ends, 2) if (groups[pair[0]] == groups[pair[1]]).all()
        ]
        found += [[*centre, *pair] for pair in alike[:1]]
    return np.array(found, dtype=np.int64).reshape(-1, 6)


def _phi_psi(
    graph: BondGraph, amino_acids: Sequence[Part], model_index: NDArray[np.int64]
) -> NDArray[np.int64]:
    torsions = []
    for part in amino_acids:
        backbone = [part.atom(name) for name in ("N", "CA", "C")]
        before, after = graph.across(backbone[0]), graph.across(backbone[2])
        if before and after:
            torsions.append([[before[0], *backbone], [*backbone, after[0]]])
    return model_index[np.array(torsions, dtype=np.int64).reshape(-1, 2, 4)]
