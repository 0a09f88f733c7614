"""What ASE does not say of XYZ files."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path
from typing import Final

import ase
import numpy as np
from ase.data import atomic_masses
from ase.io.formats import open_with_compression

from mlmd_calc.errors import InputError, ModelFileError

_WIDTHS: Final = {"masses": (), "momenta": (3,)}
"""Numbers of an atom in columns that ASE takes as they are."""


_PROPERTIES: Final = re.compile(r"""\bProperties=["']?([\w:]+)""")
"""Names, types and widths of the columns."""

_OTHER_MASSES: Final = ("mass", "mass_number", "isotope", "isotopes")
"""Columns of masses that ASE keeps beside those that it moves atoms with."""
_UNLIKE: Final = 0.5
"""amu; nearer to the natural mass it is that, rounded."""


def refuse_odd_columns(where: str, atoms: ase.Atoms) -> None:
    """Refuse masses and momenta that are no such numbers, and isotopes that ASE would pass over.

    Raises
    ------
    InputError
        With what the column begins with.
    """
    for name in _OTHER_MASSES:
        values = atoms.arrays.get(name)
        if values is None or values.dtype.kind not in "iuf" or values.ndim != 1:
            continue
        unlike = (values != 0) & (np.abs(values - atomic_masses[atoms.numbers]) > _UNLIKE)
        if unlike.any() and not atoms.has("masses"):
            atom = int(np.argmax(unlike))
            raise InputError(
                f"{where}: the column {name!r} has {values[atom]:g} for atom {atom}, "
                f"{atoms.symbols[atom]}, and would be passed over; call it masses (in amu), or "
                "leave it out for natural masses"
            )
    for name, width in _WIDTHS.items():
        values = atoms.arrays.get(name)
        if values is not None and (values.dtype.kind not in "iuf" or values.shape[1:] != width):
            raise InputError(
                f"{where}: the column {name!r} begins with {values[:1].tolist()[0]!r}; each atom "
                f"needs {'three numbers' if width else 'one number'}, so correct it or leave it out"
            )


def refuse_columns_without_names(path: Path) -> None:
    """Refuse an XYZ file with more columns than it names, which ASE passes over: forces, maybe.

    Raises
    ------
    ModelFileError
        If the first atom has more columns than ``Properties`` tells, four where that is missing.
    """
    with open_with_compression(str(path), "r") as file:
        _, comment, atom = (file.readline() for _ in range(3))
    properties = _PROPERTIES.search(comment)
    widths = [1, 3] if properties is None else map(int, properties[1].split(":")[2::3])
    named, found = sum(widths), len(atom.split())
    if found > named:
        raise ModelFileError(
            f"{path} has {found} columns, of which only the first {named} have names and would be "
            "read; name them in the comment, as Properties=species:S:1:pos:R:3:forces:R:3 for "
            "forces in eV/Å, or leave them out"
        )


def refuse_frames_behind_blank_lines(path: Path) -> None:
    """Refuse an XYZ file of which ASE would read a part, because it takes a blank line for the end.

    Raises
    ------
    ModelFileError
        If frames follow a blank line.
    """
    with open_with_compression(str(path), "r") as file:
        for frame in count():
            head = file.readline()
            if not head.strip():
                if any(line.strip() for line in file):
                    raise ModelFileError(
                        f"{path} has a blank line behind {frame} of its frames, which ends an XYZ "
                        "file; remove blank lines between frames"
                    )
                return
            if not head.strip().isdecimal():
                return  # ASE refuses it, and says why.
            for _ in range(int(head) + 1):
                file.readline()
