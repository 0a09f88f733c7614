"""Elements of atoms in PDB and mmCIF files, also of those that state none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from ase.data import atomic_numbers

from mlmd_calc.biomolecules.residues import PARENTS, RESIDUES, WATERS, standard_atom_name
from mlmd_calc.biomolecules.sites import Site
from mlmd_calc.errors import InputError

_HYDROGENS: Final = {"H": 0.0, "D": 2.01410178, "T": 3.01604928}
"""Symbols of hydrogen with masses in amu; 0 is the natural mixture."""
_NO_ATOMS: Final = ("EP", "LP", "M", "MW", "VS", "X")
_UNMISTAKABLE: Final = ("CL", "BR", "SI", "SE")
"""Elements of two letters that no atom name of carbon, sulfur and so on begins with."""
_ORGANIC: Final = "CNOHSP"
"""Elements whose symbol begins the names of their atoms in ligands."""
_IONS: Final = {
    **{"SOD": "NA", "POT": "K", "CLA": "CL", "CES": "CS", "LIT": "LI", "RUB": "RB"},
    **{"CAL": "CA", "BAR": "BA", "CAD": "CD"},
}
"""What CHARMM calls ions."""


class Element(NamedTuple):
    """Element and isotope of an atom.

    Attributes
    ----------
    number
        Atomic number, 0 for a site that is no atom.
    mass
        Of an isotope in amu, 0 for the natural mixture.
    """

    number: int
    mass: float = 0.0


def is_aligned(atoms: Sequence[Site]) -> bool:
    """Tell whether names stand in the columns that tell the element, as the format asks for."""
    return any(atom.columns.startswith(" ") for atom in atoms)


def is_known_residue(name: str) -> bool:
    """Tell whether the name of a residue tells the elements of its atoms."""
    return PARENTS.get(name, name) in RESIDUES or name in WATERS


def site_element(atom: Site, residue_size: int, aligned: bool) -> Element:
    """Find the element: as stated, by the residue, by the columns or the letters of the name.

    Parameters
    ----------
    atom
        As the file has it.
    residue_size
        Number of atoms of its residue.
    aligned
        From `is_aligned`.

    Raises
    ------
    InputError
        If the element is unknown, or there is none and the name leaves it open.
    """
    letters = atom.name.lstrip("0123456789'\"*").upper()
    residue = PARENTS.get(atom.residue_name, atom.residue_name)
    if atom.element:
        symbol = atom.element.upper()
    elif residue in RESIDUES:
        symbol = _in_residue(residue, letters)
    elif atom.residue_name in WATERS:
        symbol = letters[:1] if letters[:1] in ("O", "H", "D") else "X"
    elif residue_size == 1 and _is_element(_ion(letters)):
        symbol = _ion(letters)
    elif aligned:
        symbol = _by_columns(atom, letters)
    else:
        symbol = _by_letters(letters) if residue_size > 1 else ""
    if symbol in _HYDROGENS:
        return Element(1, _HYDROGENS[symbol])
    if symbol in _NO_ATOMS:
        return Element(0)
    if _is_element(symbol):
        return Element(atomic_numbers[symbol.capitalize()])
    raise InputError(
        f"atom {atom.name} of residue {atom.residue_name} {atom.key.number} has "
        + (f"the element {atom.element!r}" if atom.element else "no element")
        + " in columns 77-78, and its name leaves it open; write the file anew with elements, for "
        "example with OpenMM"
    )


def _is_element(symbol: str) -> bool:
    return symbol.capitalize() in atomic_numbers and symbol != "X"


def two_letter_symbol(name: str, residue_size: int) -> str | None:
    """Symbol of an element of two letters that a name without one tells; None if it tells none.

    Parameters
    ----------
    name
        Of the atom, ``CL1`` or ``NA``.
    residue_size
        Number of atoms of its residue; single ones are ions.
    """
    letters = name.upper()
    symbol = _ion(letters) if residue_size == 1 else letters[:2]
    known = residue_size == 1 or symbol in _UNMISTAKABLE
    return symbol.capitalize() if known and len(symbol) == 2 and _is_element(symbol) else None


def _ion(letters: str) -> str:
    """Element of a single atom, as ``CL-``, ``Na+`` or ``CLA``."""
    symbol = re.sub(r"[^A-Z].*", "", letters)
    return _IONS.get(symbol, symbol)


def _by_letters(letters: str) -> str:
    """Element that begins a name of a ligand's atom; empty if there are several that may.

    ``CA`` and ``NA`` are carbon and nitrogen; calcium and sodium are residues of one atom.
    """
    pair = letters[:2]
    return letters[:1] if letters[:1] in _ORGANIC and pair not in _UNMISTAKABLE else ""


def _in_residue(residue: str, letters: str) -> str:
    name = standard_atom_name(residue, letters)
    if name in RESIDUES[residue].atoms:
        return "SE" if letters == "SE" else name[0]
    return letters[:1]


def _by_columns(atom: Site, letters: str) -> str:
    """Element that ends in the second column of an aligned name; empty if that is no answer."""
    first, pair = letters[:1], letters[:2]
    if atom.columns[:1] == " ":
        # The second letter of a name that was written one column too far to the right.
        return "" if pair in ("CL", "BR") else first
    if atom.columns[:1].isdigit() or pair in _UNMISTAKABLE:
        return first if atom.columns[:1].isdigit() else pair
    if len(atom.name) == 4 and (first in _HYDROGENS or not _is_element(pair)):
        return first
    return ""
