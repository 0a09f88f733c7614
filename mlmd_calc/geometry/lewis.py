"""Charges that bonds imply, by the Lewis structure in which the fewest atoms are charged."""

from __future__ import annotations

import functools
from itertools import combinations
from typing import Final, NamedTuple

import ase
import numpy as np
from ase.data import atomic_numbers, covalent_radii
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.spatial import KDTree

from mlmd_calc.geometry.bonds import (
    APART,
    STRETCH,
    Bonds,
    bond_lengths,
    find_bonds,
    fragments_of,
    neighbour_lists,
)


class _Form(NamedTuple):
    """What an atom may be: with so many bonds, multiple ones counted so often, it has a charge.

    The cost tells how odd that is. Molecules that have two forms of similar cost are drawn without
    a total charge: bonds of a nitro group stand for themselves, not for two anions of oxygen.
    """

    bonds: int
    charge: int
    cost: float


_HALOGEN: Final = (_Form(1, 0, 0.0), _Form(0, -1, 1.0))
_HEAVY_HALOGEN: Final = (*_HALOGEN, _Form(3, 0, 0.0), _Form(5, 0, 0.0), _Form(7, 0, 0.0))
_CHALCOGEN: Final = (
    _Form(2, 0, 0.0),
    _Form(4, 0, 1.8),
    _Form(6, 0, 2.2),
    _Form(1, -1, 1.0),
    _Form(3, 1, 1.2),
    _Form(5, 1, 3.0),
)
_PNICTOGEN: Final = (
    _Form(3, 0, 0.0),
    _Form(5, 0, 0.0),
    _Form(4, 1, 1.15),
    _Form(2, -1, 1.1),
    _Form(6, -1, 1.0),
)

_RADICAL: Final = _Form(3, 0, 2.0)

_FORMS: Final[dict[int, tuple[_Form, ...]]] = {
    atomic_numbers[symbol]: forms
    for symbols, forms in {
        "H": (_Form(1, 0, 0.0),),
        "B": (_Form(3, 0, 0.0), _Form(4, -1, 0.9)),
        # Radicals and carbenes are rare; a carbanion or a carbocation that nobody states is rarer.
        "C": (
            _Form(4, 0, 0.0),
            _RADICAL,
            _Form(2, 0, 1.5),
            _Form(3, -1, 2.1),
            _Form(3, 1, 2.5),
        ),
        "N": (_Form(3, 0, 0.0), _Form(4, 1, 1.15), _Form(2, -1, 1.1)),
        "O": (_Form(2, 0, 0.0), _Form(1, -1, 1.0), _Form(3, 1, 1.2)),
        "F": _HALOGEN,
        "Si": (_Form(4, 0, 0.0), _Form(5, -1, 1.0), _Form(6, -2, 2.0)),
        "P As": _PNICTOGEN,
        "S Se": _CHALCOGEN,
        "Cl Br I": _HEAVY_HALOGEN,
    }.items()
    for symbol in symbols.split()
}

_HYDROGEN: Final = 1
_TOGETHER: Final = 1.15
"""Times the sum of covalent radii: shorter distances are bonds."""
_BESIDE: Final = 1.4
"""The same, of atoms that are no bond although others keep them near each other."""
_TOTAL_COST: Final = 0.6
"""Of each e that the charges of neighbouring atoms do not cancel."""
_LONGEST: Final = 5.0
"""s for a part; fullerenes take a tenth of it."""

_CARBON, _OXYGEN, _SULFUR, _SELENIUM = 6, 8, 16, 34
_NO_DOUBLE: Final = {_OXYGEN: (1.265, 1.34), _SULFUR: (1.715, 1.80)}
"""Å, of bonds from carbon to an atom without other ones. Quinones have 1.21 to 1.25 and 1.65 to
1.69 Å, the dianions of hydroquinones and of dithiols 1.27 to 1.30 and 1.73 to 1.75 Å; where bonds
are longer than in any ion, a structure is distorted and tells nothing."""
_NO_DOUBLES: Final = 1.245
"""Å, of four or more bonds C-O: 1.255 and 1.263 Å in croconate and squarate, 1.19 in C4O4."""
_SEVERAL: Final = 4
_THREE: Final = 3
_FLAT_ONLY: Final = 5
_NO_DOUBLE_BRIDGE: Final = 1.45
"""Å, of bonds between carbons that nothing conjugated connects but they: 1.47 Å in viologens and
diquat, 1.38 Å where they have two electrons more and are neutral."""
_FLAT: Final = 340.0
"""Degrees, of the sum of three angles: 318 in sulfite, 360 in sulfur trioxide."""


class _Shape(NamedTuple):
    """What the geometry tells of bonds beside which atoms have one.

    Attributes
    ----------
    single
        ``(b,)``, whether a bond is too long to be a multiple one.
    lone
        ``(n,)``, whether an atom with one bond is so far from its neighbour that one of several
        such has a charge.
    lone_together
        The same where there are many of them.
    pyramids
        ``(n,)``, whether an atom of sulfur or selenium has three neighbours and is not flat, as it
        would be with more than one double bond.
    """

    single: NDArray[np.bool_]
    lone: NDArray[np.bool_]
    lone_together: NDArray[np.bool_]
    pyramids: NDArray[np.bool_]

    @classmethod
    def unknown(cls, atoms: int, bonds: int) -> _Shape:
        """Return the shape of a molecule of which only the bonds are known."""
        return cls(*(np.zeros(size, dtype=bool) for size in (bonds, atoms, atoms, atoms)))


def charge_of_bonds(atoms: ase.Atoms) -> int:
    """Charge that the structure of a closed-shell molecule implies, see :func:`implied_charge`.

    Parameters
    ----------
    atoms
        Whole molecules; a cell is not looked at.

    Returns
    -------
    int
        In e; 0 where bonds are so long that nobody can tell whether they are any.
    """
    bonds = find_bonds(atoms)
    if _is_doubtful(atoms, bonds):
        return 0
    return _charge(atoms.numbers, bonds.pairs, _shape(atoms, bonds))


def _is_doubtful(atoms: ase.Atoms, bonds: Bonds) -> bool:
    """Tell whether heavy atoms are neither near enough for a bond nor far enough for none."""
    heavy = np.flatnonzero(np.isin(atoms.numbers, list(_FORMS)) & (atoms.numbers != _HYDROGEN))
    radii = covalent_radii[atoms.numbers[heavy]]
    near = KDTree(atoms.positions[heavy]).query_pairs(
        2.0 * APART * float(radii.max(initial=0.0)), output_type="ndarray"
    )
    lengths = bond_lengths(atoms.positions[heavy], near) / radii[near].sum(axis=1)
    doubtful = (lengths > _TOGETHER) & (lengths < APART)
    if not doubtful.any():
        return False
    neighbours = [set(each) for each in neighbour_lists(len(atoms), bonds.pairs.tolist())]
    # Atoms that a common neighbour keeps near each other are not on the way to a bond, nor are
    # those with two others between them that lie side by side, as sulfur atoms of dithiols do.
    return any(
        length < STRETCH
        or not (
            neighbours[first] & neighbours[second]
            or (
                length > _BESIDE
                and any(neighbours[each] & neighbours[second] for each in neighbours[first])
            )
        )
        for length, (first, second) in zip(
            lengths[doubtful], heavy[near[doubtful]].tolist(), strict=True
        )
    )


def _shape(atoms: ase.Atoms, bonds: Bonds) -> _Shape:
    """See what lengths and angles tell."""
    numbers, pairs = atoms.numbers, bonds.pairs
    shape = _Shape.unknown(len(atoms), len(bonds))
    neighbours = neighbour_lists(len(atoms), pairs.tolist())
    # Others have no room for a multiple bond.
    open_pairs = pairs[[max(len(neighbours[i]) for i in pair) <= _THREE for pair in pairs.tolist()]]
    for bond, ((first, second), length) in enumerate(
        zip(pairs.tolist(), bonds.lengths, strict=True)
    ):
        if numbers[first] == numbers[second] == _CARBON:
            if length > _NO_DOUBLE_BRIDGE:
                shape.single[bond] = _is_bridge(len(atoms), open_pairs, first, second)
            continue
        for end, other in ((first, second), (second, first)):
            limits = _NO_DOUBLE.get(int(numbers[end]))
            if limits is None or numbers[other] != _CARBON or len(neighbours[end]) > 1:
                continue
            shortest, longest = limits
            shape.lone[end] = shortest < length < longest
            shape.lone_together[end] = numbers[end] == _OXYGEN and _NO_DOUBLES < length < longest
    for atom in np.flatnonzero(np.isin(numbers, (_SULFUR, _SELENIUM))).tolist():
        if len(neighbours[atom]) == _THREE:
            angles = atoms.get_angles([(i, atom, j) for i, j in combinations(neighbours[atom], 2)])
            shape.pyramids[atom] = angles.sum() < _FLAT
    return shape


def _is_bridge(count: int, pairs: NDArray[np.integer], first: int, second: int) -> bool:
    """Tell whether nothing but their bond connects two atoms."""
    others = pairs[(pairs != (first, second)).any(axis=1)]
    fragments = fragments_of(count, others.tolist())
    return bool(fragments[first] != fragments[second])


def implied_charge(numbers: NDArray[np.integer], pairs: NDArray[np.integer]) -> int:
    """Charge of a closed-shell molecule, by the Lewis structure in which fewest atoms are charged.

    Carboxylates, phenolates, thiolates, pyridinium, ammonium and their like are ions; nitro groups,
    N-oxides, azides, isonitriles, sulfoxides and zwitterions are neutral. What has the same atoms
    and bonds as a neutral molecule, as the dianion of a quinone has, is taken for that, unless
    :func:`charge_of_bonds` sees their lengths.

    Parameters
    ----------
    numbers
        ``(n,)`` atomic numbers, hydrogens among them.
    pairs
        ``(b, 2)`` indices of bonded atoms.

    Returns
    -------
    int
        In e. Metals and other elements without rules count as neutral.
    """
    pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    return _charge(numbers, pairs, _Shape.unknown(len(numbers), len(pairs)))


def _charge(numbers: NDArray[np.integer], pairs: NDArray[np.integer], shape: _Shape) -> int:
    count = len(numbers)
    degrees = np.bincount(pairs.ravel(), minlength=count)
    if ((numbers == _HYDROGEN) & (degrees == 0)).any():
        return 0  # A broken bond, whose electrons may be anywhere.
    # A hydrogen in a hydrogen bond counts as bonded to one of its neighbours, whichever fits, and
    # ligands of a metal are bonded to it or ions, whichever fits.
    loose_atoms = (numbers == _HYDROGEN) & (degrees > 1) | ~np.isin(numbers, list(_FORMS))
    most = np.array([max((f.bonds for f in _FORMS.get(int(z), ())), default=0) for z in numbers])
    room = most > degrees
    loose = loose_atoms[pairs].any(axis=1)
    open_pairs = pairs[loose | (room[pairs].all(axis=1) & ~shape.single)]
    parts = fragments_of(count, open_pairs.tolist())
    part_of_pair = parts[open_pairs[:, 0]]
    total = 0
    for part in range(int(parts.max(initial=-1)) + 1):
        atoms = np.flatnonzero(parts == part)
        own = np.searchsorted(atoms, open_pairs[part_of_pair == part])
        together = int(shape.lone_together[atoms].sum()) >= _SEVERAL
        lone = (shape.lone_together if together else shape.lone)[atoms]
        charge = _charge_of_part(
            tuple(numbers[atoms].tolist()),
            tuple(degrees[atoms].tolist()),
            tuple(map(tuple, own.tolist())),
            tuple(np.flatnonzero(lone).tolist()) if lone.sum() > 1 else (),
            tuple(np.flatnonzero(shape.pyramids[atoms]).tolist()),
        )
        if charge is None:
            return 0
        total += charge
    return total


@functools.lru_cache(maxsize=4096)
def _charge_of_part(
    numbers: tuple[int, ...],
    degrees: tuple[int, ...],
    pairs: tuple[tuple[int, int], ...],
    lone: tuple[int, ...],
    pyramids: tuple[int, ...],
) -> int | None:
    """Charge of atoms whose bonds may be multiple ones; None where only radicals can be drawn.

    An integer linear program: how much each bond is more than a single one, and which form each
    atom has, so that the costs are least. One of the lone atoms, if there are any, has a charge.
    """
    hydrogens = [z == _HYDROGEN and n > 1 for z, n in zip(numbers, degrees, strict=True)]
    loose = [any(hydrogens[i] or numbers[i] not in _FORMS for i in pair) for pair in pairs]
    least = np.zeros(len(numbers), dtype=np.int64)
    for pair, is_loose in zip(pairs, loose, strict=True):
        least[list(pair)] -= is_loose
    choices = [
        (atom, form)
        for atom, number in enumerate(numbers)
        for form in _FORMS.get(number, ())
        if form.bonds >= degrees[atom] + least[atom]
        and not (atom in pyramids and form.bonds >= _FLAT_ONLY)
    ]
    bound = [atom for atom, number in enumerate(numbers) if number in _FORMS]
    if not bound:
        return 0
    # The last column is the size of the total charge.
    one = np.zeros((len(numbers), len(pairs) + len(choices) + 1))
    balance = np.zeros_like(one)
    for column, pair in enumerate(pairs):
        balance[list(pair), column] = 1.0
    for column, (atom, form) in enumerate(choices, start=len(pairs)):
        one[atom, column] = 1.0
        balance[atom, column] = degrees[atom] - form.bonds
    charges = np.array([*[0.0] * len(pairs), *(form.charge for _, form in choices), 0.0])
    size = np.eye(len(charges))[-1]
    is_lone = np.array(
        [
            *[0.0] * len(pairs),
            *(float(atom in lone and form.charge != 0) for atom, form in choices),
            0.0,
        ]
    )
    lowest = [*(-1.0 if is_loose else 0.0 for is_loose in loose), *[0.0] * len(choices), 0.0]
    highest = [*(0.0 if is_loose else 2.0 for is_loose in loose), *[1.0] * len(choices), np.inf]
    found = milp(
        [*[0.0] * len(pairs), *(form.cost for _, form in choices), _TOTAL_COST],
        integrality=1,
        bounds=Bounds(lowest, highest),
        constraints=[
            LinearConstraint(one[bound], 1, 1),
            LinearConstraint(balance[bound], 0, 0),
            LinearConstraint([size - charges, size + charges], 0, np.inf),
            LinearConstraint(is_lone, min(len(lone), 1), np.inf),
        ],
        options={"time_limit": _LONGEST},
    )
    if found.status != 0:
        return None
    chosen = np.round(found.x[len(pairs) : -1]).astype(bool)
    forms = [form for (_, form), is_chosen in zip(choices, chosen, strict=True) if is_chosen]
    return None if _RADICAL in forms else sum(form.charge for form in forms)
