"""Features of the network from the residues of a system."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mlmd_calc.biomolecules.bond_graph import BondGraph
from mlmd_calc.biomolecules.ligands import local_frames
from mlmd_calc.biomolecules.parts import LONGEST_NAME, Part
from mlmd_calc.biomolecules.residues import UNKNOWN
from mlmd_calc.geometry.bonds import fragments_of
from mlmd_calc.models.atmos.features import N_NAME_CHARS, Features


class _Place(NamedTuple):
    """Where a residue is among the chains."""

    asym_id: int
    entity_id: int
    sym_id: int
    residue_index: int


def token_features(
    graph: BondGraph,
    parts: Sequence[Part],
    bonds: NDArray[np.int64],
    model_index: NDArray[np.int64],
) -> Features:
    """Build the features of a system, without alignment.

    Parameters
    ----------
    graph
        Structure and bonds.
    parts
        Its residues in the order of the tokens.
    bonds
        ``(b, 2)`` bonds between heavy atoms, as indices of the network.
    model_index
        ``(n,)`` index of each atom of the structure in the network.
    """
    tokens = [len(part.token_sizes) for part in parts]
    atoms = [len(part.atoms) for part in parts]
    widths = np.concatenate([part.token_sizes for part in parts])
    owner = np.repeat(np.arange(len(widths)), widths)
    polymer = [_in_polymer(graph, part) for part in parts]
    places = np.repeat(np.array(_places(graph, parts, polymer)), tokens, axis=0)
    single = np.repeat([part.kind is None for part in parts], tokens)
    restypes = [UNKNOWN if part.kind is None else part.kind.restype for part in parts]
    frames, valid = _frames(graph, parts, model_index)
    conformers = [part.conformer - part.conformer.mean(axis=0) for part in parts]
    names = [_codes(name) for part in parts for name in part.names]
    return Features(
        restype=torch.from_numpy(np.repeat(restypes, tokens)),
        **{name: torch.from_numpy(places[:, k].copy()) for k, name in enumerate(_Place._fields)},
        token_index=torch.arange(len(widths)),
        token_bonds=torch.from_numpy(_token_bonds(owner[bonds], single)),
        representative_atom=torch.from_numpy(_representatives(parts, model_index)),
        frame_atoms=torch.from_numpy(frames),
        frame_mask=torch.from_numpy(valid),
        token_mask=torch.ones(len(widths), dtype=torch.bool),
        atom_to_token=torch.from_numpy(owner),
        ref_pos=torch.from_numpy(np.concatenate(conformers)).float(),
        ref_mask=torch.ones(len(owner), dtype=torch.bool),
        ref_element=torch.from_numpy(np.concatenate([part.numbers for part in parts]) - 1),
        ref_charge=torch.from_numpy(np.concatenate([part.charges for part in parts])).float(),
        ref_atom_name_chars=torch.tensor(names),
        ref_space_uid=torch.from_numpy(np.repeat(np.arange(len(parts)), atoms)),
        is_ligand=torch.from_numpy(~np.repeat(polymer, atoms)),
        atom_mask=torch.ones(len(owner), dtype=torch.bool),
    )


def _codes(name: str) -> list[int]:
    """Characters of an atom name as the network numbers them."""
    return [min(ord(c) - ord(" "), N_NAME_CHARS - 1) for c in name.ljust(LONGEST_NAME)]


def _in_polymer(graph: BondGraph, part: Part) -> bool:
    """Whether a residue is an amino acid or cap, or linked to another by a peptide bond."""
    names = graph.structure.names
    return part.kind is not None or any(
        {names[atom], names[other]} == {"C", "N"}
        for atom in part.atoms
        for other in graph.across(atom)
    )


def _places(graph: BondGraph, parts: Sequence[Part], polymer: Sequence[bool]) -> list[_Place]:
    """Chains: those of the structure for polymers, one per molecule for ligands.

    Residues are numbered as in the structure if its numbers ascend along the chain, so that gaps
    count, else from 1.
    """
    chains = defaultdict(list)
    for index, key in enumerate(_chain_keys(graph, parts, polymer)):
        chains[key].append(index)
    entities: dict[Hashable, list[int]] = defaultdict(list)
    places: list[_Place] = [_Place(0, 0, 0, 0)] * len(parts)
    for asym_id, members in enumerate(chains.values()):
        content = tuple((parts[i].names, tuple(parts[i].numbers.tolist())) for i in members)
        kinds = tuple(_residue_name(graph, parts[i]) for i in members)
        copies = entities[kinds, content]
        copies.append(asym_id)
        entity_id = list(entities).index((kinds, content))
        numbers = graph.structure.residue_numbers[[parts[i].residue for i in members]]
        if (np.diff(numbers) < 1).any() or not polymer[members[0]]:
            numbers = np.arange(1, len(members) + 1)
        for i, number in zip(members, numbers.tolist(), strict=True):
            places[i] = _Place(asym_id, entity_id, len(copies) - 1, number)
    return places


def _chain_keys(
    graph: BondGraph, parts: Sequence[Part], polymer: Sequence[bool]
) -> list[tuple[str, int]]:
    ligands = {part.residue for part, inside in zip(parts, polymer, strict=True) if not inside}
    residues = graph.structure.residues[graph.bonds]
    joined = residues[np.isin(residues, list(ligands)).all(axis=1)]
    molecules = fragments_of(len(graph.structure.residue_names), joined.tolist())
    return [
        ("chain", int(graph.structure.chains[part.residue]))
        if inside
        else ("ligand", int(molecules[part.residue]))
        for part, inside in zip(parts, polymer, strict=True)
    ]


def _residue_name(graph: BondGraph, part: Part) -> str | int:
    """Class of a standard residue; names of protonation states make no other entity."""
    return graph.structure.residue_names[part.residue] if part.kind is None else part.kind.restype


def _token_bonds(joined: NDArray[np.int64], single: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Bonds between tokens that at least one single atom takes part in."""
    different = (joined[:, 0] != joined[:, 1]) & single[joined].any(axis=1)
    matrix = np.zeros((len(single), len(single)), dtype=bool)
    matrix[tuple(joined[different].T)] = True
    symmetric: NDArray[np.bool_] = matrix | matrix.T
    return symmetric


def _representatives(parts: Sequence[Part], model_index: NDArray[np.int64]) -> NDArray[np.int64]:
    atoms = [
        atom
        for part in parts
        for atom in (part.atoms if part.kind is None else [part.atom(part.kind.representative)])
    ]
    return model_index[atoms]


def _frames(
    graph: BondGraph, parts: Sequence[Part], model_index: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Atoms of the frames ``(n, 3)``, as indices of the network, and whether they are valid."""
    frames, valid = [], []
    for part in parts:
        if part.kind is None:
            local, mask = local_frames(part.conformer)
            frames.append(np.array(part.atoms)[local])
            valid.append(mask)
        else:
            atoms = _residue_frame(graph, part)
            frames.append(np.array([atoms or part.atoms[:1] * 3]))
            valid.append(np.array([atoms is not None]))
    return model_index[np.concatenate(frames)], np.concatenate(valid)


def _residue_frame(graph: BondGraph, part: Part) -> tuple[int, ...] | None:
    """Atoms of a residue's frame; those of NME begin with the atom before it in the chain."""
    if part.kind is not None and part.kind.frame is not None:
        return tuple(part.atom(name) for name in part.kind.frame)
    before = graph.across(part.atom("N"))
    return (before[0], part.atom("N"), part.atom("C")) if before else None
