"""What is known about residues by name: which are one token, their atoms, charges, other names."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from mlmd_calc.biomolecules.residue_conformers import RESIDUE_CONFORMERS


class Residue(NamedTuple):
    """A residue that is one token.

    Heavy atoms only, in the order of the network.
    """

    restype: int
    """Class index; 20 for caps."""
    atoms: tuple[str, ...]
    """Names, OXT last."""
    conformer: NDArray[np.float64]
    """``(len(atoms), 3)`` reference conformer, Å."""
    representative: str
    """Atom that stands for the residue in distances."""
    frame: tuple[str, str, str] | None
    """Atoms of the local frame, the second at its origin; None if the residue has too few."""


UNKNOWN: Final = 20
"""Class index of everything that is no standard amino acid."""


def _parse(name: str, index: int) -> Residue:
    rows = [line.split() for line in RESIDUE_CONFORMERS[name].strip().splitlines()]
    caps = {"ACE": ("CH3", ("CH3", "C", "O")), "NME": ("C", None)}
    representative, frame = caps.get(name, ("CA" if name == "GLY" else "CB", ("N", "CA", "C")))
    return Residue(
        restype=min(index, UNKNOWN),
        atoms=tuple(row[0] for row in rows),
        conformer=np.array([row[1:] for row in rows], dtype=np.float64),
        representative=representative,
        frame=frame,
    )


RESIDUES: Final = {name: _parse(name, index) for index, name in enumerate(RESIDUE_CONFORMERS)}
"""The 20 amino acids and the caps ACE and NME."""

CAPS: Final = ("ACE", "NME")

PARENTS: Final = {
    **dict.fromkeys(("HID", "HIE", "HIP", "HSD", "HSE", "HSP"), "HIS"),
    **dict.fromkeys(("CYX", "CYM", "CYS2"), "CYS"),
    **{"ASH": "ASP", "GLH": "GLU", "LYN": "LYS", "MSE": "MET", "NMA": "NME"},
}
"""Names of protonation states and the like, to the residue whose token they are."""

_TERMINAL_OXYGENS: Final = {"OT1": "O", "OC1": "O", "O1": "O"} | dict.fromkeys(
    ("OT2", "OC2", "O2"), "OXT"
)
_OTHER_NAMES: Final = {
    "ILE": {"CD": "CD1"},
    "MET": {"SE": "SD"},
    "NME": {"CH3": "C", "CA": "C"},
}


def standard_atom_name(residue: str, name: str) -> str:
    """Return the standard name of a heavy atom of a residue of `RESIDUES`."""
    if name in RESIDUES[residue].atoms:
        return name
    others = _OTHER_NAMES.get(residue, {})
    return others.get(name) or _TERMINAL_OXYGENS.get(name, name)


class Acid(NamedTuple):
    """A group of atoms that takes up or gives off protons."""

    atoms: tuple[str, ...]
    """The last one bears the charge in the features."""
    hydrogens: int
    """Number of hydrogens when neutral."""
    charge: int
    """Charge at pH 7, for structures without hydrogens."""


ACIDS: Final = {
    "ASP": Acid(("OD1", "OD2"), 1, -1),
    "GLU": Acid(("OE1", "OE2"), 1, -1),
    "HIS": Acid(("NE2", "ND1"), 1, 0),
    "CYS": Acid(("SG",), 1, 0),
    "TYR": Acid(("OH",), 1, 0),
    "LYS": Acid(("NZ",), 2, 1),
    "ARG": Acid(("NE", "NH1", "NH2"), 4, 1),
}
"""Side chains."""

C_TERMINUS: Final = Acid(("O", "OXT"), 1, -1)
N_TERMINUS: Final = Acid(("N",), 2, 1)
PROLINE_N_TERMINUS: Final = Acid(("N",), 1, 1)

STATED_CHARGES: Final = {"ASH": 0, "GLH": 0, "LYN": 0, "HIP": 1, "HSP": 1, "CYM": -1}
"""Charges of side chains that the name of the residue tells."""

WATERS: Final = frozenset(
    {"HOH", "H2O", "DOD", "WAT", "SOL", "TIP", "SPC", "SPCE", "OPC", "OPC3"}
    | {f"{stem}{sites}" for stem in ("TIP", "TP", "OP") for sites in (2, 3, 4, 5)}
    | {f"{stem}{sites}P" for stem in ("TIP", "T") for sites in (3, 4, 5)}
)

_IONS = "Li Na K Rb Cs Be Mg Ca Sr Ba F Cl Br I Mn Fe Co Ni Cu Zn Cd Hg Al Ag Pb"
ION_ELEMENTS: Final = frozenset(map(atomic_numbers.__getitem__, _IONS.split()))
"""Elements whose single atoms are left out as ions."""

NUCLEOTIDES: Final = frozenset(
    f"{sugar}{base}{end}" for sugar in ("", "D", "R") for base in "ACGTU" for end in ("", "3", "5")
)
