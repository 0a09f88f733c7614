"""The atoms of an OpenMM topology that a model acts on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.electrons import ElectronicState, as_integer, charge_question
from mlmd_calc.errors import InputError
from mlmd_calc.geometry.bonds import fragments_of, neighbour_lists
from mlmd_calc.geometry.lewis import implied_charge
from mlmd_calc.potential import Structure
from mlmd_calc.zoo import ModelCard

_FARTHEST_BONDED: Final = 1.75
"""Distance over the sum of covalent radii; no bond of a structure to start from is so long."""
BONDS: Final = (0.04, 0.4)
"""nm; no molecule has most of its bonds outside of these, but one given in Å or pm has."""


@dataclass(frozen=True)
class Region:
    """Atoms whose forces come from a model of isolated molecules.

    Attributes
    ----------
    numbers
        Atomic numbers, ``(n,)``.
    particles
        Their indices in the System, ascending, ``(n,)``.
    system_size
        Number of particles of the whole System.
    charge
        Total charge of the region in e.
    multiplicity
        Spin multiplicity 2S + 1 of the region.
    periodic
        Whether the region is in a periodic box, where its atoms may lie in different images.
    parents
        ``(n,)``; ``parents[i]`` is the atom whose nearest image decides where atom ``i`` is. Bonded
        to it if the topology has bonds. Atom 0 is its own parent.
    charge_is_stated
        Whether somebody said so; False where a charge of 0 is only taken for granted.
    """

    numbers: NDArray[np.int64]
    particles: NDArray[np.int64]
    system_size: int
    charge: int
    multiplicity: int
    periodic: bool
    parents: NDArray[np.int64]
    charge_is_stated: bool = True

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def is_subset(self) -> bool:
        """Whether the System has particles outside the region."""
        return len(self) != self.system_size

    def to_dict(self) -> dict[str, Any]:
        """Describe it in JSON-able values, which :meth:`from_dict` reads."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Region:
        """Make a region from :meth:`to_dict`; other entries of the description do not matter."""
        known: dict[str, Any] = {}
        for entry in fields(cls):
            if entry.name not in values:
                continue  # of an earlier version, which did not ask whether the charge is stated
            value = values[entry.name]
            listed = isinstance(value, list)
            known[entry.name] = np.array(value, dtype=np.int64) if listed else value
        return cls(**known)

    def structure(self, positions: NDArray[np.float64]) -> Structure:
        """Structure of the region at ``(n, 3)`` Å."""
        return Structure(
            self.numbers, positions, self.charge, self.multiplicity, self.charge_is_stated
        )

    def check(self, card: ModelCard | None) -> None:
        """Refuse elements, charges and multiplicities that are unknown or impossible.

        Raises
        ------
        InputError
            As :meth:`mlmd_calc.potential.Structure.check_composition`.
        """
        self.structure(np.zeros((len(self), 3))).check_composition(card)

    def lineage(self) -> NDArray[np.float64]:
        """Matrix ``(n, n)`` with 1 where atom ``j`` is ``i`` or lies on the way from it to atom 0.

        Multiplied with the vectors from parents to children it gives the vectors from atom 0.
        """
        matrix = np.zeros((len(self), len(self)))
        for atom in range(len(self)):
            ancestor = atom
            while ancestor != 0:
                matrix[atom, ancestor] = 1.0
                ancestor = int(self.parents[ancestor])
        return matrix


def region_from_topology(
    topology: Any,
    atoms: Iterable[int] | None = None,
    *,
    charge: int | None = None,
    multiplicity: int = 1,
    periodic: bool | None = None,
) -> Region:
    """Read a region from a topology.

    Parameters
    ----------
    topology
        ``openmm.app.Topology``.
    atoms
        Indices of the region's atoms; None for all.
    charge, multiplicity
        Total charge in e and spin multiplicity 2S + 1 of the region; None is a charge of 0 unless
        the molecule is one of an ion.
    periodic
        Whether the System is periodic. None: if the topology has box vectors.

    Raises
    ------
    InputError
        If the topology is not one or has no elements, the atoms are out of range or repeated,
        charge or multiplicity are not integers, the charge contradicts the topology's formal
        charges, or all atoms of a periodic system are meant, or some that no bonds tie together.
    """
    check_topology(topology)
    everything = list(topology.atoms())
    if not everything:
        raise InputError("the topology has no atoms; read it from a file, or add them")
    particles = _particles(atoms, len(everything))
    if periodic is None:
        periodic = topology.getPeriodicBoxVectors() is not None
    if periodic and len(particles) == len(everything):
        raise InputError(
            "the system is periodic and all of it is to be given to a model of isolated molecules; "
            "take the box away (topology.setPeriodicBoxVectors(None)) if the molecule is alone, or "
            "pass atoms=[...] and describe the rest with a force field"
        )
    for index in particles:
        if everything[index].element is None:
            raise InputError(
                f"atom {index} ({everything[index].name}) has no element; virtual sites and "
                "coarse-grained particles cannot be given to the model. Leave it out of atoms=[...]"
                " or set its element"
            )
    formal = [getattr(everything[index], "formalCharge", None) or 0 for index in particles]
    state = _checked_state(charge, multiplicity, formal)
    bonds = [(bond[0].index, bond[1].index) for bond in topology.bonds()]
    if periodic:
        _check_tied(particles, bonds)
    return Region(
        numbers=np.array([everything[i].element.atomic_number for i in particles], dtype=np.int64),
        particles=np.array(particles, dtype=np.int64),
        system_size=len(everything),
        charge=state.charge,
        multiplicity=state.multiplicity,
        periodic=bool(periodic),
        parents=_parents(particles, bonds),
        charge_is_stated=charge is not None or any(formal),
    )


def check_topology(topology: Any) -> None:
    """Refuse what is no ``openmm.app.Topology``."""
    if not hasattr(topology, "getPeriodicBoxVectors"):
        raise InputError(
            f"topology is a {type(topology).__name__}; pass an openmm.app.Topology, for example "
            "PDBFile(...).topology"
        )


def _checked_state(charge: int | None, multiplicity: int, formal: list[int]) -> ElectronicState:
    """Charge and multiplicity as integers that do not contradict formal charges."""
    whole_charge = as_integer("charge", charge) or 0
    whole_multiplicity = as_integer("multiplicity", multiplicity)
    if whole_multiplicity is None:
        raise InputError("multiplicity=None; it is 2S + 1, that is 1 for closed shells")
    if any(formal) and sum(formal) != whole_charge:
        raise InputError(
            f"charge={whole_charge}, but the formal charges in the topology add up to {sum(formal)}"
            f"; pass charge={sum(formal)} or correct the topology"
        )
    return ElectronicState(whole_charge, whole_multiplicity)


def check_one_molecule(topology: Any, region: Region) -> None:
    """Refuse a region that is a part of a molecule, or more than one, by the topology's bonds.

    Ions whose charge nothing states are refused as well.

    Atoms of a residue without any bonds among them, as of a ligand in a PDB file without CONECT
    records, are taken for one fragment.

    Raises
    ------
    InputError
        If a bond leads out of the region, none leads from one part of it to another, or bonds
        imply a charge that nothing states.
    """
    own = {int(particle): i for i, particle in enumerate(region.particles)}
    bonds = []
    for bond in topology.bonds():
        first, second = bond[0].index, bond[1].index
        if (first in own) != (second in own):
            inside, outside = (first, second) if first in own else (second, first)
            raise InputError(
                f"the ML atoms end at the bond between atom {inside} and atom {outside}, which is "
                f"not one of them, but the model knows whole molecules only; put all atoms of the "
                "molecule into atoms=[...], or none"
            )
        if first in own:
            bonds.append((own[first], own[second]))
    if not region.charge_is_stated:
        implied = implied_charge(region.numbers, np.array(bonds, dtype=np.int64).reshape(-1, 2))
        state = ElectronicState(region.charge, region.multiplicity)
        if question := charge_question("the molecule of ML atoms", state, implied, "charge="):
            raise InputError(question)
    bonded = {i for pair in bonds for i in pair}
    for residue in topology.residues():
        inside = [own[atom.index] for atom in residue.atoms() if atom.index in own]
        if not bonded.intersection(inside):
            bonds += [(inside[0], other) for other in inside[1:]]
    fragments = fragments_of(len(region), bonds)
    if fragments.max() > 0:
        other = int(region.particles[np.argmax(fragments > 0)])
        raise InputError(
            f"the ML atoms are {fragments.max() + 1} molecules (no bonds lead from atom "
            f"{region.particles[0]} to atom {other}), but the model knows one isolated molecule at "
            "a time; make one force for each, or add the missing bonds to the topology"
        )


def region_from_structure(structure: Structure) -> Region:
    """Return all atoms of a System that consists of one isolated molecule."""
    count = len(structure)
    return Region(
        numbers=structure.numbers,
        particles=np.arange(count),
        system_size=count,
        charge=structure.charge,
        multiplicity=structure.multiplicity,
        periodic=False,
        parents=np.zeros(count, dtype=np.int64),
        charge_is_stated=structure.charge_is_stated,
    )


def _particles(atoms: Iterable[int] | None, count: int) -> list[int]:
    if atoms is None:
        return list(range(count))
    if not isinstance(atoms, Iterable):
        raise InputError(f"atoms={atoms!r}; list the indices of the atoms, such as range(9)")
    chosen = []
    for atom in atoms:
        if hasattr(atom, "index") and hasattr(atom, "residue"):
            raise InputError(
                f"atoms contains {atom}; list indices, that is [atom.index for atom in ...]"
            )
        index = as_integer("an entry of atoms", atom)
        if index is None or not 0 <= index < count:
            raise InputError(
                f"atoms contains {atom!r}, but the topology has atoms 0 to {count - 1}"
            )
        chosen.append(index)
    repeated = sorted({i for i in chosen if chosen.count(i) > 1})
    if repeated:
        raise InputError(f"atoms contains {repeated[0]} more than once; list every atom once")
    if not chosen:
        raise InputError("atoms is empty; list the atoms of the ML region, or pass None for all")
    return sorted(chosen)


def _check_tied(particles: list[int], bonds: Iterable[tuple[int, int]]) -> None:
    """Refuse atoms without bonds between them, whose images in a box nothing decides.

    The image nearest to another atom is the wrong one for a molecule longer than half the box.
    """
    fragments = fragments_of(len(particles), _inside(particles, bonds))
    if fragments.max() > 0:
        raise InputError(
            f"no bonds of the topology lead from ML atom {particles[0]} to ML atom "
            f"{particles[int(np.argmax(fragments > 0))]}, and without them a molecule that lies "
            "across the periodic box cannot be made whole; add them (topology.addBond), or read "
            "the molecule from a file that has them, such as a PDB file with CONECT records. "
            "Molecules that are apart need a force each"
        )


def _inside(particles: list[int], bonds: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Bonds among some particles, by their places in the list."""
    local = {particle: i for i, particle in enumerate(particles)}
    return [(local[i], local[j]) for i, j in bonds if i in local and j in local]


def _parents(particles: list[int], bonds: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
    """Spanning tree along bonds; the first atom of a further fragment hangs on atom 0."""
    neighbours = neighbour_lists(len(particles), _inside(particles, bonds))
    parents = np.full(len(particles), -1, dtype=np.int64)
    for start in range(len(particles)):
        if parents[start] >= 0:
            continue
        parents[start] = 0
        front = [start]
        while front:
            atom = front.pop()
            for other in neighbours[atom]:
                if parents[other] < 0:
                    parents[other] = atom
                    front.append(other)
    return parents


def check_nanometres(positions: NDArray[np.float64]) -> None:
    """Refuse positions ``(n, 3)`` that are in another unit of length than nm.

    Raises
    ------
    InputError
        If most atoms have no other atom at the distance of a bond, nor anywhere near it.
    """
    if len(positions) < 2 or not np.isfinite(positions).all():
        return
    distances = np.linalg.norm(positions[:, None] - positions, axis=2)
    np.fill_diagonal(distances, np.inf)
    usual = float(np.median(distances.min(axis=1)))
    # Coincident atoms are another mistake, which the potential names.
    if 0.0 < usual < BONDS[0] or usual > BONDS[1]:
        raise InputError(
            f"most atoms are {usual:.3g} nm from the one next to them, and bonds are 0.07 to 0.3 nm"
            " long; positions in OpenMM are in nm (1 nm = 10 Å), so divide by 10 what is in Å, or "
            "give it its unit (positions * unit.angstrom)"
        )


def check_order(region: Region, positions: NDArray[np.float64]) -> None:
    """Refuse positions ``(n, 3)`` nm that belong to other atoms than those of the topology.

    Raises
    ------
    InputError
        If two atoms that the topology says are bonded are far apart, maybe for another unit.
    """
    # Atoms whose parent is the first atom may lack a bond to it.
    atoms = np.flatnonzero(region.parents != 0)
    parents = region.parents[atoms]
    radii = covalent_radii[region.numbers]
    lengths = np.linalg.norm(positions[atoms] - positions[parents], axis=1) * units.NM
    ratios = lengths / (radii[atoms] + radii[parents])
    if (ratios > _FARTHEST_BONDED).any():
        check_nanometres(positions)
        worst = int(np.nanargmax(ratios))
        names = " and ".join(
            f"{region.particles[i]} ({chemical_symbols[region.numbers[i]]})"
            for i in sorted((atoms[worst], parents[worst]))
        )
        raise InputError(
            f"the topology says that atoms {names} are bonded, but they are {lengths[worst]:.2f} Å "
            "apart; give positions in the order of the topology"
        )


def make_whole(
    positions: NDArray[np.float64],
    box: NDArray[np.float64],
    parents: NDArray[np.int64],
    lineage: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Bring a molecule's atoms into one image.

    Every atom moves to the image nearest to its parent.

    Parameters
    ----------
    positions
        ``(n, 3)``.
    box
        ``(3, 3)`` box vectors as rows, in OpenMM's reduced form.
    parents, lineage
        See :class:`Region`.
    """
    steps = positions - positions[parents]
    moved = False
    for axis in (2, 1, 0):
        turns = np.round(steps[:, axis] / box[axis, axis])
        moved |= bool(turns.any())
        steps -= turns[:, None] * box[axis]
    # A molecule that is whole keeps its coordinates to the last bit.
    return positions[0] + lineage @ steps if moved else positions
