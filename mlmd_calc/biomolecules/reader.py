"""The reader of PDB and mmCIF files: from lines to residues, elements and bonds."""

from __future__ import annotations

import codecs
import itertools
import lzma
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import ase.io.formats
import numpy as np
from ase.data import atomic_masses
from numpy.typing import NDArray

from mlmd_calc.biomolecules.elements import is_aligned, is_known_residue, site_element
from mlmd_calc.biomolecules.linking import find_links
from mlmd_calc.biomolecules.mmcif import parse_mmcif
from mlmd_calc.biomolecules.pdb import parse_pdb
from mlmd_calc.biomolecules.residues import NUCLEOTIDES
from mlmd_calc.biomolecules.sites import Site, Sites
from mlmd_calc.biomolecules.structure import BondedStructure
from mlmd_calc.errors import InputError, ModelFileError
from mlmd_calc.io.files import COMPRESSED, bare_suffix, refuse_capital_ending, refuse_huge

_PARSERS: Final[Mapping[str, Callable[[str, int], Sites]]] = MappingProxyType(
    {".pdb": parse_pdb, ".ent": parse_pdb, ".cif": parse_mmcif, ".mmcif": parse_mmcif}
)
NO_CELL: Final = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""Lengths that stand for the absence of a cell."""


@dataclass(frozen=True)
class StructureFile:
    """Content of a PDB or mmCIF file.

    Attributes
    ----------
    structure
        Names, residues, bonds and positions; its notes say what was chosen.
    masses
        ``(n,)`` amu: of deuterium and tritium where the file has them, else of the natural mixture.
    cell
        Lengths in Å and angles in degrees of a periodic cell, or None.
    """

    structure: BondedStructure
    masses: NDArray[np.float64]
    cell: tuple[float, ...] | None

    @property
    def has_isotopes(self) -> bool:
        """Whether there is deuterium or tritium."""
        return bool((self.masses != atomic_masses[self.structure.numbers]).any())


def is_structure_file(path: str | os.PathLike[str]) -> bool:
    """Tell by the name whether `read_structure_file` is for a file."""
    return bare_suffix(Path(path)) in _PARSERS


def read_structure(path: str | os.PathLike[str], model: int = 0) -> BondedStructure:
    """Read a structure; see `read_structure_file`."""
    return read_structure_file(path, model).structure


def read_structure_file(path: str | os.PathLike[str], model: int = 0) -> StructureFile:
    """Read one model of a PDB or mmCIF file.

    Bonds inside amino acids are those of their templates; peptide bonds and disulfide bridges are
    found by distances. All are checked: a bond that is too long, a chain with a gap, atoms of two
    residues on top of each other are refused. Of alternate locations the one with the highest
    occupancy is taken, residue by residue.

    Parameters
    ----------
    path
        File that ends in .pdb, .ent, .cif or .mmcif, or one of these and .gz, .bz2 or .xz.
    model
        Index of the model.

    Raises
    ------
    ModelFileError
        If the file is missing, of another kind, or cannot be read.
    InputError
        If its content is no whole structure, or elements are missing that names do not tell.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"the structure file {path} does not exist")
    refuse_huge(path)
    refuse_capital_ending(path)
    parse = _PARSERS.get(bare_suffix(path))
    if parse is None:
        raise ModelFileError(
            f"{path} is not a structure file by its name; readable are {', '.join(_PARSERS)}, also "
            f"compressed ({', '.join(COMPRESSED)})"
        )
    try:
        with ase.io.formats.open_with_compression(str(path), "rb") as file:
            content = file.read()
        is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if is_wide else "utf-8-sig", errors="replace")
        sites = parse(text, model)
        return _structure_file(sites, model)
    except (ModelFileError, InputError) as error:
        raise type(error)(f"{path}: {error}") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ModelFileError(f"the structure file {path} cannot be read: {error}") from error


def structure_from_pdb(text: str, positions: NDArray[np.float64] | None = None) -> BondedStructure:
    """Read PDB records, with positions ``(n, 3)`` Å from elsewhere if there are better ones.

    Raises
    ------
    ModelFileError, InputError
        As `read_structure_file`, or if the number of atoms is another one.
    """
    sites = parse_pdb(text)
    if positions is None:
        return _structure_file(sites).structure
    if len(sites.atoms) != len(positions):
        raise InputError(
            f"the PDB text has {len(sites.atoms)} atoms, the frames have {len(positions)}; give "
            "frames with the atoms of the text in their order"
        )
    sites.atoms = [
        atom._replace(position=tuple(place), location="")
        for atom, place in zip(sites.atoms, positions.tolist(), strict=True)
    ]
    return _structure_file(sites).structure


def _structure_file(sites: Sites, model: int = 0) -> StructureFile:
    if not sites.atoms:
        raise ModelFileError(
            "there are no atoms; ATOM or HETATM records, or _atom_site, are needed"
        )
    sites.atoms = [_in_capitals(atom) for atom in sites.atoms]
    notes = []
    if sites.models > 1:
        taken = model % sites.models + 1
        notes.append(f"The file has {sites.models} models; model {taken} is taken.")
    groups = list(_residues(sites.atoms, notes))
    atoms = [atom for group in groups for atom in group]
    aligned = is_aligned(atoms)
    notes += _guessed(groups, aligned)
    elements = [site_element(atom, len(group), aligned) for group in groups for atom in group]
    chains = _chains([group[0] for group in groups])
    first_of_chain = {chain: group[0] for group, chain in zip(groups, chains, strict=True)}
    structure = BondedStructure(
        names=tuple(atom.name for atom in atoms),
        numbers=np.array([element.number for element in elements], dtype=np.int64),
        residues=np.repeat(np.arange(len(groups)), [len(group) for group in groups]),
        residue_names=tuple(group[0].residue_name for group in groups),
        residue_numbers=np.array([group[0].key.number for group in groups], dtype=np.int64),
        chains=np.array(chains, dtype=np.int64),
        chain_names=tuple(first_of_chain[chain].key.chain for chain in sorted(first_of_chain)),
        bonds=np.empty((0, 2), dtype=np.int64),
        charges=np.array([atom.charge for atom in atoms], dtype=np.int64),
        positions=np.array([atom.position for atom in atoms], dtype=np.float64),
        insertion_codes=tuple(group[0].key.insertion_code for group in groups),
        notes=tuple(notes),
    )
    structure = replace(structure, bonds=find_links(structure, _stated(sites, atoms)))
    return StructureFile(
        structure,
        masses=np.array([element.mass or atomic_masses[element.number] for element in elements]),
        cell=None if sites.cell is None or sites.cell[:3] in NO_CELL else _cell(sites.cell),
    )


def _cell(cell: tuple[float, ...]) -> tuple[float, ...]:
    """Refuse lengths and angles between which there is no volume."""
    cosines = np.cos(np.deg2rad(cell[3:]))
    volume = np.prod(cell[:3]) * (1.0 - np.square(cosines).sum() + 2.0 * cosines.prod())
    if not (min(cell) > 0.0 and 0.0 < volume < np.inf):
        raise InputError(
            f"the lengths {cell[:3]} Å and angles {cell[3:]} degrees are those of no cell; remove "
            "CRYST1 or _cell where there is none"
        )
    return cell


def _in_capitals(atom: Site) -> Site:
    """Give residues that have templates their names, also where a file has small letters."""
    residue_name, name = atom.residue_name.upper(), atom.name.upper()
    if (residue_name, name) == (atom.residue_name, atom.name):
        return atom
    known = is_known_residue(residue_name) or residue_name in NUCLEOTIDES
    return atom._replace(residue_name=residue_name, name=name) if known else atom


def _residues(atoms: Sequence[Site], notes: list[str]) -> Iterator[list[Site]]:
    """Group atoms, each at one place; say which alternate locations were taken."""
    chosen: list[str] = []
    for _, members in itertools.groupby(atoms, key=lambda atom: atom.key):
        group = list(members)
        if any(atom.location for atom in group):
            group, location = _one_location(group)
            code = f"{group[0].key.number}{group[0].key.insertion_code}"
            chosen.append(f"{location} of {group[0].residue_name} {code}")
        for _, same in itertools.groupby(group, key=lambda atom: atom.residue_name):
            residue = list(same)
            # Ions are sometimes all one residue by number.
            alike = len({atom.name for atom in residue}) == 1
            yield from [[atom] for atom in residue] if alike else [residue]
    if chosen:
        more = f" and {len(chosen) - _LISTED} more" if len(chosen) > _LISTED else ""
        notes.append(f"Alternate locations taken: {', '.join(chosen[:_LISTED])}{more}.")


def _guessed(groups: Sequence[Sequence[Site]], aligned: bool) -> list[str]:
    """Say where elements follow from nothing but the letters of names."""
    names = {
        group[0].residue_name: None
        for group in groups
        if len(group) > 1 and not group[0].element and not is_known_residue(group[0].residue_name)
    }
    if aligned or not names:
        return []
    return [f"Elements of {', '.join(names)} were taken from the names of the atoms."]


_LISTED: Final = 5


def _one_location(group: Sequence[Site]) -> tuple[list[Site], str]:
    """Keep the most occupied location, and atoms that are elsewhere only."""
    labelled = {atom.name for atom in group if atom.location}
    # Some files leave the label of the first location blank.
    group = [
        atom if atom.location or atom.name not in labelled else atom._replace(location="blank")
        for atom in group
    ]
    occupancy: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for atom in group:
        if atom.location:
            occupancy[atom.location] += atom.occupancy  # type: ignore[assignment]
            count[atom.location] += 1
    # The mean; the first label where they are equal.
    location = min(count, key=lambda label: (-round(occupancy[label] / count[label], 4), label))
    residue_name = next(atom.residue_name for atom in group if atom.location == location)
    own = [atom for atom in group if atom.residue_name == residue_name]
    names = {atom.name for atom in own if atom.location in ("", location)}
    kept: list[Site] = []
    for atom in own:
        if atom.location in ("", location):
            kept.append(atom)
        elif atom.name not in names:
            names.add(atom.name)
            kept.append(atom)
    return kept, location


def _chains(residues: Sequence[Site]) -> list[int]:
    """Count the chains: by name and TER records, or where numbers without a name go back."""
    chains = [0]
    for before, after in itertools.pairwise(residues):
        own, other = before.key, after.key
        ends = (own.segment, own.chain) != (other.segment, other.chain)
        ends |= not own.chain and other.number < own.number
        chains.append(chains[-1] + ends)
    return chains


def _stated(sites: Sites, atoms: Sequence[Site]) -> list[tuple[int, int]]:
    """Bonds that the file states, as indices; those to atoms that were not taken are left out."""
    by_serial = {atom.serial: index for index, atom in enumerate(atoms)}
    pairs = []
    # Serial numbers may have run over.
    if len(by_serial) == len(atoms):
        pairs += [
            (by_serial[first], by_serial[second])
            for first, second in sites.connected
            if first in by_serial and second in by_serial and first != second
        ]
    by_address: dict[tuple[str, int, str, str], int] = {}
    for index, atom in enumerate(atoms):
        key = (atom.key.chain, atom.key.number, atom.key.insertion_code, atom.name.upper())
        by_address.setdefault(key, index)
    for first, second in sites.links:
        ends = [end._replace(name=end.name.upper()) for end in (first, second)]
        if all(end in by_address for end in ends):
            pairs.append((by_address[ends[0]], by_address[ends[1]]))
    return pairs
