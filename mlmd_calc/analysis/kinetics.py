"""How fast torsions of peptides change, and how they are distributed.

Frames are ``(f, a, 3)`` Å with the atoms of a :class:`MolecularSystem`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order
from scipy.stats import circstd

from mlmd_calc.analysis.ensembles import Frames, lag_rmsd
from mlmd_calc.biomolecules import MolecularSystem
from mlmd_calc.geometry.bonds import neighbour_lists
from mlmd_calc.geometry.stereochemistry import angle_histogram, dihedrals, jensen_shannon_divergence

LAG: Final = 4
"""Frames between the structures whose RMSD is told."""

_BINS: Final = 36
_EXTENDED: Final = 2
_HELICAL: Final = np.deg2rad((-120.0, 60.0))
"""ψ of helices; the rest is extended."""


def basins(angles: NDArray[np.float64]) -> NDArray[np.int64]:
    """Basin of each (φ, ψ) pair ``(..., 2)`` in radians: 0 left-handed, 1 helical, 2 extended.

    Left-handed is φ > 0; of the rest helical is -120° ≤ ψ < 60°.
    """
    phi, psi = angles[..., 0], angles[..., 1]
    helical = (psi >= _HELICAL[0]) & (psi < _HELICAL[1])
    found: NDArray[np.int64] = np.where(phi > 0.0, 0, np.where(helical, 1, 2))
    return found


def basin_changes(system: MolecularSystem, trajectories: Sequence[Frames]) -> float:
    """Mean number of changes of basin of a residue from one frame to the next.

    Changes back and forth between two frames are not seen, so compare what has the same time
    between frames. Not a number without a residue that has φ and ψ.
    """
    if not len(system.phi_psi):
        return float("nan")
    changes = [np.diff(basins(dihedrals(x, system.phi_psi)), axis=0) != 0 for x in trajectories]
    return float(np.concatenate(changes).mean())


def basin_populations(
    system: MolecularSystem, trajectories: Sequence[Frames]
) -> NDArray[np.float64]:
    """Fractions of the frames ``(r, 3)`` that each residue spends in each of the :func:`basins`."""
    angles = [dihedrals(frames, system.phi_psi) for frames in trajectories]
    found = basins(np.concatenate(angles))
    fractions: NDArray[np.float64] = np.stack([(found == b).mean(axis=0) for b in range(3)], axis=1)
    return fractions


def extended_phi_width(system: MolecularSystem, trajectories: Sequence[Frames]) -> float:
    """Circular standard deviation of φ in degrees, of extended residues.

    It is the mean over those that are extended in at least two frames; not a number if none is.
    """
    angles = np.concatenate([dihedrals(frames, system.phi_psi) for frames in trajectories])
    extended = basins(angles) == _EXTENDED
    own = [phi[there] for phi, there in zip(angles[..., 0].T, extended.T, strict=True)]
    widths = [np.rad2deg(circstd(phi)) for phi in own if len(phi) > 1]
    return float(np.mean(widths)) if widths else float("nan")


def rmsd_after(trajectories: Sequence[Frames]) -> float:
    """Mean RMSD in Å of frames four apart; not a number if all trajectories are shorter."""
    long = [frames for frames in trajectories if len(frames) > LAG]
    if not long:
        return float("nan")
    return float(np.mean([lag_rmsd(frames, np.array([LAG]))[0] for frames in long]))


def torsion_divergences(system: MolecularSystem, first: Frames, second: Frames) -> dict[str, float]:
    """Jensen-Shannon divergence in nats of the histograms of each torsion, in boxes of 10°.

    Like every divergence of histograms it is not zero for few frames: compare it with that of two
    parts of one simulation.

    Returns
    -------
    dict
        By residue and the middle bond of the torsion.
    """
    torsions = rotatable_torsions(len(system.atoms), system.bonds)
    ours, theirs = dihedrals(first, torsions), dihedrals(second, torsions)
    return {
        _label(system, torsion): jensen_shannon_divergence(
            angle_histogram(a[:, None], _BINS), angle_histogram(b[:, None], _BINS)
        )
        for torsion, a, b in zip(torsions, ours.T, theirs.T, strict=True)
    }


def _label(system: MolecularSystem, torsion: NDArray[np.int64]) -> str:
    features, (_, first, second, _) = system.features, torsion.tolist()
    names = [
        "".join(chr(code + ord(" ")) for code in features.ref_atom_name_chars[atom].tolist())
        for atom in (first, second)
    ]
    residue = system.residues[int(features.ref_space_uid[first])]
    return f"{residue.label}, {'-'.join(name.strip() for name in names)}"


def rotatable_torsions(count: int, bonds: NDArray[np.int64]) -> NDArray[np.int64]:
    """One dihedral angle ``(k, 4)`` about each bond that is in no ring and not at an end.

    Parameters
    ----------
    count
        Number of atoms.
    bonds
        ``(b, 2)`` between them.
    """
    neighbours = neighbour_lists(count, bonds.tolist())
    in_rings = _ring_bonds(count, bonds)
    found = []
    for first, second in bonds.tolist():
        before = [atom for atom in neighbours[first] if atom != second]
        after = [atom for atom in neighbours[second] if atom != first]
        if before and after and (first, second) not in in_rings:
            found.append((min(before), first, second, min(after)))
    return np.array(found, dtype=np.int64).reshape(-1, 4)


def _ring_bonds(count: int, bonds: NDArray[np.int64]) -> set[tuple[int, int]]:
    """Bonds of rings, the smaller index first: a bond outside of a spanning tree closes a ring."""
    graph = coo_array((np.ones(len(bonds)), (bonds[:, 0], bonds[:, 1])), shape=(count, count))
    parent = np.full(count, -1)
    depth = np.zeros(count, dtype=np.int64)
    seen = np.zeros(count, dtype=bool)
    for root in range(count):
        if not seen[root]:
            order, before = breadth_first_order(graph.tocsr(), root, directed=False)
            seen[order] = True
            parent[order[1:]] = before[order[1:]]
            for atom in order[1:].tolist():
                depth[atom] = depth[parent[atom]] + 1
    rings: set[tuple[int, int]] = set()
    for first, second in bonds.tolist():
        if parent[first] == second or parent[second] == first:
            continue
        rings.add((first, second))
        while first != second:
            lower, other = (first, second) if depth[first] >= depth[second] else (second, first)
            above = int(parent[lower])
            rings.add((min(lower, above), max(lower, above)))
            first, second = above, other
    return rings
