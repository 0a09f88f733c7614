"""Whether coordinates are of the residues, and of the hand, that a topology says.

No file says that it contradicts itself: published collections hold mirror images, which double the
data of models that cannot tell hands, and residues under the names of others. A model that is
trained on them learns both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import NDArray

from mlmd_calc.biomolecules.residues import PARENTS, RESIDUES
from mlmd_calc.biomolecules.structure import BondedStructure
from mlmd_calc.biomolecules.system import MolecularSystem
from mlmd_calc.errors import InputError
from mlmd_calc.geometry.bonds import bond_lengths
from mlmd_calc.geometry.stereochemistry import handedness

_USUAL: Final = (0.8, 1.15)
"""Mean lengths of bonds of amino acids over the sum of covalent radii. In molecular dynamics they
are 0.855 to 1.03; of sulfur under the name of oxygen 1.27, of oxygen under that of sulfur 0.78."""
_LOOKALIKES: Final = {
    "ASP": ("CG", "OD2", 1.1, 1.285),
    "ASN": ("CG", "ND2", 1.285, 1.43),
    "GLU": ("CD", "OE2", 1.1, 1.285),
    "GLN": ("CD", "NE2", 1.285, 1.43),
    "LEU": ("CG", "CD2", 1.43, 1.7),
    "THR": ("CB", "OG1", 1.3, 1.475),
    "VAL": ("CB", "CG1", 1.475, 1.7),
}
"""Amino acids whose heavy atoms are joined as those of another one, and a bond by whose mean length
in Å they differ: 1.26 (COO⁻), 1.31 (CONH₂), 1.42 (C-OH) or 1.53 (C-CH₃) in Amber14."""
_THERMAL: Final = 0.03
"""Å that a bond's length varies by from frame to frame."""

_SHORTEST, _LONGEST = 0.9, 2.8
"""Å. Bonds between heavy atoms are 1.1 Å (C≡N) to 2.2 Å (C-I), in a simulation 0.2 Å more."""

_CHUNK: Final = 32
"""Frames whose bonds are measured at a time."""


def check_simulation(
    path: Path,
    structure: BondedStructure,
    system: MolecularSystem,
    positions: NDArray[np.float32],
) -> None:
    """Refuse what is in no molecular dynamics of the topology: all checks of this module.

    Raises
    ------
    InputError
        With what is wrong, and what to do.
    """
    check_residues(path, structure, system, positions)
    check_lookalikes(path, structure, system, positions)
    check_natural(path, system)
    check_hands(path, structure, system, positions, tolerated=0.0)


def check_residues(
    path: Path,
    structure: BondedStructure,
    system: MolecularSystem,
    positions: NDArray[np.float32],
) -> None:
    """Refuse amino acids whose bonds have lengths between other elements.

    Parameters
    ----------
    path
        The file, for messages.
    structure, system
        The topology.
    positions
        ``(f, a, 3)`` Å of the atoms of the system.

    Raises
    ------
    InputError
        With the bond that is farthest off, and what to do.
    """
    residues = structure.residues[system.atoms]
    known = np.array([_parent(name) in RESIDUES for name in structure.residue_names])
    bonds = system.bonds[known[residues[system.bonds]].all(axis=1)]
    if not len(bonds):
        return
    numbers = structure.numbers[system.atoms]
    lengths = bond_lengths(positions, bonds).mean(axis=0)
    usual = covalent_radii[numbers[bonds]].sum(axis=1)
    shortest, longest = _USUAL
    ratios = lengths / usual
    beyond = np.maximum(shortest / ratios, ratios / longest)
    worst = int(beyond.argmax())
    if beyond[worst] <= 1.0:
        return
    first, second = bonds[worst]
    names = "-".join(structure.names[system.atoms[atom]] for atom in (first, second))
    elements = " and ".join(chemical_symbols[numbers[atom]] for atom in (first, second))
    raise InputError(
        f"the bond {names} of {structure.residue_label(int(residues[first]))} in {path} is "
        f"{lengths[worst]:.2f} Å long on average, where {usual[worst]:.2f} Å are usual between "
        f"{elements}: the residue is another one than it is called, as a cysteine under the name "
        "of serine, or its atoms are in another order; give the topology or sequence of this very "
        "trajectory, or leave it out"
    )


def check_lookalikes(
    path: Path,
    structure: BondedStructure,
    system: MolecularSystem,
    positions: NDArray[np.float32],
) -> None:
    """Refuse amino acids under the name of another one that has its heavy atoms at like places.

    Where there are hydrogens, these tell them apart.

    Raises
    ------
    InputError
        With the bond whose length says so, and what to do.
    """
    place = {int(atom): i for i, atom in enumerate(system.atoms)}
    with_hydrogens = set(structure.residues[structure.numbers == 1].tolist())
    for residue, name in enumerate(structure.residue_names):
        if name not in _LOOKALIKES or residue in with_hydrogens:
            continue
        *ends, shortest, longest = _LOOKALIKES[name]
        own = np.flatnonzero(structure.residues == residue)
        bond = [place.get(int(atom), -1) for atom in own if structure.names[atom] in ends]
        if len(bond) != 2 or min(bond) < 0:
            continue
        length = float(bond_lengths(positions, np.array([bond])).mean())
        chance = 3.0 * _THERMAL / len(positions) ** 0.5
        if not shortest - chance <= length <= longest + chance:
            raise InputError(
                f"the bond {'-'.join(ends)} of {structure.residue_label(residue)} in {path} is "
                f"{length:.3f} Å long on average, where {name} has {shortest} to {longest} Å: the "
                "residue is another one than it is called, as asparagine under the name of "
                "aspartate; give the topology or sequence of this very trajectory, call protonated "
                "acids ASH and GLH, or leave it out"
            )


def check_hands(
    path: Path,
    structure: BondedStructure,
    system: MolecularSystem,
    positions: NDArray[np.float32],
    *,
    tolerated: float,
) -> None:
    """Refuse frames that are mirror images of what the topology says.

    Parameters
    ----------
    path, structure, system, positions
        As for :func:`check_residues`.
    tolerated
        Share of the frames in which a centre may have the other hand, as in some that a model has
        drawn. In molecular dynamics none has.

    Raises
    ------
    InputError
        With the first of those frames, and what to do.
    """
    centres = system.handed_centres
    expected = handedness(system.reference[None], centres)
    wrong = handedness(positions, centres) != expected
    frames = np.flatnonzero(wrong.any(axis=1))
    if len(frames) <= tolerated * len(wrong):
        return
    frame = int(frames[0])
    centre = int(system.atoms[centres[int(wrong[frame].argmax()), 0]])
    residue = structure.residue_label(int(structure.residues[centre]))
    raise InputError(
        f"{structure.names[centre]} of {residue} in frame {frame} of {path} has the other hand "
        f"than in the topology, and so it is in {len(frames)} of {len(wrong)} frames: mirror "
        "images, as some collections add, or another molecule. Leave those frames out, or reflect "
        "them (positions[..., 0] *= -1), or give the topology of this very trajectory"
    )


def check_natural(path: Path, system: MolecularSystem) -> None:
    """Refuse D amino acids under the names of natural ones.

    Raises
    ------
    InputError
        With the first of them, and what to do.
    """
    for residue in system.residues:
        if residue.mirrored:
            raise InputError(
                f"{residue.label} in {path} is a mirror image at {', '.join(residue.mirrored)}, "
                "but has the name of the natural amino acid; reflect structure and frames "
                "(positions[..., 0] *= -1) if all residues are, or leave this trajectory out"
            )


def check_bonds(name: str, positions: NDArray[np.float32], bonds: NDArray[np.int64]) -> None:
    """Refuse frames in which molecules are not whole, or lengths are in another unit than Å.

    Parameters
    ----------
    name
        Of the trajectory, for messages.
    positions
        ``(f, a, 3)`` Å.
    bonds
        ``(b, 2)`` between heavy atoms.

    Raises
    ------
    InputError
        If a bond between heavy atoms is shorter than 0.9 Å or longer than 2.8 Å.
    """
    for start in range(0, len(positions), _CHUNK):
        lengths = bond_lengths(positions[start : start + _CHUNK], bonds)
        wrong = (lengths < _SHORTEST) | (lengths > _LONGEST)
        if wrong.any():
            frame, bond = np.argwhere(wrong)[0]
            raise InputError(
                f"trajectory {name!r}: in frame {start + frame} a bond is "
                f"{lengths[frame, bond]:.2f} Å long, allowed are {_SHORTEST} to {_LONGEST} Å; "
                "molecules must be whole and lengths in Å"
            )


def _parent(name: str) -> str:
    return PARENTS.get(name, name)
