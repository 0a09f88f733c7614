"""What a model of biomolecules was trained on, and what of a molecule lies outside of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.biomolecules.bond_graph import BondGraph
from mlmd_calc.biomolecules.parts import Part
from mlmd_calc.biomolecules.residues import ACIDS, PARENTS, RESIDUES
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.geometry.stereochemistry import dihedrals, handedness
from mlmd_calc.options import (
    check_count,
    check_types,
    refuse_unknown,
    shown,
    with_lists,
    with_tuples,
)
from mlmd_calc.wording import counted

FREE: Final = "free"
_NEUTRAL: Final = "neutral"
_CUT: Final = "cut"
"""Stand for the end of a chain without a cap: with the charge of pH 7, without one, without OXT."""

_HOW: Final = {
    FREE: "without a cap",
    _NEUTRAL: "without a cap and neutral",
    _CUT: "without OXT or a cap",
}

_CHARGED: Final = {
    **{("ASP", 0): "ASH", ("GLU", 0): "GLH", ("LYS", 0): "LYN", ("ARG", 0): "ARN"},
    **{("HIS", 1): "HIP", ("CYS", -1): "CYM", ("TYR", -1): "TYM"},
}
"""Amber's names of side chains with another charge than at pH 7."""

_ACID: Final = "amino acid"
_LIGAND: Final = "ligand"
"""Kinds of residues."""

_TRANS: Final = 0.5 * np.pi
"""Smallest |ω| of a peptide bond that is not cis."""
_LONGEST_NAME: Final = 8
_LISTED: Final = 4
"""Objections that a refusal lists; there may be one for every residue."""

_BACKBONE: Final = ("CA", "N", "C", "CB")
_SIDE_CHAINS: Final = {"ILE": ("CB", "CA", "CG1", "CG2"), "THR": ("CB", "CA", "OG1", "CG2")}
"""Stereocentres with three of their neighbours, by the names that the networks have."""


class ResidueState(NamedTuple):
    """One residue of a system, as far as it decides whether a model knows it."""

    label: str
    """For people, e.g. ``"HIS 3 of chain A"``."""
    name: str
    """Amber's name of the protonation state of an amino acid, e.g. ``"HIE"``; else as given."""
    kind: str
    """``"amino acid"``, ``"cap"`` or ``"ligand"``."""
    before: int
    """Index of the residue on whose C the peptide bond of N is; -1 if there is none."""
    mirrored: tuple[str, ...]
    """Stereocentres that are the mirror images of the natural ones."""
    cis: bool
    """Whether that peptide bond is cis."""
    begins: str
    ends: str
    """How a chain begins and ends with it: the name of a cap, ``"free"`` (NH3+ and COO-),
    ``"neutral"``, or ``"cut"`` without OXT."""


@dataclass(frozen=True)
class Domain:
    """Molecules that a model was trained on; others are beyond it.

    Attributes
    ----------
    residues
        Amino acids, by Amber's names of their protonation states, which also tell the tautomer of
        histidine: ``"ASP"`` is charged, ``"ASH"`` neutral, ``"CYX"`` is in a disulfide bridge.
    first, last
        How chains begin and end, see :class:`ResidueState`.
    shortest, longest
        Amino acids per chain.
    shortest_free
        Amino acids of the shortest chain with an end that is ``"free"``.
    half_capped
        Whether there were chains with a cap at one end only.
    chains
        Most chains.
    cis
        Whether there were cis peptide bonds.
    mirrored
        Whether there were D-amino acids.
    ligands
        Whether there were molecules and residues other than amino acids and caps.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    residues: tuple[str, ...]
    first: tuple[str, ...]
    last: tuple[str, ...]
    shortest: int
    longest: int
    shortest_free: int = 1
    half_capped: bool = False
    chains: int = 1
    cis: bool = False
    mirrored: bool = False
    ligands: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_count(self, "shortest", "longest", "shortest_free")
        check_count(self, "chains", least=0)
        if self.shortest > self.longest:
            raise ConfigError(f"shortest={self.shortest} exceeds longest={self.longest}")
        names = (*self.residues, *self.first, *self.last)
        if wrong := [name for name in names if not (name.isalnum() and len(name) <= _LONGEST_NAME)]:
            raise ConfigError(f"{shown(wrong)} in the domain of a model are not names of residues")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        values: dict[str, Any] = with_lists(asdict(self))
        return values

    @classmethod
    def from_dict(cls, values: object) -> Domain:
        """Build a domain from :meth:`to_dict` output.

        Raises
        ------
        ConfigError
            If an entry is unknown, missing or not allowed.
        """
        known: Mapping[str, Any] = refuse_unknown(cls, values, "entries of the domain of a model")
        missing = {"residues", "first", "last", "shortest", "longest"} - set(known)
        if missing:
            raise ConfigError(f"the domain of a model card lacks {', '.join(sorted(missing))}")
        return cls(**with_tuples(known))

    @classmethod
    def of(cls, systems: Sequence[Sequence[ResidueState]]) -> Domain:
        """Describe the molecules of training data.

        Parameters
        ----------
        systems
            Residues of each system, as of :class:`MolecularSystem`.
        """
        everything = [residue for system in systems for residue in system]
        chains = [
            [system[index] for index in chain] for system in systems for chain in _chains(system)
        ]
        counts = [_acids(chain) for chain in chains] or [1]
        of_free = [_acids(chain) for chain in chains if _has_free_end(chain)] or [1]
        return cls(
            residues=tuple(sorted({one.name for one in everything if one.kind == _ACID})),
            first=tuple(sorted({chain[0].begins for chain in chains})),
            last=tuple(sorted({chain[-1].ends for chain in chains})),
            shortest=max(1, min(counts)),
            longest=max(1, max(counts)),
            shortest_free=max(1, min(of_free)),
            half_capped=any(map(_is_half_capped, chains)),
            chains=max((len(_chains(system)) for system in systems), default=0),
            cis=any(residue.cis for residue in everything),
            mirrored=any(residue.mirrored for residue in everything),
            ligands=any(residue.kind == _LIGAND for residue in everything),
        )

    def __str__(self) -> str:
        length = (
            f"{self.shortest}"
            if self.shortest == self.longest
            else (f"{self.shortest} to {self.longest}")
        )
        lines = [
            f"{length} amino acids in at most {counted(self.chains, 'chain')}, of "
            f"{' '.join(self.residues)}",
            f"chains from {' or '.join(self.first)} to {' or '.join(self.last)}"
            + f", of {self.shortest_free} or more if free" * (self.shortest_free > self.shortest),
            f"{'cis and ' * self.cis}trans peptide bonds, L-{'and D-' * self.mirrored}amino acids, "
            f"{'with' if self.ligands else 'without'} ligands",
        ]
        return "\n".join(lines)

    def objections(self, residues: Sequence[ResidueState]) -> list[str]:
        """List what of a system is beyond the training, one sentence each.

        Parameters
        ----------
        residues
            As of :class:`MolecularSystem`.
        """
        found = [reason for residue in residues for reason in self._residue(residue)]
        chains = _chains(residues)
        if len(chains) > self.chains:
            found.append(f"there are {len(chains)} chains; known are at most {self.chains}")
        for chain in chains:
            members = [residues[index] for index in chain]
            found += self._chain(members)
        return found

    def _residue(self, residue: ResidueState) -> list[str]:
        found = []
        if residue.kind == _LIGAND and not self.ligands:
            found.append(f"{residue.label} is not an amino acid, and the model knows nothing else")
        if residue.kind == _ACID and residue.name not in self.residues:
            parent = PARENTS.get(residue.name, residue.name)
            others = [name for name in self.residues if PARENTS.get(name, name) == parent]
            only = f"was {' or '.join(others)}" if others else "were other amino acids"
            found.append(f"{residue.label} is {residue.name}; in training there {only}")
        if residue.mirrored and not self.mirrored:
            centres = ", ".join(residue.mirrored)
            found.append(f"{residue.label} is the mirror image of the natural one at {centres}")
        if residue.cis and not self.cis:
            found.append(f"the peptide bond before {residue.label} is cis")
        return found

    def _chain(self, members: Sequence[ResidueState]) -> list[str]:
        found = []
        count = _acids(members)
        if not self.shortest <= count <= self.longest:
            found.append(
                f"the chain of {members[0].label} has {count} amino acids; known are "
                f"{self.shortest} to {self.longest}"
            )
        elif count < self.shortest_free and _has_free_end(members):
            found.append(
                f"the chain of {members[0].label} has {counted(count, 'amino acid')} and an end "
                f"without a cap; known are such chains of {self.shortest_free} and more"
            )
        first, last = members[0], members[-1]
        if _is_half_capped(members) and not self.half_capped:
            found.append(
                f"the chain of {first.label} has a cap at one end and none at the other; known are "
                "caps at both or neither"
            )
        ends = (("begins", first, first.begins, self.first), ("ends", last, last.ends, self.last))
        for verb, residue, end, known in ends:
            if end not in known:
                how = _HOW.get(end, f"with {end}")
                found.append(
                    f"the chain {verb} {how} at {residue.label}; known is {' or '.join(known)}"
                )
        return found


def _acids(chain: Sequence[ResidueState]) -> int:
    return sum(residue.kind == _ACID for residue in chain)


def _has_free_end(chain: Sequence[ResidueState]) -> bool:
    return FREE in (chain[0].begins, chain[-1].ends)


def _is_half_capped(chain: Sequence[ResidueState]) -> bool:
    return (chain[0].begins in _HOW) != (chain[-1].ends in _HOW)


def refuse_objections(objections: Sequence[str], model: str) -> None:
    """Refuse a system for what :meth:`Domain.objections` has found.

    Parameters
    ----------
    objections
        Nothing is refused if there are none.
    model
        What to call the model.

    Raises
    ------
    InputError
        With the objections.
    """
    if not objections:
        return
    more = len(objections) - _LISTED
    rest = f"; and {more} more" if more > 0 else ""
    raise InputError(
        f"the molecule is beyond the training of model {model!r}: "
        f"{'; '.join(objections[:_LISTED])}{rest}. What it draws there is not to be trusted: "
        "change the molecule, train a model on its like (mlmd train), or go on all the same with "
        "beyond_training=True (--beyond-training of mlmd sample and mlmd run)"
    )


def _chains(residues: Sequence[ResidueState]) -> list[list[int]]:
    """Residues joined by peptide bonds, each chain from its beginning; ligands alone left out."""
    after = {residue.before: index for index, residue in enumerate(residues)}
    chains = []
    for index, residue in enumerate(residues):
        if residue.before >= 0 or residue.kind == _LIGAND:
            continue
        chain = [index]
        while (following := after.get(chain[-1])) is not None:
            chain.append(following)
        chains.append(chain)
    # A ring has no first residue.
    rest = [i for i, residue in enumerate(residues) if residue.kind != _LIGAND]
    ringed = sorted(set(rest) - {index for chain in chains for index in chain})
    return [*chains, *([ringed] if ringed else [])]


class PeptideBond(NamedTuple):
    """A bond between amino acids or caps."""

    before: int
    after: int
    """Indices of the parts that it joins, that with C and that with N."""
    omega: tuple[int, int, int, int]
    """Atoms of the dihedral angle ω in the engine's order."""


def peptide_bonds(graph: BondGraph, parts: Sequence[Part]) -> list[PeptideBond]:
    """Find the peptide bonds between amino acids and caps."""
    place = {part.residue: index for index, part in enumerate(parts)}
    found = []
    for after, part in enumerate(parts):
        if part.kind is None or "N" not in part.names:
            continue
        for carbon in graph.across(part.atom("N")):
            before = place[int(graph.structure.residues[carbon])]
            previous = parts[before]
            if previous.kind is not None and previous.atom("C") == carbon:
                first = previous.atom("CA" if previous.is_amino_acid else "CH3")
                last = part.atom("CA" if part.is_amino_acid else "C")
                found.append(PeptideBond(before, after, (first, carbon, part.atom("N"), last)))
    return found


def describe_residues(graph: BondGraph, parts: Sequence[Part]) -> tuple[ResidueState, ...]:
    """Tell protonation, links and handedness of the residues of a system."""
    links = {bond.after: bond for bond in peptide_bonds(graph, parts)}
    found = []
    for index, part in enumerate(parts):
        link = links.get(index)
        name = _name(graph, part)
        is_acid = part.is_amino_acid
        found.append(
            ResidueState(
                label=graph.structure.residue_label(part.residue),
                name=name,
                kind=_kind(part),
                before=-1 if link is None else link.before,
                mirrored=_mirrored(graph, part),
                cis=link is not None and _is_cis(graph, link),
                begins=_end(part, "N") if is_acid else name,
                ends=_end(part, "OXT") if is_acid else name,
            )
        )
    return tuple(found)


def _kind(part: Part) -> str:
    if part.kind is None:
        return _LIGAND
    return _ACID if part.is_amino_acid else "cap"


def _name(graph: BondGraph, part: Part) -> str:
    given = graph.structure.residue_names[part.residue]
    parent = PARENTS.get(given, given)
    if part.kind is None:
        return given
    if parent == "CYS" and graph.across(part.atom("SG")):
        return "CYX"
    if parent not in ACIDS:
        return parent
    charge = int(part.charges[part.names.index(ACIDS[parent].atoms[-1])])
    if parent == "HIS" and charge == 0:
        # Without hydrogens nobody can tell, and the network sees none.
        return "HID" if graph.hydrogens_on([part.atom("ND1")]) else "HIE"
    return _CHARGED.get((parent, charge), parent)


def _end(part: Part, atom: str) -> str:
    """Tell what the end of a chain with this atom of an amino acid is like."""
    if atom not in part.names:
        return _CUT
    return FREE if part.charges[part.names.index(atom)] else _NEUTRAL


def _mirrored(graph: BondGraph, part: Part) -> tuple[str, ...]:
    """Stereocentres whose handedness is not that of the conformer of the natural residue."""
    if not part.is_amino_acid or "CB" not in part.names:
        return ()
    given = graph.structure.residue_names[part.residue]
    parent = PARENTS.get(given, given)
    kind = RESIDUES[parent]
    centres = [_BACKBONE, *([_SIDE_CHAINS[parent]] if parent in _SIDE_CHAINS else [])]
    wrong = []
    for names in centres:
        ours = graph.structure.positions[[part.atom(name) for name in names]]
        natural = kind.conformer[[kind.atoms.index(name) for name in names]]
        if _hand(ours) != _hand(natural):
            wrong.append(names[0])
    return tuple(wrong)


def _hand(positions: NDArray[np.float64]) -> float:
    return float(handedness(positions[None], np.array([[0, 1, 2, 3]]))[0, 0])


def _is_cis(graph: BondGraph, bond: PeptideBond) -> bool:
    omega = dihedrals(graph.structure.positions[None], np.array(bond.omega))
    return bool(np.abs(omega[0]) < _TRANS)
