"""What PDB and mmCIF files say about atoms, line by line, before it is made sense of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class ResidueKey(NamedTuple):
    """Where an atom belongs.

    Attributes
    ----------
    segment
        Counts the stretches between TER records, or differs between the chains of mmCIF.
    chain, number, insertion_code
        As the authors of the file chose them.
    """

    segment: str
    chain: str
    number: int
    insertion_code: str


class Site(NamedTuple):
    """One atom at one place.

    Attributes
    ----------
    serial
        What CONECT records call it.
    name, columns
        Name without and with the blanks around it, which tell the element in PDB files.
    location
        Label of the alternate location, empty if there is only one.
    residue_name, key
        Residue it belongs to.
    position
        Å.
    occupancy, element, charge
        Element and formal charge as far as the file has them, else empty and 0.
    """

    serial: str
    name: str
    columns: str
    location: str
    residue_name: str
    key: ResidueKey
    position: tuple[float, float, float]
    occupancy: float
    element: str
    charge: int


class Address(NamedTuple):
    """An atom that a record on bonds names."""

    chain: str
    number: int
    insertion_code: str
    name: str


@dataclass
class Sites:
    """One model of a file.

    Attributes
    ----------
    atoms
        In the order of the file.
    links
        Pairs of atoms that SSBOND, LINK or ``_struct_conn`` say are bonded.
    connected
        Pairs of serial numbers of CONECT records.
    cell
        Lengths in Å and angles in degrees; None if the file has none.
    models
        Number of models of the file.
    """

    atoms: list[Site] = field(default_factory=list)
    links: list[tuple[Address, Address]] = field(default_factory=list)
    connected: list[tuple[str, str]] = field(default_factory=list)
    cell: tuple[float, ...] | None = None
    models: int = 1
