"""`mlmd evaluate --sampled`: trajectories that exist already, beside molecular dynamics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.table import Table

from mlmd_calc.analysis.ensembles import Frames
from mlmd_calc.analysis.kinetics import LAG
from mlmd_calc.analysis.rollouts import Reference, compare_rollouts, group_runs
from mlmd_calc.biomolecules import MolecularSystem
from mlmd_calc.cli.report import Report
from mlmd_calc.data.biomolecules.trajectories import BiomolecularTrajectory
from mlmd_calc.errors import InputError


def evaluate_sampled(
    trajectories: Sequence[BiomolecularTrajectory],
    sampled: Sequence[BiomolecularTrajectory],
    *,
    seed: int,
    as_json: bool,
    html: Path | None,
) -> None:
    """Compare trajectories that exist already with molecular dynamics, and print the table.

    Parameters
    ----------
    trajectories
        Molecular dynamics; runs of one molecule and temperature are taken together.
    sampled
        What to judge, of one of the molecules: runs with the same time between frames.
    seed
        Seed of the frames that are drawn for comparisons.
    as_json
        Print JSON.
    html
        File of a page, or None.

    Raises
    ------
    InputError
        If a molecule is not among the references, or times do not fit.
    """
    intervals = sorted({own.dt_ps for own in sampled})
    if len(intervals) > 1:
        raise InputError(
            f"the sampled trajectories have frames {', '.join(f'{dt:g}' for dt in intervals)} ps "
            "apart; give those with one interval at a time"
        )
    references = group_runs(trajectories)
    frames: dict[str, list[Frames]] = {}
    for own in sampled:
        name = _reference_of(own, references)
        frames.setdefault(name, []).append(own.positions.astype(np.float64))
    judged = [reference for reference in references if reference.name in frames]
    report = compare_rollouts(judged, {"sampled": frames}, intervals[0], seed=seed)
    table = {"interval_ps": intervals[0], **vars(report)}
    page = Report("Sampled trajectories beside molecular dynamics")
    page.table(comparison(table))
    page.deliver({"tables": [table]}, as_json, html)


def _reference_of(own: BiomolecularTrajectory, references: Sequence[Reference]) -> str:
    """Name of the molecular dynamics of the same molecule: the same atoms in the same residues."""

    def atoms(system: MolecularSystem) -> tuple[list[str], list[int], list[int]]:
        features = system.features
        names = [residue.name for residue in system.residues]
        return names, features.ref_element.tolist(), features.ref_space_uid.tolist()

    for reference in references:
        if atoms(reference.system) == atoms(own.system):
            return reference.name
    known = ", ".join(reference.name for reference in references)
    raise InputError(
        f"there is no molecular dynamics of the molecule of {own.name!r}; there is that of {known}"
    )


_LABELS: Final = {
    "targets": "molecules",
    "pairwise_rmsd_r": "pairwise RMSD, r",
    "global_rmsf_r": "RMSF of all atoms, r",
    "rmsf_r": "RMSF of one molecule, r",
    "rmwd_A": "RMWD, Å",
    "md_pca_w2_A": "W₂ on components of MD, Å",
    "joint_pca_w2_A": "W₂ on components of both, Å",
    "pc_similarity_above_0.5_percent": "alike first components, %",
    "weak_contacts_jaccard": "weak contacts, Jaccard",
    "transient_contacts_jaccard": "transient contacts, Jaccard",
    "t_rmsd_error_A": "RMSD from the start, error, Å",
    "lag_rmsd_error_A": "RMSD by lag, error, Å",
    "clashes_per_trajectory": "clashes per trajectory",
    "ligand_clashes_per_trajectory": "clashes in the ligand",
    "protein_ligand_clashes_per_trajectory": "clashes with the ligand",
    "chirality_flips_per_1000_frames": "mirror images in 1,000 frames",
    "ramachandran_divergence_nats": "φ, ψ, divergence, nats",
    "torsion_divergence_nats": "torsions, divergence, nats",
    "basin_population_error_percent": "populations of basins, error, points",
    "extended_phi_width_degrees": "width of φ, extended, °",
    "basin_changes_per_frame": "basin changes per frame",
    f"rmsd_{LAG}_frames_apart_A": f"RMSD of frames {LAG} apart, Å",
    "whole_frames_percent": "frames with all bonds, %",
}
"""What the rows of the table are called; the correlations r, then distances of ensembles."""


def comparison(table: Mapping[str, Any]) -> Table:
    """Return rows of trajectories as columns."""
    rows = table["rows"]
    shown = Table(
        "",
        *(row["row"] for row in rows),
        title=f"frames {table['interval_ps']:g} ps apart",
        caption="reference: molecular dynamics against molecular dynamics, what a perfect "
        "model would get. shuffled: its frames in random order. static: the start. r and Jaccard "
        "are best at 1, distances, errors and divergences (Jensen-Shannon) at 0; width of φ, basin "
        "changes and RMSD between frames as in the reference.",
    )
    for column, label in _LABELS.items():
        if any(row.get(column) is not None for row in rows):
            shown.add_row(label, *(_cell(row.get(column)) for row in rows))
    return shown


def _cell(value: float | int | None) -> str:
    return "–" if value is None else f"{value:.3g}"
