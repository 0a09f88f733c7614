"""Compare generated trajectories of biomolecules with those of molecular dynamics.

The table follows the evaluation of arXiv 2603.17633, appendix E, and sets beside the generated
trajectories what they could at best and at worst be:

* ``reference``: the first reference trajectory against the others (or its first half against its
  second), what a perfect model would get from as much sampling;
* ``shuffled``: the same with its frames in random order, right in everything but time;
* ``static``: the start structure repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.analysis.accuracy import spread_index
from mlmd_calc.analysis.ensembles import (
    Frames,
    correlation,
    jaccard,
    lag_rmsd_error,
    mean_pairwise_rmsd,
    pc_similarity,
    pca_w2,
    rmsf,
    rmwd,
    t_rmsd_error,
    transient_contacts,
    weak_contacts,
)
from mlmd_calc.analysis.kinetics import (
    LAG,
    basin_changes,
    basin_populations,
    extended_phi_width,
    rmsd_after,
    torsion_divergences,
)
from mlmd_calc.biomolecules import MolecularSystem
from mlmd_calc.errors import InputError
from mlmd_calc.geometry.stereochemistry import (
    chirality_flips,
    clashes,
    dihedrals,
    ramachandran_divergence,
)
from mlmd_calc.geometry.superposition import superpose

_POCKET: Final = 10.0
"""Å; residues with an atom this near to a ligand form its pocket."""
_SIMILAR: Final = 0.5
"""First principal axes with a larger cosine count as similar."""
_RMWD_FRAMES: Final = 1000


@dataclass(frozen=True)
class EnsembleTarget:
    """One molecule with its trajectories.

    Attributes
    ----------
    name
        What to call it in tables.
    system
        The molecule. Its reference structure is what ensembles are superposed on and what contacts
        and handedness refer to.
    reference
        Trajectories of molecular dynamics, ``(f, a, 3)`` Å each, with the atoms of the network.
    generated
        Trajectories of a model, likewise, with the same time between frames; may be empty.
    atoms
        Atoms that deviations and fluctuations are taken of: α-carbons of proteins, all atoms of
        peptides and small molecules, the :func:`pocket` of complexes.

    Raises
    ------
    InputError
        If there is no reference, trajectories do not have the atoms of the system or fewer than two
        frames, or positions are not finite.
    """

    name: str
    system: MolecularSystem
    reference: Sequence[Frames]
    generated: Sequence[Frames]
    atoms: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not self.reference:
            raise InputError(f"target {self.name!r} has no reference trajectory")
        count = len(self.system.atoms)
        for frames in (*self.reference, *self.generated):
            if frames.ndim != 3 or frames.shape[1:] != (count, 3) or len(frames) < 2:
                raise InputError(
                    f"a trajectory of target {self.name!r} has shape {frames.shape}; needed are at "
                    f"least two frames of {count} atoms"
                )
            if not np.isfinite(frames).all():
                raise InputError(f"a trajectory of target {self.name!r} is not finite")


@dataclass(frozen=True)
class EnsembleComparison:
    """How trajectories of one molecule compare with reference trajectories.

    Lengths in Å. Not a number is what has no meaning for the molecule.

    Attributes
    ----------
    pairwise_rmsd, reference_pairwise_rmsd
        Mean RMSD between frames of each ensemble.
    rmsf, reference_rmsf
        ``(a,)`` fluctuation of each atom.
    rmwd
        Root mean Wasserstein distance of the atoms' Gaussians.
    md_pca_w2, joint_pca_w2
        Wasserstein distance on two principal components, of the reference and of both.
    pc_similarity
        Absolute cosine of the first principal axes.
    weak_contacts, transient_contacts
        Jaccard index of contacts of α-carbons.
    t_rmsd_error
        Deviation of the RMSD from the start as a function of time, mean over pairs of trajectories.
    lag_rmsd_error
        Deviation of the RMSD between frames as a function of the time between them.
    clashes, ligand_clashes, protein_ligand_clashes
        Pairs of heavy atoms below 1.1 Å per trajectory: of all, of ligands, between protein and
        ligands.
    chirality_flips
        Centres of the wrong handedness per 1,000 frames.
    ramachandran_divergence
        Mean over residues, nats.
    torsion_divergences
        Of each rotatable bond, nats.
    basin_population_error
        Largest difference between the populations of a basin of (φ, ψ), fractions of the frames,
        mean over residues.
    extended_phi_width
        Standard deviation of φ of extended residues, degrees.
    basin_changes
        Of (φ, ψ), per residue and frame.
    rmsd_after
        Mean RMSD of frames four apart.
    """

    pairwise_rmsd: float
    reference_pairwise_rmsd: float
    rmsf: NDArray[np.float64]
    reference_rmsf: NDArray[np.float64]
    rmwd: float
    md_pca_w2: float
    joint_pca_w2: float
    pc_similarity: float
    weak_contacts: float
    transient_contacts: float
    t_rmsd_error: float
    lag_rmsd_error: float
    clashes: float
    ligand_clashes: float
    protein_ligand_clashes: float
    chirality_flips: float
    ramachandran_divergence: float
    torsion_divergences: dict[str, float]
    basin_population_error: float
    extended_phi_width: float
    basin_changes: float
    rmsd_after: float

    @property
    def rmsf_correlation(self) -> float:
        """Pearson correlation of the fluctuations."""
        return correlation(self.rmsf, self.reference_rmsf)

    @property
    def torsion_divergence(self) -> float:
        """Mean over the rotatable bonds; not a number without any."""
        values = list(self.torsion_divergences.values())
        return float(np.mean(values)) if values else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON-able values, None for what has no meaning."""
        values = {"rmsf_r": self.rmsf_correlation, **vars(self)}
        numbers = {key: _json(v) for key, v in values.items() if isinstance(v, float)}
        return {**numbers, "torsion_divergences": self.torsion_divergences}


@dataclass(frozen=True)
class EnsembleReport:
    """Result of :func:`evaluate_ensembles`.

    Attributes
    ----------
    rows
        The table: one row per kind of trajectory, over all targets. Column names end in units.
    targets
        The same for each target by itself.
    """

    rows: list[dict[str, Any]]
    targets: list[dict[str, Any]]


def pocket(system: MolecularSystem) -> NDArray[np.int64]:
    """Atoms of ligands and of residues with an atom within 10 Å of them.

    Raises
    ------
    InputError
        If the system has no ligand.
    """
    ligand = system.features.is_ligand.numpy()
    if not ligand.any():
        raise InputError("the system has no ligand and so no pocket")
    distances = np.linalg.norm(system.reference[:, None] - system.reference[ligand], axis=-1)
    residue = system.features.ref_space_uid.numpy()
    near = np.unique(residue[(distances < _POCKET).any(axis=1)])
    return np.flatnonzero(np.isin(residue, near))


def compare_ensembles(
    target: EnsembleTarget,
    generated: Sequence[Frames],
    reference: Sequence[Frames],
    rng: np.random.Generator,
    most: int = 400,
) -> EnsembleComparison:
    """Compare trajectories of a molecule with reference trajectories.

    Parameters
    ----------
    target
        The molecule; its own trajectories are not looked at.
    generated, reference
        Trajectories to compare.
    rng
        Draws reference frames, with replacement, as many as there are generated ones.
    most
        Generated frames that enter pairwise RMSD and Wasserstein distances at most, evenly spread.
    """
    system, atoms = target.system, target.atoms
    start, carbons = system.reference, system.alpha_carbons
    moving = [[frames[:, atoms] for frames in part] for part in (generated, reference)]
    ours, theirs = (superpose(np.concatenate(part), start[atoms]) for part in moving)
    few = ours[spread_index(len(ours), most)]
    first, second, many = (
        theirs[rng.integers(len(theirs), size=count)]
        for count in (len(few), len(few), _RMWD_FRAMES)
    )
    made, true = (np.concatenate(part) for part in (generated, reference))
    flips = chirality_flips(made, start, system.chirality_centres)
    return EnsembleComparison(
        pairwise_rmsd=mean_pairwise_rmsd(few, few),
        reference_pairwise_rmsd=mean_pairwise_rmsd(first, second),
        rmsf=rmsf(ours),
        reference_rmsf=rmsf(theirs),
        rmwd=rmwd(many, ours),
        md_pca_w2=pca_w2(few, first, basis=theirs),
        joint_pca_w2=pca_w2(few, first, basis=np.concatenate([few, first])),
        pc_similarity=pc_similarity(ours, theirs),
        weak_contacts=_agreement(weak_contacts, made[:, carbons], true[:, carbons], start[carbons]),
        transient_contacts=_agreement(
            transient_contacts, made[:, carbons], true[:, carbons], start[carbons]
        ),
        t_rmsd_error=float(np.mean([t_rmsd_error(x, y) for x in moving[0] for y in moving[1]])),
        lag_rmsd_error=lag_rmsd_error(*moving),
        **_clashes(made, system.features.is_ligand.numpy(), len(generated)),
        chirality_flips=1000.0 * float(flips.mean()),
        ramachandran_divergence=ramachandran_divergence(
            dihedrals(made, system.phi_psi), dihedrals(true, system.phi_psi)
        ),
        torsion_divergences=torsion_divergences(system, made, true),
        basin_population_error=_population_error(system, generated, reference),
        extended_phi_width=extended_phi_width(system, generated),
        basin_changes=basin_changes(system, generated),
        rmsd_after=rmsd_after([frames[:, atoms] for frames in generated]),
    )


def _population_error(
    system: MolecularSystem, generated: Sequence[Frames], reference: Sequence[Frames]
) -> float:
    if not len(system.phi_psi):
        return float("nan")
    ours, theirs = (basin_populations(system, frames) for frames in (generated, reference))
    return float(np.abs(ours - theirs).max(axis=1).mean())


def _agreement(
    contacts: Callable[[Frames, Frames], NDArray[np.bool_]],
    made: Frames,
    true: Frames,
    start: Frames,
) -> float:
    return jaccard(contacts(made, start), contacts(true, start))


def _clashes(frames: Frames, ligand: NDArray[np.bool_], trajectories: int) -> dict[str, float]:
    """Clashes per trajectory, by the names of the fields; not a number without the atoms."""
    bound, rest = frames[:, ligand], frames[:, ~ligand]
    both = ligand.any() and not ligand.all()
    return {
        "clashes": clashes(frames).sum() / trajectories,
        "ligand_clashes": clashes(bound).sum() / trajectories if ligand.any() else np.nan,
        "protein_ligand_clashes": clashes(bound, rest).sum() / trajectories if both else np.nan,
    }


def evaluate_ensembles(
    targets: Sequence[EnsembleTarget], *, seed: int = 137, most: int = 400
) -> EnsembleReport:
    """Compare trajectories of several molecules with molecular dynamics.

    Correlations of pairwise RMSD (from three targets on) and of all fluctuations are over all
    targets; clashes, flips, errors of the RMSD in time, divergences and what is of basins or tells
    the speed are means, other columns medians over targets, of those that have a value. The width
    of φ, changes of basin and the RMSD of frames some time apart are those of each row itself:
    "reference" has those of molecular dynamics, and "shuffled" those of frames that have nothing to
    do with each other.

    Parameters
    ----------
    targets
        Molecules with trajectories; without generated ones the table has only the other rows.
    seed
        Of the frames drawn; every row draws the same ones.
    most
        See :func:`compare_ensembles`.

    Raises
    ------
    InputError
        If there is no target, or only some have generated trajectories.
    """
    if not targets or len({bool(target.generated) for target in targets}) > 1:
        raise InputError(
            f"{len(targets)} targets, {sum(bool(t.generated) for t in targets)} of them with "
            "generated trajectories; give at least one target, and trajectories to all or to none"
        )
    rows, details = [], []
    found: dict[str, list[EnsembleComparison]] = {}
    for index, target in enumerate(targets):
        for kind, (ours, theirs) in _contests(target, seed).items():
            rng = np.random.default_rng([seed, index])
            comparison = compare_ensembles(target, ours, theirs, rng, most)
            found.setdefault(kind, []).append(comparison)
            details.append({"row": kind, "target": target.name, **comparison.to_dict()})
    for kind, comparisons in found.items():
        rows.append({"row": kind, "targets": len(targets), **_summary(comparisons)})
    return EnsembleReport(rows, details)


def _contests(
    target: EnsembleTarget, seed: int
) -> dict[str, tuple[Sequence[Frames], Sequence[Frames]]]:
    """Say what stands for the generated and for the reference trajectories in each row."""
    first, *others = target.reference
    if not others:
        first, *others = np.array_split(first, 2)
    if target.generated:
        first = first[: sum(map(len, target.generated))]
    order = np.random.default_rng(seed).permutation(len(first))
    static = np.repeat(target.system.reference[None], len(first), axis=0)
    contests: dict[str, tuple[Sequence[Frames], Sequence[Frames]]] = {
        "reference": ([first], others),
        "shuffled": ([first[order]], others),
        "static": ([static], others),
    }
    if target.generated:
        return {"generated": (target.generated, target.reference), **contests}
    return contests


def _summary(comparisons: Sequence[EnsembleComparison]) -> dict[str, float | None]:
    def values(name: str) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.array([getattr(c, name) for c in comparisons])
        return found[np.isfinite(found)]

    def median(name: str) -> float | None:
        found = values(name)
        return float(np.median(found)) if len(found) else None

    def mean(name: str) -> float | None:
        found = values(name)
        return float(np.mean(found)) if len(found) else None

    pairwise = values("pairwise_rmsd"), values("reference_pairwise_rmsd")
    fluctuations = (
        np.concatenate([getattr(comparison, name) for comparison in comparisons])
        for name in ("rmsf", "reference_rmsf")
    )
    similar = [comparison.pc_similarity > _SIMILAR for comparison in comparisons]
    return {
        "pairwise_rmsd_r": _json(correlation(*pairwise)) if len(comparisons) > 2 else None,
        "global_rmsf_r": _json(correlation(*fluctuations)),
        "rmsf_r": median("rmsf_correlation"),
        "rmwd_A": median("rmwd"),
        "md_pca_w2_A": median("md_pca_w2"),
        "joint_pca_w2_A": median("joint_pca_w2"),
        "pc_similarity_above_0.5_percent": 100.0 * float(np.mean(similar)),
        "weak_contacts_jaccard": median("weak_contacts"),
        "transient_contacts_jaccard": median("transient_contacts"),
        "t_rmsd_error_A": mean("t_rmsd_error"),
        "lag_rmsd_error_A": mean("lag_rmsd_error"),
        "clashes_per_trajectory": mean("clashes"),
        "ligand_clashes_per_trajectory": mean("ligand_clashes"),
        "protein_ligand_clashes_per_trajectory": mean("protein_ligand_clashes"),
        "chirality_flips_per_1000_frames": mean("chirality_flips"),
        "ramachandran_divergence_nats": mean("ramachandran_divergence"),
        "torsion_divergence_nats": mean("torsion_divergence"),
        "basin_population_error_percent": _percent(mean("basin_population_error")),
        "extended_phi_width_degrees": mean("extended_phi_width"),
        "basin_changes_per_frame": mean("basin_changes"),
        f"rmsd_{LAG}_frames_apart_A": mean("rmsd_after"),
    }


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100.0 * fraction


def _json(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
