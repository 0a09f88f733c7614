"""What is known about residues by name: which are one token, their atoms, charges, other names."""

from __future__ import annotations

import itertools
from importlib import resources
from typing import Final, NamedTuple

import ase
import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from mlmd_calc.geometry.bonds import find_bonds


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
"""Class index of everything that is not a standard amino acid."""


def _residues() -> dict[str, Residue]:
    """Read the conformers of amino acids, in the order of their classes, and of caps.

    RDKit's ETKDGv3 conformers (version 2026.09.1, seed 0) of the free amino acids, of acetaldehyde
    for ACE and of methylamine for NME. The arms of valine and leucine are called as
    :mod:`.prochirality` says. The atoms are in the order the network sees them, that of the Protein
    Data Bank, OXT last. Amino acids lie in the frame of N, CA and C, so that a conformer has the
    same pose in every system.
    """
    file = resources.files("mlmd_calc.biomolecules") / "residue_conformers.txt"
    rows = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    caps = {"ACE": ("CH3", ("CH3", "C", "O")), "NME": ("C", None)}
    residues: dict[str, Residue] = {}
    for name, group in itertools.groupby(rows, lambda row: row[0]):
        own = list(group)
        representative, frame = caps.get(name, ("CA" if name == "GLY" else "CB", ("N", "CA", "C")))
        residues[name] = Residue(
            restype=min(len(residues), UNKNOWN),
            atoms=tuple(row[1] for row in own),
            conformer=np.array([row[2:] for row in own], dtype=np.float64),
            representative=representative,
            frame=frame,
        )
    return residues


RESIDUES: Final = _residues()
"""The 20 amino acids and the caps ACE and NME."""

CAPS: Final = ("ACE", "NME")


def _bonds(name: str, residue: Residue) -> frozenset[tuple[str, str]]:
    elements = [atomic_numbers[atom[0]] for atom in residue.atoms]
    pairs = find_bonds(ase.Atoms(elements, residue.conformer)).pairs
    names = [EXCHANGED.get((name, atom), atom) for atom in residue.atoms]
    return frozenset((names[i], names[j]) for i, j in pairs.tolist())


EXCHANGED: Final = {("ILE", "CG1"): "CG2", ("ILE", "CG2"): "CG1"}
"""Atoms whose names the conformers, and with them all trained networks, have the wrong way round:
in PDB files CD1 of isoleucine is bonded to CG1."""

RESIDUE_BONDS: Final = {name: _bonds(name, residue) for name, residue in RESIDUES.items()}
"""Bonds between heavy atoms of each residue, as pairs of names in PDB files."""

_STATES: Final = {
    **dict.fromkeys(("HID", "HIE", "HIP", "HSD", "HSE", "HSP"), "HIS"),
    **dict.fromkeys(("HISD", "HISE", "HISH"), "HIS"),
    **dict.fromkeys(("CYX", "CYM", "CYS2", "CYSH"), "CYS"),
    **{"ASH": "ASP", "ASPH": "ASP", "GLH": "GLU", "GLUH": "GLU", "LYN": "LYS", "LYSH": "LYS"},
    **{"MSE": "MET", "NMA": "NME"},
}

PARENTS: Final = _STATES | {
    f"{end}{name}": _STATES.get(name, name)
    for end in "NC"
    for name in (*RESIDUES, *_STATES)
    if len(name) == 3 and name not in (*CAPS, "NMA")
}
"""Names of protonation states, of ends in Amber's libraries (NALA, CALA) and the like, to the
residue whose token they are."""

BRIDGED: Final = frozenset({"CYX", "NCYX", "CCYX", "CYS2"})
"""Names of cysteines in disulfide bridges."""

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
    """A group of atoms that takes up or gives off a proton."""

    atoms: tuple[str, ...]
    """The last one bears the charge in the features."""
    hydrogens: int
    """Number of hydrogens when neutral."""
    charged: int
    """Charge when not neutral, -1 or 1."""
    at_ph_7: bool = True
    """Whether it is charged at pH 7, for structures without hydrogens."""


ACIDS: Final = {
    "ASP": Acid(("OD1", "OD2"), 1, -1),
    "GLU": Acid(("OE1", "OE2"), 1, -1),
    "HIS": Acid(("NE2", "ND1"), 1, 1, at_ph_7=False),
    "CYS": Acid(("SG",), 1, -1, at_ph_7=False),
    "TYR": Acid(("OH",), 1, -1, at_ph_7=False),
    "LYS": Acid(("NZ",), 2, 1),
    "ARG": Acid(("NE", "NH1", "NH2"), 4, 1),
}
"""Side chains."""

C_TERMINUS: Final = Acid(("O", "OXT"), 1, -1)
N_TERMINUS: Final = Acid(("N",), 2, 1)
PROLINE_N_TERMINUS: Final = Acid(("N",), 1, 1)

STATED_CHARGES: Final = {
    **{"ASH": 0, "ASPH": 0, "GLH": 0, "GLUH": 0, "LYN": 0},
    **{"HIP": 1, "HSP": 1, "HISH": 1, "CYM": -1},
}
"""Charges of side chains that the name of the residue tells."""

_HYDROGENS: Final = """
    ALA CA:1 CB:3
    ARG CA:1 CB:2 CG:2 CD:2
    ASN CA:1 CB:2 CG:0 OD1:0 ND2:2
    ASP CA:1 CB:2 CG:0
    CYS CA:1 CB:2
    GLN CA:1 CB:2 CG:2 CD:0 OE1:0 NE2:2
    GLU CA:1 CB:2 CG:2 CD:0
    GLY CA:2
    HIS CA:1 CB:2 CG:0 CD2:1 CE1:1
    ILE CA:1 CB:1 CG1:2 CG2:3 CD1:3
    LEU CA:1 CB:2 CG:1 CD1:3 CD2:3
    LYS CA:1 CB:2 CG:2 CD:2 CE:2
    MET CA:1 CB:2 CG:2 SD:0 CE:3
    PHE CA:1 CB:2 CG:0 CD1:1 CD2:1 CE1:1 CE2:1 CZ:1
    PRO CA:1 CB:2 CG:2 CD:2
    SER CA:1 CB:2 OG:1
    THR CA:1 CB:1 OG1:1 CG2:3
    TRP CA:1 CB:2 CG:0 CD1:1 CD2:0 NE1:1 CE2:0 CE3:1 CZ2:1 CZ3:1 CH2:1
    TYR CA:1 CB:2 CG:0 CD1:1 CD2:1 CE1:1 CE2:1 CZ:0
    VAL CA:1 CB:1 CG1:3 CG2:3
    ACE CH3:3 C:0 O:0
    NME N:1 C:3
"""


def _hydrogens(line: str) -> tuple[str, dict[str, int]]:
    name, *entries = line.split()
    counts = (entry.split(":") for entry in entries)
    return name, {atom: int(count) for atom, count in counts}


HYDROGENS: Final = dict(map(_hydrogens, _HYDROGENS.strip().splitlines()))
"""Hydrogens of heavy atoms that are the same in every protonation state; without N, C and O of
amino acids."""

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
