"""Units told from the physics of labelled frames: labels in wrong ones are not learnt from.

==============  ==================================================================================
what            must hold
==============  ==================================================================================
lengths         the nearest neighbours of atoms are about a covalent bond away, and no atom has more
                of them than its element can have
forces          a bond that is longer by x pulls back with k x, where k is 20 to 160 eV/Å² in
                molecules (median over the bonds), and 15 to 70 of bonds with hydrogen; forces of
                that size go with the lengths, and neither push nor turn the molecule as a whole
energies        from frame to frame the energy changes as much as the forces do work, and in
                proportion to it where frames are near; they are not those of all electrons in
                another unit, which one frame tells
velocities      from frame to frame the atoms move as far as their velocities say
==============  ==================================================================================

The limits lie far outside what data show, and inside what the nearest other unit would give. What
compares frames needs some of them. Forces that are small tell nothing where they do
not go with the lengths of the bonds, as in relaxed structures and scans.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from ase.data import atomic_masses, chemical_symbols, covalent_radii
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.data.frames import READ_IN, Float64Array, FloatArray, MoleculeFrames
from mlmd_calc.data.stated_units import unit_of
from mlmd_calc.errors import InputError

_FRAMES: Final = 40
"""Frames looked at."""
_FEWEST: Final = 10
"""Frames that energies and velocities are compared with, and whose forces are no placeholders."""
_FEWEST_FORCES: Final = 3
"""Frames that forces are told from. Of 768 draws of so many labelled frames of 192 molecules none
came near the limits below."""
_MOST_ATOMS: Final = 200
"""Atoms looked at of large molecules, the first."""

_OVERLAP: Final = 0.02
"""Å; no method gives meaningful labels for atoms that are closer."""
_DIGITS: Final = 1e-6
"""Å, what single precision leaves of decimals."""
_NEAR: Final = (0.6, 1.4)
"""Distance to the nearest neighbour by the sum of covalent radii."""
_NEIGHBOURS: Final = {1: 2, 6: 5, 7: 4, 8: 3, 9: 2}
"""Most bonds of an atom of an element to atoms of these elements."""
_BOND: Final = (0.72, 1.25)
"""Length of bonds by the sum of covalent radii; triple bonds have 0.77."""
_ALONE: Final = 1.5
"""The same, beyond which a hydrogen has no bond, which several of a molecule never have."""
_BALANCE: Final = 0.3
"""Force and torque of all atoms by those of the atoms. Of 152 labelled molecules the largest was
0.002; of forces of other frames or in other axes it is about 1."""
_SMALL: Final = 0.05
"""eV/Å, root mean square of forces that rounding may have left."""
_STIFFNESS: Final = (5.0, 500.0)
"""eV/Å², of bonds."""
_USUAL_STIFFNESS: Final = (15.0, 200.0)
_USUAL_OF_HYDROGEN: Final = (12.0, 85.0)
"""The same of bonds with hydrogen. Of 1,517 draws of 10 or 40 labelled frames of 152 molecules the
largest was 68 and 98 % were above 17; kJ/mol taken for kcal/mol make it 4.2 times as large."""
_TOLD: Final = 0.5
"""Least correlation of bonds' lengths and forces; in frames of dynamics it was 0.53 to 0.9."""
_UNRELATED: Final = 0.35
"""Correlation below which forces are of other frames or atoms. Of 1,261 labelled molecules the
least was 0.59 with 10 frames and 0.60 with 40; with forces of frames in another order 0.27 was the
largest of 1,109 with 40."""
_WORK: Final = (0.06, 8.0)
"""Change of energy by the work of the forces, both root mean squares. Near 1 for frames of
dynamics; between distant frames, where the way is not straight, it was 0.1 to 1.4."""
_NO_WORK: Final = 1e-9
"""eV; what rounding leaves of frames that are the same."""
_FEWEST_PAIRS: Final = 19
_STRAIGHT: Final = 0.95
"""Correlation of energies and work from which on the slope is told as well."""
_SLOPE: Final = (0.5, 1.6)
"""Slope of the energy over the work. Of 10,000 draws of 20 or 40 labelled frames of 550 molecules
the least was 0.64 and the largest 1.44; forces in eV/Bohr double it, and energies per atom make it
a third or less."""
_MOTION: Final = (0.5, 2.0)
"""Way between frames by that of the velocities."""
_ALONG: Final = 0.5
"""Least correlation of the ways between frames with those of the velocities: 0.997 at 2 fs, 0.94 at
4 fs."""
_SHORT_SPACING: Final = 5.0
"""fs; over longer times bonds swing back, and the way is shorter than the velocities say."""
_STRETCH: Final = 0.003
"""Å; bonds that vary less in length tell no slope."""
_NOBLE: Final = (2, 10, 18, 36, 54, 86)

_LENGTHS: Final = {"nm": units.NM, "Bohr": units.BOHR, "pm": 0.01}
_FORCES: Final = {
    "kcal/mol/Å": units.KCAL_PER_MOL,
    "kcal/mol/Å converted twice": units.KCAL_PER_MOL**2,
    "kJ/mol/Å": units.KJ_PER_MOL,
    "kJ/mol/nm": units.KJ_PER_MOL / units.NM,
    "Hartree/Bohr": units.HARTREE / units.BOHR,
    "Hartree/Å": units.HARTREE,
}
_ENERGIES: Final = {
    "kcal/mol": units.KCAL_PER_MOL,
    "kJ/mol": units.KJ_PER_MOL,
    "Hartree": units.HARTREE,
}

_FREE_ATOMS: Final = {1: -0.50, 6: -37.8, 7: -54.5, 8: -75.0, 9: -99.7}
"""Hartree, with all electrons, by any method. Of heavier atoms valence electrons have so small a
part of it that energies of theirs in eV may look like all of it in Hartree."""
_TOTAL: Final = (0.99, 1.03)
"""Energy of a molecule by that of its free atoms: 1.005 of water, 1.018 of methane."""


_ATOMS: Final = {1: -0.55, 6: -38.0, 7: -54.6, 8: -75.1, 9: -99.8, 16: -398.2, 17: -460.2}
"""Hartree, what an atom adds to the total energy of a molecule, to within a few percent."""


class _ReadIn(NamedTuple):
    """Units in which a file was read."""

    energies: str
    forces: str


def check_units(molecule: MoleculeFrames) -> None:
    """Refuse labelled frames that cannot be in Å, eV/Å, eV, Å/fs and fs.

    Parameters
    ----------
    molecule
        Frames with finite values.

    Raises
    ------
    InputError
        With what was measured, and the unit that would explain it.
    """
    if len(molecule.numbers) < 2 or len(molecule) == 0:
        return
    kept = np.arange(len(molecule.numbers)) < _MOST_ATOMS
    spread = np.linspace(0, len(molecule) - 1, min(_FRAMES, len(molecule))).astype(int)
    numbers = molecule.numbers[kept]
    positions = molecule.positions[spread][:, kept].astype(np.float64)
    _check_lengths(molecule.name, numbers, positions)
    if molecule.energies is not None:
        _check_totals(molecule.name, molecule.numbers, float(np.median(molecule.energies)))
    if molecule.forces is not None and len(spread) >= _FEWEST_FORCES:
        if len(spread) >= _FEWEST:
            _check_computed(molecule.name, molecule.forces)
        _check_rounding(molecule.name, positions)
        _check_neighbours(molecule.name, numbers, positions)
        forces = molecule.forces[spread][:, kept].astype(np.float64)
        read_in = _ReadIn(*molecule.metadata.get(READ_IN, "eV, eV/Å").split(", "))
        _check_forces(molecule.name, numbers, positions, forces, read_in)
        if len(spread) >= _FEWEST:
            _check_balance(
                molecule.name,
                molecule.positions[spread].astype(np.float64),
                molecule.forces[spread].astype(np.float64),
            )
        if molecule.energies is not None and len(spread) >= _FEWEST:
            _check_energies(molecule, molecule.forces, molecule.energies, read_in)
    if molecule.velocities is not None and molecule.dt_fs is not None:
        _check_velocities(molecule, molecule.velocities, molecule.dt_fs)


def check_told(molecule: MoleculeFrames) -> None:
    """Refuse frames that were read in kcal/mol, as those of MD17 are, and that do not tell it.

    Total energies do, and so do some frames of bonds with hydrogen, which :func:`check_units` sees.

    Raises
    ------
    InputError
        If nothing tells the unit, and the file does not state it.
    """
    read_in = molecule.metadata.get(READ_IN, "")
    told = len(molecule) >= _FEWEST and 1 in molecule.numbers
    if not read_in.startswith("kcal/mol") or molecule.energies is None or told:
        return
    if not are_totals(molecule.numbers, molecule.energies / units.HARTREE):
        middle = float(np.median(molecule.energies)) / units.KCAL_PER_MOL
        raise InputError(
            f"molecule {molecule.name!r}: its file states no units, and energies of {middle:.6g} "
            "are no total energies in kcal/mol, which would tell them; state the units beside the "
            "arrays, for example e_unit='kcal/mol' and r_unit='Ang'"
        )


def are_totals(numbers: NDArray[np.int64], energies: NDArray[np.floating]) -> bool:
    """Tell whether energies can be total energies in Hartree; not those of unknown elements."""
    return bool(0.9 <= np.median(energies) / total_energy(numbers) <= 1.1)


def total_energy(numbers: NDArray[np.int64]) -> float:
    """Total energy that a molecule has about, in Hartree; not a number for unknown elements."""
    return sum(_ATOMS.get(z, np.nan) for z in numbers.tolist())


def _check_lengths(name: str, numbers: NDArray[np.int64], positions: Float64Array) -> None:
    if np.isin(numbers, _NOBLE).any():
        return
    distances = _distances(positions)
    diagonal = np.arange(len(numbers))
    distances[:, diagonal, diagonal] = np.inf
    ratios = np.median((distances / _bond_lengths(numbers)).min(axis=-1), axis=1)
    lowest, highest = _NEAR
    if lowest <= ratios.max() and ratios.min() <= highest:
        _check_overlaps(name, distances)
        return
    ratio = float(np.median(ratios))
    nearest = float(np.median(distances.min(axis=-1)))
    raise InputError(
        f"molecule {name!r}: the nearest neighbours of atoms are {nearest:.3g} Å away, {ratio:.2g} "
        f"of a covalent bond; the lengths look like {_units(ratio, _LENGTHS, _NEAR)}, convert them "
        "to Å"
    )


def _check_overlaps(name: str, distances: Float64Array) -> None:
    closest = int(distances.argmin())
    if distances.flat[closest] < _OVERLAP:
        _, first, second = np.unravel_index(closest, distances.shape)
        raise InputError(
            f"molecule {name!r}: atoms {first} and {second} of a frame are "
            f"{distances.flat[closest]:.3g} Å apart; remove such frames, and atoms that are twice "
            "in the file"
        )


def _check_neighbours(name: str, numbers: NDArray[np.int64], positions: Float64Array) -> None:
    """Refuse elements in another order than positions, by bonds that no element has.

    Most frames must have them: what has one composition may be several molecules.
    """
    distances = _distances(positions)
    distances[:, np.arange(len(numbers)), np.arange(len(numbers))] = np.inf
    ratios = distances / _bond_lengths(numbers)
    light, heavy = np.isin(numbers, list(_NEIGHBOURS)), numbers > 1
    among = np.where(light & light[:, None], ratios, np.inf)
    heavy_ones = np.where(heavy & heavy[:, None], among, np.inf)
    shortest, longest = _BOND
    most = np.array([_NEIGHBOURS.get(z, len(numbers)) for z in numbers.tolist()])
    counts = (among < longest).sum(axis=2)
    crowded = counts > most
    near = heavy_ones.min(axis=2) < shortest
    alone = (numbers == 1) & (ratios.min(axis=2) > _ALONE)
    alone &= (alone.sum(axis=1, keepdims=True) > 1) & heavy.any()
    wrong = crowded | near | alone
    if wrong.any(axis=1).mean() <= 0.5:
        return
    frame, atom = np.argwhere(wrong)[0].tolist()
    if crowded[frame, atom]:
        found = f"has {counts[frame, atom]} bonds, more than it can have"
    elif near[frame, atom]:
        other = int(heavy_ones[frame, atom].argmin())
        length = distances[frame, atom, other]
        found = f"is {length:.2f} Å from atom {other}, nearer than any bond of them"
    else:
        found = "is bonded to nothing, and neither is another hydrogen"
    raise InputError(
        f"molecule {name!r}: atom {atom}, {chemical_symbols[numbers[atom]]}, {found}, as where "
        "elements and positions are in different orders; give both in the same order"
    )


def _check_balance(name: str, positions: Float64Array, forces: Float64Array) -> None:
    """Refuse forces that push or turn an isolated molecule as a whole."""
    large = np.sqrt((forces**2).mean(axis=(1, 2))) > _SMALL
    if large.sum() < _FEWEST:
        return
    positions, forces = positions[large], forces[large]
    arms = positions - positions.mean(axis=1, keepdims=True)
    for what, parts, reason in (
        ("force", forces, "some of the atoms are left out, or others act on them"),
        (
            "torque",
            np.cross(arms, forces),
            "positions are turned, or of other frames, or atoms are in another order",
        ),
    ):
        size = np.linalg.norm(arms, axis=-1) if what == "torque" else 1.0
        each = np.sqrt(((size * np.linalg.norm(forces, axis=-1)) ** 2).sum(axis=1))
        found = float(np.median(np.linalg.norm(parts.sum(axis=1), axis=-1) / each))
        if found > _BALANCE:
            raise InputError(
                f"molecule {name!r}: the {what} of all atoms together is {found:.2f} of those of "
                f"the atoms, but in an isolated molecule they cancel; {reason}: give positions and "
                "forces of whole molecules as they were computed"
            )


def _check_rounding(name: str, positions: Float64Array) -> None:
    """Refuse positions with so few digits that the forces are those of others."""
    cases: dict[str, FloatArray] = {
        "two decimals in Å": np.round(positions, 2),
        "half precision (float16)": positions.astype(np.float16).astype(np.float64),
    }
    for digits, rounded in cases.items():
        if np.allclose(positions, rounded, rtol=0.0, atol=_DIGITS):
            raise InputError(
                f"molecule {name!r}: positions are rounded to {digits}, but a bond that is longer "
                "by 0.005 Å pulls back with 0.15 eV/Å and more, so that its forces are those of "
                "other positions; write four decimals in Å, or single precision, from where the "
                "forces were computed"
            )


def _check_computed(name: str, forces: FloatArray) -> None:
    """Refuse zeros that stand for no forces."""
    missing = np.flatnonzero(~forces.any(axis=(1, 2)))
    if len(missing) == len(forces):
        raise InputError(
            f"molecule {name!r}: all forces are zero, as where they were not computed; leave them "
            "out"
        )
    # At a minimum of a model they are zero.
    if len(missing) > 1:
        raise InputError(
            f"molecule {name!r}: all forces of frame {missing[0]} are zero, as where they were not "
            f"computed ({len(missing)} of {len(forces)} frames); leave such frames out"
        )


def _check_forces(
    name: str,
    numbers: NDArray[np.int64],
    positions: Float64Array,
    forces: Float64Array,
    read_in: _ReadIn,
) -> None:
    found = _stiffness(numbers, positions, forces)
    if found is None:
        return
    stiffness, correlation, size = found.median, found.correlation, found.size
    lowest, highest = _STIFFNESS
    usual = _USUAL_STIFFNESS
    if usual[0] <= size <= usual[1] and abs(correlation) < _UNRELATED and len(positions) >= _FEWEST:
        raise InputError(
            f"molecule {name!r}: forces do not go with the lengths of the bonds (correlation "
            f"{correlation:.2f}, in molecules it is 0.5 to 1), as those of other frames or of "
            "atoms in another order; give positions and forces in the same order"
        )
    which, known = "a bond", "20 to 160"
    hydrogen = found.of_hydrogen
    if len(positions) >= _FEWEST and hydrogen is not None and hydrogen > _USUAL_OF_HYDROGEN[1]:
        stiffness, usual = hydrogen, _USUAL_OF_HYDROGEN
        which, known = "a bond with hydrogen", "15 to 70"
    elif lowest <= stiffness <= highest or (stiffness < lowest and abs(correlation) < _TOLD):
        return
    if lowest <= -stiffness <= highest:
        guess = "gradients of the energy, change their sign"
    else:
        size = unit_of("force", read_in.forces) or 1.0
        unit = _units(abs(stiffness) / size, {"eV/Å": 1.0, **_FORCES}, usual)
        guess = f"{unit}, convert them to {read_in.forces}"
    raise InputError(
        f"molecule {name!r}: by the forces {which} resists stretching with {stiffness:.3g} eV/Å², "
        f"in molecules it is {known}; the forces look like {guess}"
    )


class _Stiffness(NamedTuple):
    """What forces tell of the bonds of a molecule.

    Attributes
    ----------
    median
        Over the bonds, of -d(force along the bond)/d(length), in eV/Å².
    of_hydrogen
        The same over the bonds with hydrogen; None if there are none whose lengths change.
    correlation
        Of lengths and forces.
    size
        Of the forces by that of the changes of length, the slope if the correlation is 1.
    """

    median: float
    of_hydrogen: float | None
    correlation: float
    size: float


def _stiffness(
    numbers: NDArray[np.int64], positions: Float64Array, forces: Float64Array
) -> _Stiffness | None:
    """Measure the stiffness of the bonds; None where none of them changes."""
    distances, bonds = _distances(positions), _bond_lengths(numbers)
    # Frames of one composition may be of several molecules, and bonds may break.
    kept = (np.median(distances, axis=0) < 1.3 * bonds) & (distances.max(axis=0) < 1.6 * bonds)
    i, j = np.nonzero(np.triu(kept, 1))
    vectors = positions[:, j] - positions[:, i]
    lengths = np.linalg.norm(vectors, axis=-1)
    a, b = atomic_masses[numbers[i]], atomic_masses[numbers[j]]
    # Relative acceleration of the two atoms times their reduced mass: other bonds of the atoms add
    # noise, but the slope is that of a lone bond.
    pull = forces[:, j] / b[:, None] - forces[:, i] / a[:, None]
    along = np.einsum("fbk,fbk->fb", pull, vectors / lengths[..., None]) * a * b / (a + b)
    told = lengths.std(axis=0) > _STRETCH
    stretch, along = ((v - v.mean(axis=0))[:, told] for v in (lengths, along))
    if not told.any():
        return None
    work = (stretch * along).sum(axis=0)
    stretched, pulled = float((stretch**2).sum()), float((along**2).sum())
    slopes = -work / (stretch**2).sum(axis=0)
    with_hydrogen = ((numbers[i] == 1) | (numbers[j] == 1))[told]
    return _Stiffness(
        median=float(np.median(slopes)),
        of_hydrogen=float(np.median(slopes[with_hydrogen])) if with_hydrogen.any() else None,
        correlation=-float(work.sum()) / float(np.sqrt(stretched * pulled) or 1.0),
        size=float(np.sqrt(pulled / stretched)),
    )


def _check_totals(name: str, numbers: NDArray[np.int64], energy: float) -> None:
    """Refuse energies of all electrons in another unit than eV."""
    if not set(numbers.tolist()) <= _FREE_ATOMS.keys() or numbers.max() == 1:
        return
    expected = units.HARTREE * sum(_FREE_ATOMS[z] for z in numbers.tolist())
    lowest, highest = _TOTAL
    for unit, size in _ENERGIES.items():
        if lowest <= energy * size / expected <= highest:
            raise InputError(
                f"molecule {name!r}: an energy of {energy:.6g} is that of all its electrons in "
                f"{unit}, in eV it is about {expected:.6g}; convert energies and forces to eV and "
                "eV/Å"
            )


def _check_energies(
    molecule: MoleculeFrames, all_forces: FloatArray, all_energies: FloatArray, read_in: _ReadIn
) -> None:
    # Neighbours in time are alike, which makes the work most exact.
    count = min(_FRAMES, len(molecule))
    chosen = slice((len(molecule) - count) // 2, (len(molecule) + count) // 2)
    segment = np.zeros(len(molecule)) if molecule.segment is None else molecule.segment
    # From one run to the next the way is far from straight.
    first = np.flatnonzero(np.diff(segment[chosen]) == 0)
    if len(first) == 0:
        return
    positions = molecule.positions[chosen].astype(np.float64)
    forces = all_forces[chosen].astype(np.float64)
    changes = np.diff(all_energies[chosen].astype(np.float64))[first]
    done = np.array([_work(*positions[k : k + 2], *forces[k : k + 2]) for k in first])
    expected, found = np.sqrt(np.mean(done**2)), np.sqrt(np.mean(changes**2))
    lowest, highest = _WORK
    if expected < _NO_WORK:
        return
    if found == 0.0:
        raise InputError(
            f"molecule {molecule.name!r}: the energy of all frames is the same, "
            f"{all_energies[chosen][0]:.6g} eV, as where it was not computed; leave it out"
        )
    if not lowest <= found / expected <= highest:
        size, known = unit_of("energy", read_in.energies) or 1.0, {"eV": 1.0, **_ENERGIES}
        raise InputError(
            f"molecule {molecule.name!r}: from frame to frame the energy changes by {found:.3g} eV,"
            f" but the forces do work of {expected:.3g} eV; the energies look like "
            f"{_units(float(found / expected) / size, known, (0.3, 2.0))}, convert energies "
            f"and forces to {read_in.energies} and {read_in.forces}"
        )
    # Of distant frames, between which the way is not straight, the slope tells nothing.
    together = -float(np.mean(changes * done))
    slope = together / float(expected**2)
    lowest, highest = _SLOPE
    if (
        len(first) >= _FEWEST_PAIRS
        and together >= _STRAIGHT * found * expected
        and not lowest <= slope <= highest
    ):
        likely = "forces in eV/Bohr" if slope > highest else "energies per atom"
        raise InputError(
            f"molecule {molecule.name!r}: from frame to frame the energy changes by {slope:.3g} "
            f"times what the forces do as work, as it does with {likely}; convert energies to eV of"
            " the molecule, and forces to eV/Å"
        )


def _work(x: Float64Array, y: Float64Array, fx: Float64Array, fy: Float64Array) -> float:
    """Work of the forces from frame x to y, the latter turned onto the former."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    u, _, vt = np.linalg.svd(y.T @ x)
    turn = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    return float(0.5 * np.sum((fx + fy @ turn) * (y @ turn - x)))


def _check_velocities(molecule: MoleculeFrames, all_velocities: FloatArray, spacing: float) -> None:
    segment = np.zeros(len(molecule)) if molecule.segment is None else molecule.segment
    first = np.flatnonzero(np.diff(segment) == 0)
    if len(first) < _FEWEST:
        return
    first = first[np.linspace(0, len(first) - 1, min(_FRAMES, len(first))).astype(int)]
    positions, velocities = molecule.positions, all_velocities
    moved = positions[first + 1].astype(np.float64) - positions[first]
    expected = (velocities[first].astype(np.float64) + velocities[first + 1]) * spacing / 2.0
    # Trajectories may be centred frame by frame.
    moved, expected = (v - v.mean(axis=1, keepdims=True) for v in (moved, expected))
    way, scale = (float(np.sqrt(np.mean(v**2))) for v in (moved, expected))
    ratio = way / scale if scale else (np.inf if way else 1.0)
    lowest, highest = _MOTION
    if ratio > highest or (ratio < lowest and spacing <= _SHORT_SPACING):
        raise InputError(
            f"molecule {molecule.name!r}: from frame to frame the atoms move {ratio:.3g} times as "
            f"far as their velocities say in {spacing:g} fs; correct the unit of the velocities "
            "(Å/fs) or the time between frames (fs)"
        )
    along = float(np.mean(moved * expected)) / (way * scale or 1.0)
    if way and spacing <= _SHORT_SPACING and along < _ALONG:
        raise InputError(
            f"molecule {molecule.name!r}: from frame to frame the atoms do not move where their "
            f"velocities say (correlation {along:.2f}, in trajectories it is near 1), as with "
            "velocities of another sign, of other frames, of atoms in another order or in other "
            "axes; give positions and velocities as they were computed"
        )


def _distances(positions: Float64Array) -> Float64Array:
    difference = positions[:, :, None] - positions[:, None]
    distances: Float64Array = np.linalg.norm(difference, axis=-1)
    return distances


def _bond_lengths(numbers: NDArray[np.int64]) -> Float64Array:
    radii = covalent_radii[numbers]
    return np.asarray(np.add.outer(radii, radii), dtype=np.float64)


def _units(found: float, known: dict[str, float], usual: tuple[float, float]) -> str:
    """Name the units in which a usual value would be what was found."""
    fitting = [name for name, unit in known.items() if usual[0] <= found * unit <= usual[1]]
    return " or ".join(fitting) or "another unit"
