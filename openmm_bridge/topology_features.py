"""Structures for ATMOS from OpenMM topologies."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from openmm import unit

from mlmd_calc import units
from mlmd_calc.biomolecules import BondedStructure
from mlmd_calc.errors import InputError
from mlmd_calc.geometry.bonds import bond_lengths
from openmm_bridge.region import check_topology

_LONGEST_BOND: Final = 4.0


def structure_from_topology(topology: Any, positions: Any) -> BondedStructure:
    """Take a structure from OpenMM.

    Parameters
    ----------
    topology
        ``openmm.app.Topology``.
    positions
        ``(n, 3)`` with a unit of length, or in nm. Molecules must be whole.

    Raises
    ------
    InputError
        If the topology is not one, positions do not fit it, or a bond is longer than 4 Å.

    Examples
    --------
    >>> from mlmd_calc.biomolecules import build_system
    >>> system = build_system(structure_from_topology(pdb.topology, pdb.positions))
    ... # doctest: +SKIP
    """
    check_topology(topology)
    if unit.is_quantity(positions):
        positions = positions.value_in_unit(unit.nanometer)
    atoms, residues = list(topology.atoms()), list(topology.residues())
    bonds = [(bond[0].index, bond[1].index) for bond in topology.bonds()]
    structure = BondedStructure(
        names=tuple(atom.name for atom in atoms),
        numbers=np.array(
            [atom.element.atomic_number if atom.element else 0 for atom in atoms], dtype=np.int64
        ),
        residues=np.array([atom.residue.index for atom in atoms], dtype=np.int64),
        residue_names=tuple(residue.name for residue in residues),
        residue_numbers=_residue_numbers([residue.id for residue in residues]),
        chains=np.array([residue.chain.index for residue in residues], dtype=np.int64),
        chain_names=tuple(str(chain.id) for chain in topology.chains()),
        bonds=np.array(bonds, dtype=np.int64).reshape(-1, 2),
        charges=np.array([getattr(atom, "formalCharge", None) or 0 for atom in atoms]),
        positions=np.array(positions, dtype=np.float64).reshape(-1, 3) * units.NM,
        insertion_codes=tuple(residue.insertionCode.strip() for residue in residues),
    )
    _check_unit(structure)
    return structure


def _check_unit(structure: BondedStructure) -> None:
    """Refuse positions in Å, and molecules that are not whole."""
    pairs = structure.bonds[(structure.numbers[structure.bonds] > 0).all(axis=1)]
    lengths = bond_lengths(structure.positions, pairs)
    if len(pairs) and lengths.max() > _LONGEST_BOND:
        first, second = pairs[int(lengths.argmax())].tolist()
        raise InputError(
            f"the bond between {structure.atom_label(first)} and {structure.atom_label(second)} is "
            f"{lengths.max():.2f} Å long; give positions with a unit, or in nm, and whole molecules"
        )


def _residue_numbers(ids: list[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Numbers of residues; running ones if an identifier is not a number."""
    try:
        return np.array([int(identifier) for identifier in ids], dtype=np.int64)
    except ValueError:
        return np.arange(1, len(ids) + 1)
