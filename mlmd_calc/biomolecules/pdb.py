"""The PDB format: fixed columns, read and written."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mlmd_calc.biomolecules.residues import PARENTS, RESIDUES
from mlmd_calc.biomolecules.sites import Address, ResidueKey, Site, Sites
from mlmd_calc.biomolecules.structure import BondedStructure
from mlmd_calc.errors import ModelFileError

_SAME_UNIT: Final = ("", "1555")
"""Symmetry operators of bonds that do not leave the molecule."""
_LONGEST_CHAIN_NAME: Final = 1
_CHAIN_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def parse_pdb(text: str, model: int = 0) -> Sites:
    """Read one model.

    Parameters
    ----------
    text
        Content of the file.
    model
        Index of the model; counted from the end if it is negative.

    Raises
    ------
    ModelFileError
        If there is no such model, or an atom has no number of its residue or no position.
    """
    sites = Sites()
    models: list[list[Site]] = [[]]
    segment = 0
    for line in _with_models(text.splitlines()):
        record = line[:6].rstrip()
        if line.startswith(_ATOMS):
            models[-1].append(_site(line, segment))
        elif record == "TER":
            segment += 1
        elif record in ("MODEL", "ENDMDL") and models[-1]:
            models.append([])
            segment = 0
        elif record == "CONECT":
            sites.connected += _connected(line)
        elif record == "CRYST1":
            sites.cell = tuple(_number(line, i, j) for i, j in _CELL)
        elif record in ("SSBOND", "LINK"):
            sites.links += _links(line, record)
    models = [atoms for atoms in models if atoms] or [[]]
    if not -len(models) <= model < len(models):
        raise ModelFileError(f"there is no model {model}; the file has {len(models)}")
    sites.atoms, sites.models = models[model], len(models)
    return sites


def _with_models(lines: list[str]) -> list[str]:
    """Let END end a model where it stands between frames of the same atoms, as VMD writes them."""
    ends = [index for index, line in enumerate(lines) if line[:6].rstrip() == "END"]
    frames = [
        [line[12:26] for line in lines[begin:end] if line.startswith(_ATOMS)]
        for begin, end in itertools.pairwise([0, *ends, len(lines)])
    ]
    frames = [names for names in frames if names]
    if len(frames) < 2 or any(names != frames[0] for names in frames):
        return lines
    return ["ENDMDL" if line[:6].rstrip() == "END" else line for line in lines]


_ATOMS: Final = ("ATOM", "HETATM")
"""How lines of atoms begin; serial numbers of six digits follow at once."""
_PARTNERS: Final = {
    "SSBOND": ((None, 15, 17), (None, 29, 31)),
    "LINK": ((12, 21, 22), (42, 51, 52)),
}
"""Where atom name, chain and residue number of the two atoms of a bond begin."""
_CELL: Final = ((6, 15), (15, 24), (24, 33), (33, 40), (40, 47), (47, 54))


def _number(line: str, begin: int, end: int) -> float:
    try:
        return float(line[begin:end])
    except ValueError as error:
        raise ModelFileError(
            f"{line[begin:end].strip()!r} in columns {begin + 1}-{end} is not a number: {line!r}; "
            "write the file again in the columns of PDB, without tabs, or as mmCIF"
        ) from error


def _site(line: str, segment: int) -> Site:
    element, occupancy = line[76:78].strip(), line[54:60].strip()
    return Site(
        serial=line[6:11].strip(),
        name=line[12:16].strip(),
        columns=line[12:16],
        location=line[16:17].strip(),
        residue_name=line[17:21].strip(),
        key=ResidueKey(
            str(segment),
            # CHARMM leaves the chain out and names the segment.
            line[21:22].strip() or line[72:76].strip(),
            int(_number(line, 22, 26)) if line[22:26].strip() else 0,
            line[26:27].strip(),
        ),
        position=(_number(line, 30, 38), _number(line, 38, 46), _number(line, 46, 54)),
        occupancy=float(occupancy) if occupancy.replace(".", "").isdigit() else 1.0,
        # Old files have an identifier of the entry there.
        element=element if element.isalpha() else "",
        charge=_charge(line[78:80]),
    )


def _charge(text: str) -> int:
    """Read ``2-``, ``-2``, ``-`` or nothing."""
    stated = text.strip()
    digits, sign = stated.strip("+-") or "1", "-" if "-" in stated else "+"
    return int(sign + digits) if digits.isdigit() and set(stated) & set("+-") else 0


def _connected(line: str) -> Iterator[tuple[str, str]]:
    first = line[6:11].strip()
    for begin in (11, 16, 21, 26):
        if second := line[begin : begin + 5].strip():
            yield first, second


def _links(line: str, record: str) -> Iterator[tuple[Address, Address]]:
    """Bonds within the unit that the file has."""
    if line[59:65].strip() in _SAME_UNIT and line[66:72].strip() in _SAME_UNIT:
        first, second = (
            Address(
                chain=line[chain : chain + 1].strip(),
                number=int(_number(line, number, number + 4)),
                insertion_code=line[number + 4 : number + 5].strip(),
                name="SG" if name is None else line[name : name + 4].strip(),
            )
            for name, chain, number in _PARTNERS[record]
        )
        yield first, second


def format_pdb(structure: BondedStructure, frame: NDArray[np.float64] | None = None) -> str:
    """Write atoms as PDB records, with insertion codes.

    Parameters
    ----------
    structure
        Names and residues; atoms without a name get one.
    frame
        ``(n, 3)`` Å; None for the positions of the structure.
    """
    positions = structure.positions if frame is None else frame
    chains = _chain_letters(structure.chain_names)
    lines = []
    for atom, (residue, number) in enumerate(
        zip(structure.residues.tolist(), structure.numbers.tolist(), strict=True)
    ):
        symbol, residue_name = chemical_symbols[number], structure.residue_names[residue]
        name = structure.names[atom] or f"{symbol}{atom + 1}"
        standard = PARENTS.get(residue_name, residue_name) in RESIDUES
        code = structure.insertion_codes[residue] if structure.insertion_codes else ""
        place = "".join(f"{x:8.3f}" for x in positions[atom])
        lines.append(
            f"{'ATOM' if standard else 'HETATM':<6}{(atom + 1) % 100_000:5d} "
            f"{_padded(name, symbol)} {residue_name:>3.4}".ljust(21)
            + f"{chains[structure.chains[residue]]}"
            f"{int(structure.residue_numbers[residue]) % 10_000:4d}{code or ' '}   {place}"
            f"  1.00  0.00          {symbol.upper():>2}{_signed(structure.charges[atom])}\n"
        )
    return "".join(lines)


def format_structure(structure: BondedStructure, frame: NDArray[np.float64] | None = None) -> str:
    """Write a PDB file with all bonds; see :func:`format_pdb`."""
    return f"{format_pdb(structure, frame)}{format_conect(structure)}END\n"


def format_conect(structure: BondedStructure) -> str:
    """CONECT records of the bonds that readers of PDB files do not know by themselves."""
    standard = [PARENTS.get(name, name) in RESIDUES for name in structure.residue_names]
    neighbours: dict[int, list[int]] = {}
    for first, second in structure.bonds.tolist():
        residues = structure.residues[first], structure.residues[second]
        peptide = {structure.names[first], structure.names[second]} == {"C", "N"}
        if all(standard[r] for r in residues) and (residues[0] == residues[1] or peptide):
            continue
        neighbours.setdefault(first, []).append(second)
        neighbours.setdefault(second, []).append(first)
    lines = []
    for atom, others in sorted(neighbours.items()):
        for begin in range(0, len(others), 4):
            serials = [atom, *sorted(others)[begin : begin + 4]]
            lines.append("CONECT" + "".join(f"{serial + 1:5d}" for serial in serials) + "\n")
    return "".join(lines) if len(structure) < 100_000 else ""


def _padded(name: str, symbol: str) -> str:
    """Elements end in the second column, as far as there is space."""
    name = name[:4]
    return f"{name:<4}" if len(name) == 4 or len(symbol) == 2 else f" {name:<3}"


def _signed(charge: int) -> str:
    return f"{abs(charge)}{'-' if charge < 0 else '+'}" if charge else "  "


def _chain_letters(names: Sequence[str]) -> list[str]:
    if all(len(name) <= _LONGEST_CHAIN_NAME for name in names):
        return [name or " " for name in names]
    return [_CHAIN_LETTERS[index % len(_CHAIN_LETTERS)] for index in range(len(names))]
